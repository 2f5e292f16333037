"""One set of arrays for the model's inputs."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from trt_helper.errors import InputError
from trt_helper.onnx_model.graph import Graph
from trt_helper.values import Array, Feed


@dataclass(frozen=True, eq=False, slots=True)
class Sample:
    """One set of arrays for the model's inputs."""

    source: str  # file, index and seed, as reports show it
    feed: Feed  # in order and types of the graph's inputs; where the file's input is FP16: FP32, rounded to FP16

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(array.shape) for name, array in self.feed.items()}


def numpy_type(value: ir.Value) -> np.dtype:
    """The type of an input's arrays. Raises InputError for an input that is no tensor."""
    if value.dtype is None or not isinstance(value.type, ir.TensorType):
        raise InputError(
            f"input {value.name!r} is no tensor",
            fix="only tensor inputs can be fed; export the model with them",
        )
    return np.dtype(value.dtype.numpy())


def stored(graph: Graph, value: ir.Value, array: Array) -> Array:
    """`array` in the type of the graph's input, with the rounded values that the reference reads at an FP16 input."""
    reduced = graph.io_types.get(value.name or "")
    with np.errstate(over="ignore"):
        rounded = array if reduced is None else array.astype(reduced.numpy())
        return np.ascontiguousarray(rounded, dtype=numpy_type(value)).reshape(array.shape)


def shape_text(shape: ir.Shape | None) -> str:
    """A shape as text: `[1, batch, ?]` has a size, a named and an unnamed dynamic dimension. `?` is no known rank."""
    if shape is None:
        return "?"
    return "[" + ", ".join(str(d if isinstance(d, int) else (d.value or "?")) for d in shape) + "]"


def element_count(sample: Sample) -> int:
    """The number of elements of all inputs, by which samples are ordered."""
    return sum(math.prod(shape) for shape in sample.shapes.values())


def digest(feeds: Sequence[Mapping[str, Array]]) -> str:
    """SHA-256, in hexadecimal, over the names, shapes, types and bytes of all samples, in their order."""
    found = hashlib.sha256()
    for feed in feeds:
        for name, array in feed.items():
            found.update(repr((name, array.shape, str(array.dtype))).encode())
            found.update(array.tobytes())
    return found.hexdigest()
