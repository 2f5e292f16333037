"""Exchange arrays between `runners.run` and its child processes, in files of one folder.

The parent process writes the samples (in0.npz, in1.npz, ...), the child writes the outputs of each repeat
(out0_0.npz: repeat 0, sample 0) and, if requested, the intermediate tensors (intermediates0.npz). The arrays of a file
are stored by position, because a tensor can have any name; the names are in the request and the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trt_helper.errors import RunError, first_line
from trt_helper.inputs.sample import Sample
from trt_helper.values import Array

NOTHING: Mapping[str, Array] = {}
NO_TYPES: Mapping[str, Any] = {}
Infer = Callable[[Mapping[str, Array]], Sequence[Array]]
"""Takes inputs by name and returns the outputs in the requested order; the next call may reuse the arrays."""


def write_feed(path: Path, sample: Sample) -> None:
    """Write a sample's arrays to the file `path`, by position."""
    np.savez(path, *sample.feed.values())


def read_feed(path: Path, names: Sequence[str], types: Mapping[str, Any] = NO_TYPES) -> dict[str, Array]:
    """Read a file of `write_feed`.

    Args:
        path: The file.
        names: The input names in the order in which the arrays were written.
        types: Numpy types that the model requires for its float inputs; other arrays keep their type.

    Returns:
        The arrays by input name.
    """
    with np.load(path, allow_pickle=False) as archive:
        return {name: _converted(archive[f"arr_{index}"], types.get(name)) for index, name in enumerate(names)}


def _converted(array: Array, wanted: Any) -> Array:
    return array if wanted is None or array.dtype.kind != "f" else np.ascontiguousarray(array, wanted)


def serve(
    request: Mapping[str, Any], types: Mapping[str, Any], infer: Infer, intermediates: Mapping[str, Array] = NOTHING
) -> dict[str, Any]:
    """Run every sample of the request and write the results; this is the child process's side of `run.execute`.

    Args:
        request: The request that `run._served` makes.
        types: As for `read_feed`.
        infer: Runs one inference.
        intermediates: Filled by `infer` with the intermediate tensors of the last inference, by the engine's names.
            They are written if the request wants them.

    Returns:
        `intermediates`: for each sample the names of the intermediate tensors that were written.

    Raises:
        RunError: A sample cannot be run.
    """
    folder = Path(request["folder"])
    intermediate_names: list[list[str]] = []
    for index, names in enumerate(request["inputs"]):
        feed = read_feed(folder / f"in{index}.npz", names, types)
        try:
            for _ in range(request["warm_up"]):
                infer(feed)
            for repeat in range(request["repeats"]):
                np.savez(folder / f"out{repeat}_{index}.npz", *infer(feed))
            if request["intermediates"]:
                np.savez(folder / f"intermediates{index}.npz", *intermediates.values())
                intermediate_names.append(list(intermediates))
        except Exception as error:  # onnxruntime and Polygraphy have their own exception types
            raise RunError(
                f"sample {index} cannot be run: {type(error).__name__}: {first_line(error)}",
                fix="check that its shapes lie in the engine's profile, and that the GPU has memory left",
            ) from error
    return {"intermediates": intermediate_names}
