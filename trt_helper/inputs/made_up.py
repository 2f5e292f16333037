"""Samples without the user's data: seeded random values, in sizes that the model runs with and ranges that it expects.

They only show that everything works: which layers FP16 harms depends on real values, and the user is warned.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod

import numpy as np
import onnx_ir as ir

from trt_helper.errors import InputError, TrtHelperError
from trt_helper.inputs.references import runner
from trt_helper.inputs.sample import Sample, numpy_type, shape_text, stored
from trt_helper.onnx_model.graph import Graph
from trt_helper.values import Array

SEED = 0
BATCH = 1  # the first dimension of an input, where it is dynamic
IMAGES = (64, 224, 32, 512, 8, 1)  # sizes to try for the dynamic dimensions of inputs of four and more dimensions
OTHERS = (8, 32, 64, 224, 16, 1)  # and of other inputs
FOUR = 4
SCALED = 16.0  # a first layer that divides by more, or subtracts more, expects values of that size
LIMIT = 1 << 27  # elements of one made-up input: 1 GiB while it is drawn
BYTE = 256
INTEGERS = frozenset(("Cast", "Concat", "Expand", "Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Unsqueeze"))
Shapes = tuple[tuple[str, tuple[int, ...]], ...]  # of all inputs, by name


def random_sample(graph: Graph, shapes: Mapping[str, Sequence[int]], seed: int = SEED) -> Sample:
    """A sample of random values.

    Floats are standard normal, or in the range that the first layers expect: pixels where they divide by 255. Integers
    that index a table are in its range, bytes are 0 to 255, other integers and booleans 0 and 1.

    Where dynamic dimensions have no size, some sizes are tried until the model runs. A dimension of one name has one
    size; a first dimension is 1.

    Args:
        graph: Of the model.
        shapes: Shapes of inputs, as far as they are given.
        seed: Of the values.

    Raises:
        InputError: An input is neither numeric nor boolean, or no tensor, or too large; or the model runs with none of
            the sizes that are tried.
    """
    tries = [*dict.fromkeys(_tries(graph, shapes))]
    if len(tries) == 1:
        return _sample(graph, tries[0], seed)
    run, refused = runner(graph), None
    for sizes in tries:
        try:
            sample = _sample(graph, sizes, seed)
            run(sample)
        except TrtHelperError as error:
            refused = refused or error
        else:
            return sample
    free = {v.name or "": v for v in graph.inputs if v.name not in shapes and _is_dynamic(v)}
    name, value = next(iter(free.items()))
    raise InputError(
        f"{shape_text(value.shape)} of input {name!r} is dynamic, and the model ran with none of the sizes that were "
        f"tried, 1 to 512: {str(refused).partition(': ')[2][:200]}",
        fix=f"give sizes: --shapes {name}:{'x'.join(str(d) if isinstance(d, int) else 'N' for d in value.shape or ())}",
    )


def _is_dynamic(value: ir.Value) -> bool:
    return value.shape is not None and not all(isinstance(size, int) for size in value.shape)


def _tries(graph: Graph, shapes: Mapping[str, Sequence[int]]) -> Iterator[Shapes]:
    """Shapes of all inputs, the most probable first; only one if nothing is left open."""
    known = _known_sizes(graph, shapes)
    for batch in (False, True):
        for image, other in zip(IMAGES, OTHERS, strict=True):
            sizes = dict(known)
            found = []
            for value in graph.inputs:
                name = value.name or ""
                dimensions: list[int | ir.SymbolicDim] = list(value.shape or ())
                size = image if len(dimensions) >= FOUR else other
                if name in shapes:
                    found.append((name, tuple(shapes[name])))
                    continue
                for axis, dimension in enumerate(dimensions):
                    if not isinstance(dimension, int):
                        chosen = BATCH if axis == 0 and not batch else size
                        dimensions[axis] = _size(dimension.value, sizes, chosen)
                found.append((name, tuple(size for size in dimensions if isinstance(size, int))))
            yield tuple(found)


def _size(symbol: str | None, sizes: dict[str, int], chosen: int) -> int:
    """The size of a dynamic dimension; exporters of transformers write sums: `past_sequence_length + 1`."""
    if not symbol:
        return chosen
    parts = [part.strip() for part in symbol.split("+")]
    if len(parts) > 1:
        return sum(int(part) if part.isdigit() else sizes.setdefault(part, chosen) for part in parts)
    return sizes.setdefault(symbol, chosen)


def _known_sizes(graph: Graph, shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """The sizes of named dynamic dimensions, as far as `shapes` gives them for some input."""
    return {
        dimension.value: size
        for value in graph.inputs
        for dimension, size in zip(value.shape or (), shapes.get(value.name or "", ()), strict=False)
        if not isinstance(dimension, int) and dimension.value
    }


def _sample(graph: Graph, shapes: Shapes, seed: int) -> Sample:
    generator = np.random.default_rng(seed)
    feed = {}
    for value, (name, shape) in zip(graph.inputs, shapes, strict=True):
        if prod(shape) > LIMIT:
            raise InputError(
                f"input {name!r} is {shape_text(value.shape)}: {prod(shape):.3g} elements are too many to make up",
                fix="give real inputs with --inputs FILE.npz, or a smaller size with --shapes",
            )
        feed[name] = _values(graph, value, shape, generator)
    return Sample(f"random (seed {seed})", feed)


def _values(graph: Graph, value: ir.Value, shape: tuple[int, ...], generator: np.random.Generator) -> Array:
    dtype = numpy_type(value)
    if dtype.kind == "f" or graph.io_types.get(value.name or ""):
        return stored(graph, value, np.asarray(_floats(value, shape, generator)))
    if dtype.kind in "iu":
        high = _table(value) or (BYTE if dtype == np.uint8 else 2)
        return generator.integers(0, min(high, np.iinfo(dtype).max), shape).astype(dtype)
    if dtype.kind == "b":
        return generator.integers(0, 2, shape).astype(dtype)
    raise InputError(
        f"input {value.name!r} holds {dtype}: it cannot be made up", fix="give real inputs with --inputs FILE.npz"
    )


def _floats(value: ir.Value, shape: tuple[int, ...], generator: np.random.Generator) -> Array:
    """Standard normal values, or those that a layer expects that divides, subtracts or takes a root or logarithm."""
    for use in value.uses():
        node, constant = use.node, _constant(use.node, 1 - use.idx)
        if node.op_type in ("Sqrt", "Log") or (node.op_type == "Pow" and constant and constant % 1):
            return np.abs(generator.standard_normal(shape))
        if constant is None:
            continue
        span = {"Div": constant, "Mul": 1 / constant if constant else 0.0, "Sub": 2 * constant}.get(node.op_type, 0.0)
        if span >= SCALED:
            return np.floor(generator.random(shape) * (span + 1)).clip(max=span)
    return generator.standard_normal(shape)


def _constant(node: ir.Node, index: int) -> float | None:
    """The mean of the other operand, where that is a constant of few elements."""
    other = node.inputs[index] if 0 <= index < len(node.inputs) else None
    tensor = ir.convenience.get_const_tensor(other) if other is not None else None
    few = tensor is not None and tensor.size <= SCALED and tensor.dtype is ir.DataType.FLOAT
    return float(tensor.numpy().mean()) if few and tensor is not None and tensor.size else None


def _table(value: ir.Value) -> int:
    """The number of rows of the smallest table that the integers index, directly or after being moved or cast; or 0."""
    rows, waiting, seen = [], [value], set()
    while waiting:
        current = waiting.pop()
        for use in current.uses():
            node = use.node
            if node.op_type == "Gather" and use.idx == 1:
                table = node.inputs[0]
                axis = node.attributes.get_int("axis", 0)
                size = table.shape[axis] if table is not None and table.shape is not None else None
                rows += [size] if isinstance(size, int) and table is not None and table.is_initializer() else []
            elif node.op_type in INTEGERS and node.outputs[0] not in seen:
                seen.add(node.outputs[0])
                waiting.append(node.outputs[0])
    return min(rows, default=0)
