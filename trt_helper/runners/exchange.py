"""How samples get into a child process, and the child's side of `run.execute`: samples come in, outputs go out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trt_helper.errors import RunError, first_line
from trt_helper.inputs.samples import Sample
from trt_helper.values import Array

NOTHING: Mapping[str, Array] = {}
NO_TYPES: Mapping[str, Any] = {}
Infer = Callable[[Mapping[str, Array]], Sequence[Array]]
"""Feeds by name in, outputs in the order asked for out. The arrays may be reused by the next call."""


def write_feed(path: Path, sample: Sample) -> None:
    """Keep a sample for a child, by position: a name may be anything."""
    np.savez(path, *sample.feed.values())


def read_feed(path: Path, names: Sequence[str], types: Mapping[str, Any] = NO_TYPES) -> dict[str, Array]:
    """What `write_feed` kept, by input name; floats in the type that the model reads (`types`, numpy's)."""
    with np.load(path, allow_pickle=False) as archive:
        return {name: _as_read(archive[f"arr_{index}"], types.get(name)) for index, name in enumerate(names)}


def _as_read(array: Array, wanted: Any) -> Array:
    return array if wanted is None or array.dtype.kind != "f" else np.ascontiguousarray(array, wanted)


def serve(
    request: Mapping[str, Any], types: Mapping[str, Any], infer: Infer, heard: Mapping[str, Array] = NOTHING
) -> dict[str, Any]:
    """Run every sample, given as the model reads it: `types` as for `read_feed`.

    `heard` is what was heard of the inside in the last inference; where the request is to listen, it is kept, too.
    """
    folder = Path(request["folder"])
    names_heard: list[list[str]] = []
    for index, names in enumerate(request["inputs"]):
        feed = read_feed(folder / f"in{index}.npz", names, types)
        try:
            for _ in range(request["warm_up"]):
                infer(feed)
            for repeat in range(request["repeats"]):
                np.savez(folder / f"out{repeat}_{index}.npz", *infer(feed))
            if request["listen"]:
                np.savez(folder / f"heard{index}.npz", *heard.values())
                names_heard.append(list(heard))
        except Exception as error:  # onnxruntime and Polygraphy raise types of their own
            raise RunError(
                f"sample {index} cannot be run: {type(error).__name__}: {first_line(error)}",
                fix="check that its shapes lie in the engine's profile, and that the GPU has memory left",
            ) from error
    return {"heard": names_heard}
