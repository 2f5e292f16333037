"""Products and sums that are accumulated in half: kernels that are less exact than those that were read.

Seen as FP16 accumulators in fused attention and in GEMMs that trade accuracy for speed (NVIDIA/FasterTransformer 548,
NVIDIA/TensorRT 2942 and 4674). Sixteen terms are added up in FP32, as one tensor-core instruction does, and then added
to the total in half.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import onnx_ir as ir

from trt_helper.emulator.lowered_loops import Compute, Inputs, Round, of_shapes, with_bias
from trt_helper.values import Array

AT_A_TIME = 16


def _blocks(size: int) -> Iterator[slice]:
    return (slice(first, first + AT_A_TIME) for first in range(0, size, AT_A_TIME))


def _total(parts: Iterator[Array], rounded: Round) -> Array | None:
    total: Array | None = None
    for part in parts:
        total = rounded(np.ascontiguousarray(part if total is None else total + part))
    return total


def product(a: Array, b: Array, rounded: Round) -> Array:
    """The product a @ b, accumulated in half."""
    left, right = (a[None] if a.ndim == 1 else a), (b[:, None] if b.ndim == 1 else b)
    total = _total((left[..., part] @ right[..., part, :] for part in _blocks(left.shape[-1])), rounded)
    return of_shapes(left @ right if total is None else total, a, b)


def _sum(x: Array, axes: Sequence[int], rounded: Round) -> Array:
    """The sum over some axes, which are kept with size 1."""
    kept = [axis for axis in range(x.ndim) if axis not in axes]
    flat = x.transpose(*kept, *axes).reshape(*(x.shape[axis] for axis in kept), -1)
    parts = (flat[..., part].sum(axis=-1, dtype=np.float32) for part in _blocks(flat.shape[-1]))
    total = _total(parts, rounded)
    if total is None:
        total = flat.sum(axis=-1)
    return total.reshape([1 if axis in axes else size for axis, size in enumerate(x.shape)])


def matmul(_node: ir.Node, inputs: Inputs, rounded: Round) -> list[Array]:
    """MatMul."""
    a, b, *_ = (array for array in inputs if array is not None)
    return [product(a, b, rounded)]


def gemm(node: ir.Node, inputs: Inputs, rounded: Round) -> list[Array]:
    """Gemm."""
    return with_bias(node, inputs, rounded, product)


def convolution(node: ir.Node, inputs: Inputs, rounded: Round) -> list[Array]:
    """Conv: position by position of its kernel, sixteen channels at a time."""
    x, weight, *rest = (array for array in inputs if array is not None)
    places = weight.ndim - 2
    ints = node.attributes.get_ints
    strides, dilations = ints("strides", ()) or [1] * places, ints("dilations", ()) or [1] * places
    groups = node.attributes.get_int("group", 1)
    extent = [(size - 1) * step + 1 for size, step in zip(weight.shape[2:], dilations, strict=True)]
    padding = _padding(node, x.shape[2:], extent, strides)
    padded = np.pad(x, [(0, 0), (0, 0), *padding])
    sizes = [(n - e) // s + 1 for n, e, s in zip(padded.shape[2:], extent, strides, strict=True)]
    made = []
    for data, kernel in zip(np.split(padded, groups, axis=1), np.split(weight, groups), strict=True):
        parts = _parts_of_convolution(data, kernel, (sizes, strides, dilations))
        total = _total(parts, rounded)
        made.append(total if total is not None else np.zeros((len(x), len(kernel), int(np.prod(sizes))), np.float32))
    result = np.concatenate(made, axis=1).reshape(len(x), len(weight), *sizes)
    return [result + bias.reshape(-1, *[1] * places) for bias in rest] or [result]


def _parts_of_convolution(
    data: Array, kernel: Array, shape: tuple[Sequence[int], Sequence[int], Sequence[int]]
) -> Iterator[Array]:
    for place in np.ndindex(*kernel.shape[2:]):
        window = tuple(
            slice(at * dilation, at * dilation + size * stride, stride)
            for at, size, stride, dilation in zip(place, *shape, strict=True)
        )
        seen = data[(slice(None), slice(None), *window)].reshape(*data.shape[:2], -1)
        weights = kernel[(slice(None), slice(None), *place)]
        yield from (weights[:, part] @ seen[:, part] for part in _blocks(weights.shape[1]))


def _padding(
    node: ir.Node, sizes: Sequence[int], extent: Sequence[int], strides: Sequence[int]
) -> list[tuple[int, int]]:
    """What is added before and after each spatial axis."""
    kind = node.attributes.get_string("auto_pad", "NOTSET")
    if kind in ("SAME_UPPER", "SAME_LOWER"):
        needed = [
            max((-(-size // stride) - 1) * stride + reach - size, 0)
            for size, reach, stride in zip(sizes, extent, strides, strict=True)
        ]
        first = [need // 2 if kind == "SAME_UPPER" else need - need // 2 for need in needed]
        return [(before, need - before) for before, need in zip(first, needed, strict=True)]
    pads = node.attributes.get_ints("pads", ()) or [0] * (2 * len(sizes))
    return list(zip(pads[: len(sizes)], pads[len(sizes) :], strict=True))


def _axes(node: ir.Node, inputs: Inputs, rank: int) -> list[int]:
    given = inputs[1] if len(inputs) > 1 else None
    axes = given.tolist() if given is not None else list(node.attributes.get_ints("axes", ()))
    return sorted(int(axis) % rank for axis in axes)


def _reduction(before: Callable[[Array], Array], after: Callable[[Array, int], Array], *, stored: bool) -> Compute:
    """A reduction: what is summed, what becomes of the sum over so many elements, whether terms are stored in half."""

    def compute(node: ir.Node, inputs: Inputs, rounded: Round) -> list[Array]:
        (x,) = (array for array in inputs[:1] if array is not None)
        axes = _axes(node, inputs, x.ndim)
        if not axes and node.attributes.get_int("noop_with_empty_axes", 0) == 1:
            return [x]
        axes = axes or list(range(x.ndim))
        terms = before(x)
        total = _sum(rounded(terms) if stored else terms, axes, rounded)
        result = after(total, int(np.prod([x.shape[axis] for axis in axes])))
        return [result if node.attributes.get_int("keepdims", 1) else result.squeeze(axis=tuple(axes))]

    return compute


reduce_sum = _reduction(lambda x: x, lambda total, _count: total, stored=False)
reduce_mean = _reduction(lambda x: x, lambda total, count: total / np.float32(max(count, 1)), stored=False)
reduce_l2 = _reduction(np.square, lambda total, _count: np.sqrt(total), stored=True)
reduce_sum_square = _reduction(np.square, lambda total, _count: total, stored=True)


def global_average_pool(_node: ir.Node, inputs: Inputs, rounded: Round) -> list[Array]:
    """GlobalAveragePool."""
    (x,) = (array for array in inputs[:1] if array is not None)
    return [_sum(x, range(2, x.ndim), rounded) / np.float32(max(int(np.prod(x.shape[2:])), 1))]


def softmax(node: ir.Node, inputs: Inputs, rounded: Round) -> list[Array]:
    """Softmax of opset 13 and later, over one axis."""
    (x,) = (array for array in inputs[:1] if array is not None)
    axis = node.attributes.get_int("axis", -1) % x.ndim
    powers = rounded(np.exp(rounded(x - x.max(axis=axis, keepdims=True))))
    return [powers / _sum(powers, [axis], rounded)]


ACCUMULATED: dict[str, Compute] = {
    "Conv": convolution,
    "Gemm": gemm,
    "GlobalAveragePool": global_average_pool,
    "MatMul": matmul,
    "ReduceL2": reduce_l2,
    "ReduceMean": reduce_mean,
    "ReduceSum": reduce_sum,
    "ReduceSumSquare": reduce_sum_square,
    "Softmax": softmax,
}
