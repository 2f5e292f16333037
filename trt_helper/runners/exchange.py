"""The child's side of `run.execute`: which samples come in and where outputs go."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trt_helper.errors import RunError
from trt_helper.kernels import Array

NOTHING: Mapping[str, Array] = {}
Infer = Callable[[Mapping[str, Array]], Sequence[Array]]
"""Feeds by name in, outputs in the order asked for out. The arrays may be reused by the next call."""


def serve(
    request: Mapping[str, Any], types: Mapping[str, Any], infer: Infer, heard: Mapping[str, Array] = NOTHING
) -> dict[str, Any]:
    """Run every sample; floats are given in the type that the model reads (`types`, numpy's).

    `heard` is what was heard of the inside in the last inference; where the request is to listen, it is kept, too.
    """
    folder = Path(request["folder"])
    names_heard: list[list[str]] = []
    for index, names in enumerate(request["inputs"]):
        feed = {name: _as_read(array, types.get(name)) for name, array in _feed(folder / f"in{index}.npz", names)}
        try:
            for _ in range(request["warm_up"]):
                infer(feed)
            for repeat in range(request["repeats"]):
                np.savez(folder / f"out{repeat}_{index}.npz", *infer(feed))
            if request["listen"]:
                np.savez(folder / f"heard{index}.npz", *heard.values())
                names_heard.append(list(heard))
        except Exception as error:  # onnxruntime and Polygraphy raise types of their own
            reason = next(iter(str(error).splitlines()), "")[:300]
            raise RunError(
                f"sample {index} cannot be run: {type(error).__name__}: {reason}",
                fix="check that its shapes lie in the engine's profile, and that the GPU has memory left",
            ) from error
    return {"heard": names_heard}


def _feed(path: Path, names: Sequence[str]) -> list[tuple[str, Array]]:
    with np.load(path, allow_pickle=False) as archive:
        return [(name, archive[f"arr_{index}"]) for index, name in enumerate(names)]


def _as_read(array: Array, wanted: Any) -> Array:
    same = wanted is None or array.dtype == wanted
    return array if same or array.dtype.kind != "f" else np.ascontiguousarray(array.astype(wanted))
