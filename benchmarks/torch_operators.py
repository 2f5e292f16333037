"""What each ONNX operator is in PyTorch: `OPERATORS` maps it to a function of the node and its inputs.

Every function computes in the types of its inputs. An operator that is missing here, or a use of one that its
function does not cover, raises `NotCoveredError`, which names it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - as everybody calls it
from torch import Tensor
from torch_layers import (
    Node,
    NotCoveredError,
    attention,
    average_pool,
    batch_norm,
    conv,
    conv_transpose,
    gru_step,
    instance_norm,
    layer_norm,
    lstm_step,
    max_pool,
    recurrent,
    resize,
)

REDUCTIONS = ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceProd", "ReduceSumSquare", "ReduceL2")
# Inputs that a function receives as Python numbers, because PyTorch takes them so: shapes, axes, sizes.
NUMBERS: dict[str, tuple[int, ...]] = {
    "ConstantOfShape": (0,),
    "CumSum": (1,),
    "Expand": (1,),
    "Pad": (1, 2, 3),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Unsqueeze": (1,),
    "If": (0,),
    "Loop": (0, 1),
    **dict.fromkeys(REDUCTIONS, (1,)),
}


def _unary(function: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda _node, x: function(x)


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda _node, a, b: function(a, b)


def _folded(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """An operator of any number of inputs."""

    def fold(_node: Node, first: Tensor, *others: Tensor) -> Tensor:
        for other in others:
            first = function(first, other)
        return first

    return fold


def _div(_node: Node, a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _pow(_node: Node, a: Tensor, b: Tensor) -> Tensor:
    return torch.pow(a, b).to(a.dtype)


def _clip(_node: Node, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    x = x if low is None else torch.maximum(x, low)
    return x if high is None else torch.minimum(x, high)


def _axes(node: Node, axes: Sequence[int] | None) -> list[int] | None:
    """Of an operator that has its axes as attribute, in later versions as input."""
    found = node.get("axes", axes)
    return list(found) if found else None


def _reduce(function: Callable[[Tensor, list[int], bool], Tensor]) -> Callable[..., Tensor]:
    def reduce(node: Node, x: Tensor, axes: Sequence[int] | None = None) -> Tensor:
        found = _axes(node, axes)
        if found is None and node.get("noop_with_empty_axes", 0):
            return x
        return function(x, found or list(range(x.dim())), bool(node.get("keepdims", 1)))

    return reduce


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _arg_max(node: Node, x: Tensor) -> Tensor:
    return x.argmax(node.get("axis", 0), keepdim=bool(node.get("keepdims", 1)))


def _cast(node: Node, x: Tensor) -> Tensor:
    if node.get("to") is None:
        raise NotCoveredError("operator Cast to a type that PyTorch does not have")
    return x.to(node.get("to"))


def _reshape(node: Node, x: Tensor, shape: Sequence[int]) -> Tensor:
    if node.get("allowzero", 0):
        return x.reshape(list(shape))
    return x.reshape([x.shape[index] if size == 0 else size for index, size in enumerate(shape)])


def _flatten(node: Node, x: Tensor) -> Tensor:
    axis = node.get("axis", 1) % (x.dim() + 1)
    return x.reshape(math.prod(x.shape[:axis]), -1)


def _squeeze(node: Node, x: Tensor, axes: Sequence[int] | None = None) -> Tensor:
    return x.squeeze() if _axes(node, axes) is None else x.squeeze(_axes(node, axes))


def _unsqueeze(node: Node, x: Tensor, axes: Sequence[int] | None = None) -> Tensor:
    found = _axes(node, axes) or []
    rank = x.dim() + len(found)
    for axis in sorted(axis % rank for axis in found):
        x = x.unsqueeze(axis)
    return x


def _expand(_node: Node, x: Tensor, shape: Sequence[int]) -> Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, tuple(shape)))


def _transpose(node: Node, x: Tensor) -> Tensor:
    return x.permute(node.get("perm", list(range(x.dim()))[::-1]))


def _split(node: Node, x: Tensor, sizes: Sequence[int] | None = None) -> Sequence[Tensor]:
    axis = node.get("axis", 0)
    sizes = sizes or node.get("split")
    return x.split(list(sizes) if sizes else -(-x.shape[axis] // len(node.outputs)), axis)


def _slice(
    node: Node,
    x: Tensor,
    starts: Sequence[int] | None = None,
    ends: Sequence[int] | None = None,
    axes: Sequence[int] | None = None,
    steps: Sequence[int] | None = None,
) -> Tensor:
    starts, ends = starts or node.get("starts"), ends or node.get("ends")
    axes = axes or node.get("axes") or list(range(len(starts)))
    for axis, *bounds in zip(axes, starts, ends, steps or [1] * len(starts), strict=True):
        start, stop, step = slice(*bounds).indices(x.shape[axis])
        if step > 0:
            x = x[(slice(None),) * (axis % x.dim()) + (slice(start, max(start, stop), step),)]
        else:
            x = x.index_select(axis, torch.arange(start, min(start, stop), step, device=x.device))
    return x


def _gather(node: Node, x: Tensor, indices: Tensor) -> Tensor:
    axis = node.get("axis", 0) % x.dim()
    size = x.shape[axis]
    flat = indices.reshape(-1).long()
    capturing = flat.is_cuda and torch.cuda.is_current_stream_capturing()  # then nothing can be asked of the device
    if not capturing and flat.numel() and not -size <= int(flat.min()) <= int(flat.max()) < size:
        raise IndexError(f"Gather {node.name!r} reads outside of {size} elements")  # on a GPU it would end the process
    picked = x.index_select(axis, torch.where(flat < 0, flat + size, flat))
    return picked.reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])


def _scatter_nd(_node: Node, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    return x.index_put(tuple(indices.long().unbind(-1)), updates)


def _concat(node: Node, *inputs: Tensor) -> Tensor:
    return torch.cat(inputs, node.get("axis", 0))


def _constant_of_shape(node: Node, shape: Sequence[int]) -> Tensor:
    return node.get("value", torch.zeros(1)).reshape(()).expand(tuple(shape))


def _pad(
    node: Node, x: Tensor, pads: Sequence[int], value: float | None = None, axes: Sequence[int] | None = None
) -> Tensor:
    axes = [axis % x.dim() for axis in axes or range(x.dim())]
    amounts = {axis: (pads[index], pads[index + len(axes)]) for index, axis in enumerate(axes)}
    mode = node.get("mode", "constant")
    padded = [axis for axis in range(x.dim()) if any(amounts.get(axis, (0, 0)))]
    if mode == "constant":
        flat = [amount for axis in range(x.dim())[::-1] for amount in amounts.get(axis, (0, 0))]
        return F.pad(x, flat, value=value or 0.0)
    if mode not in ("reflect", "edge"):
        raise NotCoveredError(f"operator Pad, mode {mode}")
    for axis in padded:
        before, after = amounts[axis]
        last = x.shape[axis] - 1
        places = torch.arange(-before, last + 1 + after, device=x.device)
        places = last - (last - places.abs()).abs() if mode == "reflect" else places.clamp(0, last)
        x = x.index_select(axis, places)
    return x


def _softmax(node: Node, x: Tensor) -> Tensor:
    return torch.softmax(x, node.get("axis", -1))


def _hard_sigmoid(node: Node, x: Tensor) -> Tensor:
    return (x * node.get("alpha", 0.2) + node.get("beta", 0.5)).clamp(0, 1)


def _prelu(_node: Node, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


def _gemm(node: Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    a, b = a.T if node.get("transA", 0) else a, b.T if node.get("transB", 0) else b
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    return torch.matmul(a, b) * alpha if c is None else torch.addmm(c, a, b, beta=beta, alpha=alpha)


OPERATORS: dict[str, Callable[..., Tensor | Sequence[Tensor]]] = {
    "Abs": _unary(torch.abs),
    "Add": _binary(torch.add),
    "And": _binary(torch.logical_and),
    "ArgMax": _arg_max,
    "Attention": attention,
    "AveragePool": average_pool,
    "BatchNormalization": batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Cos": _unary(torch.cos),
    "CumSum": lambda _node, x, axis: x.cumsum(axis if isinstance(axis, int) else axis[0]),
    "Div": _div,
    "Equal": _binary(torch.eq),
    "Erf": _unary(torch.erf),
    "Exp": _unary(torch.exp),
    "Expand": _expand,
    "Flatten": _flatten,
    "Floor": _unary(torch.floor),
    "GRU": recurrent(gru_step, 1),
    "Gather": _gather,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda _node, x: x.mean(list(range(2, x.dim())), keepdim=True),
    "GlobalMaxPool": lambda _node, x: x.amax(list(range(2, x.dim())), keepdim=True),
    "Greater": _binary(torch.gt),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _unary(F.hardswish),
    "Identity": _unary(lambda x: x),
    "InstanceNormalization": instance_norm,
    "LSTM": recurrent(lstm_step, 2),
    "LayerNormalization": layer_norm,
    "LeakyRelu": lambda node, x: F.leaky_relu(x, node.get("alpha", 0.01)),
    "Less": _binary(torch.lt),
    "Log": _unary(torch.log),
    "MatMul": _binary(torch.matmul),
    "Max": _folded(torch.maximum),
    "MaxPool": max_pool,
    "Min": _folded(torch.minimum),
    "Mul": _binary(torch.mul),
    "Neg": _unary(torch.neg),
    "Not": _unary(torch.logical_not),
    "PRelu": _prelu,
    "Pad": _pad,
    "Pow": _pow,
    "Reciprocal": _unary(torch.reciprocal),
    "ReduceL2": _reduce(lambda x, axes, keep: torch.linalg.vector_norm(x, dim=axes, keepdim=keep)),
    "ReduceMax": _reduce(torch.amax),
    "ReduceMean": _reduce(torch.mean),
    "ReduceProd": _reduce(_product),
    "ReduceSum": _reduce(torch.sum),
    "ReduceSumSquare": _reduce(lambda x, axes, keep: (x * x).sum(axes, keepdim=keep)),
    "Relu": _unary(torch.relu),
    "Reshape": _reshape,
    "Resize": resize,
    "ScatterND": _scatter_nd,
    "Shape": lambda _node, x: torch.tensor(x.shape),
    "Sigmoid": _unary(torch.sigmoid),
    "Sin": _unary(torch.sin),
    "Size": lambda _node, x: torch.tensor(x.numel()),
    "Slice": _slice,
    "Softmax": _softmax,
    "Split": _split,
    "Sqrt": _unary(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _binary(torch.sub),
    "Sum": _folded(torch.add),
    "Tanh": _unary(torch.tanh),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": lambda _node, condition, a, b: torch.where(condition, a, b),
}
