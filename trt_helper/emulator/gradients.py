"""Gradients of output elements with respect to every tensor of the FP32 model: one step back through each layer.

Reverse accumulation (Griewank and Walther, "Evaluating Derivatives", 2008, chapter 3) with the kernels that the
emulator has anyway. A layer without a rule here, such as an LSTM or a comparison, is opaque: what lies before it is
reported as not known, and never as zero.

All gradients have shape (k, *shape of the tensor), FP32, one for each of k output elements.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from trt_helper.emulator.kernels import EmulationError, Kernel, SelectKernel, Settings, operator_kernel
from trt_helper.onnx_model.branches import SELECT
from trt_helper.onnx_model.graph import captured
from trt_helper.onnx_model.rewrites import SOFTMAX_OF_ONE_AXIS
from trt_helper.onnx_model.roles import MOVEMENT, SHAPE_INPUTS, SHAPE_READING
from trt_helper.values import Array, TensorName, Tensors

ELEMENTWISE = frozenset(  # continuous, with inputs that are broadcast against each other
    (
        *("Abs", "Acos", "Acosh", "Add", "Asin", "Asinh", "Atan", "Atanh", "Celu", "Clip", "Cos", "Cosh", "Div", "Elu"),
        *("Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Max", "Mean", "Min", "Mish", "Mul"),
        *("Neg", "PRelu", "Pow", "Reciprocal", "Relu", "Selu", "Sigmoid", "Sin", "Sinh", "Softplus", "Softsign"),
        *("Sqrt", "Sub", "Sum", "Swish", "Tan", "Tanh", "Where"),
    )
)
MATRIX = 2  # axes of a matrix
EXACT = 1 << 24  # FP32 holds every integer up to here
STEP = 2.0**-10  # of a difference quotient, relative to the element or to the mean of all


@dataclass(frozen=True, eq=False, slots=True)
class EvaluatedLayer:
    """A layer of the FP32 model on one sample.

    Attributes:
        node: the layer.
        kernel: computes it.
        inputs: an array for each input of the node; None for an absent one.
        outputs: an array for each output of the node; None for one without a name.
        moving: indices of the inputs that are no weights.
        opset: of the model.
    """

    node: ir.Node
    kernel: Kernel | SelectKernel
    inputs: Sequence[Array | None]
    outputs: Sequence[Array | None]
    moving: Sequence[int]
    opset: int

    def input(self, index: int) -> Array:
        """An input that the operator requires, or that is known to be there."""
        array = self.inputs[index]
        if array is None:
            raise _NoRuleError
        return array

    def output(self) -> Array:
        """The first output."""
        array = self.outputs[0]
        if array is None:
            raise _NoRuleError
        return array

    def run(self, inputs: Sequence[Array | None]) -> list[Array]:
        """The named outputs for other inputs."""
        return self.kernel.run([array for array in inputs if array is not None])

    def ints(self, name: str, default: Sequence[int]) -> list[int]:
        found = self.node.attributes.get_ints(name, ())
        return list(found) if found else list(default)


@dataclass(frozen=True, eq=False, slots=True)
class BackwardStep:
    """What is known of a layer's outputs when the sweep comes to it.

    Attributes:
        layer: the layer.
        gradients: by output; an output that is missing has no influence, or one that is not known.
        known: whether `gradients` is the whole influence: no opaque layer lies behind.
    """

    layer: EvaluatedLayer
    gradients: Mapping[TensorName, Array]
    known: bool


def sweep_back(layers: Iterable[EvaluatedLayer], seeds: Tensors) -> Generator[BackwardStep, None, Tensors]:
    """Go back through the layers that have an influence on the seeds.

    Args:
        layers: all layers, the last one first.
        seeds: the gradients of the graph's outputs.

    Yields:
        One step per layer with an influence. Gradients of a tensor are dropped when its producer was visited.

    Returns:
        The gradients of the tensors that no layer writes: the inputs of the graph.
    """
    gradients = {**seeds}
    opaque: set[TensorName] = set()
    for layer in layers:
        names = [value.name or "" for value in layer.node.outputs]
        found = {name: gradients.pop(name) for name in names if name in gradients}
        known = opaque.isdisjoint(names)
        if not found and known:
            continue
        yield BackwardStep(layer, found, known)
        if layer.node.op_type in SHAPE_READING:
            continue
        back, missing = step_back(layer, [found.get(name) for name in names])
        for index, gradient in back.items():
            name = _name(layer, index)
            gradients[name] = gradients[name] + gradient if name in gradients else gradient
        inputs = layer.moving if not known else missing
        opaque.update(_name(layer, index) for index in inputs)
        opaque.update(value.name or "" for value in captured(layer.node))
    return gradients


def _name(layer: EvaluatedLayer, index: int) -> TensorName:
    value = layer.node.inputs[index]
    return (value.name or "") if value is not None else ""


def step_back(layer: EvaluatedLayer, gradients: Sequence[Array | None]) -> tuple[dict[int, Array], list[int]]:
    """The gradients of a layer's inputs.

    Args:
        layer: the layer.
        gradients: of its outputs; None for an output without influence.

    Returns:
        By input index, for the inputs that are no weights. Then the indices of inputs whose influence is not known.
    """
    back: dict[int, Array] = {}
    missing: list[int] = []
    rule = RULES.get(layer.node.op_type, _opaque)
    for index in layer.moving:
        if index in SHAPE_INPUTS.get(layer.node.op_type, ()):
            continue  # hardly ever computed from the values of floats
        if layer.input(index).dtype != np.float32:
            missing.append(index)
            continue
        if all(gradient is None for gradient in gradients):
            continue
        try:
            with np.errstate(all="ignore"):
                found = rule(layer, index, gradients)
        except (_NoRuleError, EmulationError):
            missing.append(index)
        else:
            back[index] = found if np.isfinite(found.sum()) else np.nan_to_num(found, posinf=0.0, neginf=0.0)
    return back, missing


class _NoRuleError(Exception):
    """No rule for this layer, this input or these attributes."""


Rule: TypeAlias = "Callable[[EvaluatedLayer, int, Sequence[Array | None]], Array]"
RULES: dict[str, Rule] = {}


def _rule(*ops: str) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(ops, rule))
        return rule

    return register


def _opaque(_layer: EvaluatedLayer, _index: int, _gradients: Sequence[Array | None]) -> Array:
    raise _NoRuleError


def _only(gradients: Sequence[Array | None]) -> Array:
    """The gradient of the first output, when no other one has an influence."""
    first, *others = gradients
    if first is None or any(gradient is not None for gradient in others):
        raise _NoRuleError
    return first


def _unbroadcast(gradient: Array, shape: tuple[int, ...]) -> Array:
    """Sum over the axes along which a tensor of `shape` was broadcast."""
    extra = gradient.ndim - 1 - len(shape)
    if extra:
        gradient = gradient.sum(axis=tuple(range(1, 1 + extra)))
    axes = tuple(axis for axis, size in enumerate(shape, start=1) if size == 1 and gradient.shape[axis] != 1)
    return gradient.sum(axis=axes, keepdims=True) if axes else gradient


@_rule(SELECT)
def _select(layer: EvaluatedLayer, index: int, gradients: Sequence[Array | None]) -> Array:
    """To the branch that is taken; the results of the other one are empty."""
    count = len(layer.node.outputs)
    gradient, array = gradients[(index - 1) % count], layer.input(index)
    taken = bool(layer.input(0).reshape(-1)[0]) is (index <= count)
    if gradient is None or not taken:
        return np.zeros((next(g for g in gradients if g is not None).shape[0], *array.shape), np.float32)
    return gradient


# ------------------------------------------------------------------------------------------------------ elementwise


@_rule(*ELEMENTWISE)
def _elementwise(layer: EvaluatedLayer, index: int, gradients: Sequence[Array | None]) -> Array:
    gradient = _only(gradients)
    return _unbroadcast(gradient * _slope(layer, index), layer.input(index).shape)


def _slope(layer: EvaluatedLayer, index: int) -> Array | float:
    """The derivative with respect to one input, by a difference quotient where it is not obvious."""
    op = layer.node.op_type
    if op in ("Add", "Sum"):
        return 1.0
    if op == "Sub":
        return -1.0 if index else 1.0
    if op == "Mul":
        return layer.input(1 - index)
    if op == "Div" and index == 0:
        return np.reciprocal(layer.input(1))
    if op == "Where":
        condition = layer.input(0)
        return (condition if index == 1 else ~condition).astype(np.float32)
    array = layer.input(index)
    size = np.abs(array)
    step = STEP * np.maximum(size, size.mean() if size.size else 0.0) + np.finfo(np.float32).tiny
    moved = np.asarray(array + step, np.float32)
    inputs = [moved if other == index else one for other, one in enumerate(layer.inputs)]
    slope: Array = (layer.run(inputs)[0] - layer.output()) / (moved - array)
    return np.nan_to_num(slope, posinf=0.0, neginf=0.0)


@_rule("Cast", "Identity", "Dropout")
def _same(layer: EvaluatedLayer, _index: int, gradients: Sequence[Array | None]) -> Array:
    if layer.output().dtype != np.float32:
        raise _NoRuleError
    return _only(gradients)


# --------------------------------------------------------------------------------------------------------- products


@_rule("MatMul")
def _matmul(layer: EvaluatedLayer, index: int, gradients: Sequence[Array | None]) -> Array:
    gradient, (a, b) = _only(gradients), (layer.input(0), layer.input(1))
    if a.ndim == 1:
        gradient = np.expand_dims(gradient, -1 if b.ndim == 1 else -2)
    if b.ndim == 1:
        gradient = np.expand_dims(gradient, -1)
    rows, columns = np.atleast_2d(a), b.reshape(-1, 1) if b.ndim == 1 else b
    shape = layer.input(index).shape
    if index == 0:
        found = _product(gradient, columns.swapaxes(-1, -2))
        return _unbroadcast(found, rows.shape).reshape(len(gradient), *shape)
    if columns.ndim == MATRIX and rows.ndim > MATRIX:
        flat = gradient.reshape(len(gradient), -1, gradient.shape[-1])
        return (rows.reshape(-1, rows.shape[-1]).T @ flat).reshape(len(gradient), *shape)
    return _unbroadcast(rows.swapaxes(-1, -2) @ gradient, columns.shape).reshape(len(gradient), *shape)


def _product(gradient: Array, matrix: Array) -> Array:
    """`gradient @ matrix`, in one product where the matrix is the same for all."""
    if matrix.ndim > MATRIX:
        found: Array = gradient @ matrix
        return found
    return (gradient.reshape(-1, gradient.shape[-1]) @ matrix).reshape(*gradient.shape[:-1], matrix.shape[-1])


@_rule("Gemm")
def _gemm(layer: EvaluatedLayer, index: int, gradients: Sequence[Array | None]) -> Array:
    attributes = layer.node.attributes
    gradient = _only(gradients)
    if index not in (0, 1):
        return _unbroadcast(gradient * np.float32(attributes.get_float("beta", 1.0)), layer.input(index).shape)
    trans_a, trans_b = attributes.get_int("transA", 0), attributes.get_int("transB", 0)
    a, b = layer.input(0), layer.input(1)
    found = (a if trans_a else a.T) @ gradient if index else _product(gradient, b if trans_b else b.T)
    if (trans_a, trans_b)[index]:
        found = found.swapaxes(-1, -2)
    return found * np.float32(attributes.get_float("alpha", 1.0))


@_rule("Einsum")
def _einsum(layer: EvaluatedLayer, index: int, gradients: Sequence[Array | None]) -> Array:
    equation = layer.node.attributes.get_string("equation", "").replace(" ", "")
    terms, arrow, result = equation.partition("->")
    subscripts = terms.split(",")
    own = subscripts[index]
    others = [term for other, term in enumerate(subscripts) if other != index]
    batch = next((letter for letter in "zyxwv" if letter not in equation), "")
    present = set(result).union(*others)
    if not arrow or "." in equation or len(set(own)) < len(own) or not present.issuperset(own) or not batch:
        raise _NoRuleError
    arrays = [layer.input(other) for other in range(len(subscripts)) if other != index]
    found: Array = np.einsum(
        f"{','.join([batch + result, *others])}->{batch}{own}", _only(gradients), *arrays, optimize=True
    )
    return found


# ----------------------------------------------------------------------------------------- convolutions and pooling


@_rule("Conv")
def _conv(layer: EvaluatedLayer, index: int, gradients: Sequence[Array | None]) -> Array:
    if index != 0:
        raise _NoRuleError
    array, weights = layer.input(0), layer.input(1)
    window = _Window.of(layer, weights.shape[2:])
    return _spread(_only(gradients), weights, layer.node.attributes.get_int("group", 1), window, array.shape)


@_rule("ConvTranspose")
def _conv_transpose(layer: EvaluatedLayer, index: int, gradients: Sequence[Array | None]) -> Array:
    attributes = layer.node.attributes
    weights = layer.input(1)
    rank = weights.ndim - 2
    if index != 0 or "output_shape" in attributes or attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        raise _NoRuleError
    gradient = _only(gradients)
    flat = gradient.reshape(-1, *gradient.shape[2:])
    settings = {
        "strides": layer.ints("strides", [1] * rank),
        "dilations": layer.ints("dilations", [1] * rank),
        "pads": layer.ints("pads", [0] * 2 * rank),
        "group": attributes.get_int("group", 1),
    }
    found = _run_operator("Conv", settings, flat, weights)
    shape = layer.input(0).shape
    found = found[(slice(None), slice(None), *(slice(size) for size in shape[2:]))]  # output_padding adds some
    return found.reshape(len(gradient), *shape)


@_rule("AveragePool")
def _average_pool(layer: EvaluatedLayer, _index: int, gradients: Sequence[Array | None]) -> Array:
    array, gradient = layer.input(0), _only(gradients)
    with_padding = layer.node.attributes.get_int("count_include_pad", 0) == 1
    if with_padding and layer.node.attributes.get_int("ceil_mode", 0) == 1:
        raise _NoRuleError  # how many elements the last window counts is the kernel's secret
    kernel = layer.ints("kernel_shape", ())
    window = _Window.of(layer, kernel)
    ones = np.ones((1, 1, *kernel), np.float32)
    counts = np.full((), math.prod(kernel))
    if not with_padding:
        axes = zip(
            array.shape[2:], gradient.shape[3:], kernel, window.strides, window.dilations, window.before, strict=True
        )
        counts = reduce(np.multiply.outer, (_counts(*axis) for axis in axes))
    flat = (gradient / counts).astype(np.float32).reshape(len(gradient), -1, 1, *gradient.shape[3:])
    found = _spread(flat, ones, 1, window, (flat.shape[1], 1, *array.shape[2:]))
    return found.reshape(len(gradient), *array.shape)


def _counts(size: int, out: int, kernel: int, stride: int, dilation: int, before: int) -> Array:
    """For each position of a window along one axis, the elements of the array that lie in it."""
    first = np.arange(out) * stride - before
    places = first[:, None] + np.arange(kernel) * dilation
    counts: Array = np.maximum(((places >= 0) & (places < size)).sum(axis=1), 1)
    return counts


@_rule("MaxPool")
def _max_pool(layer: EvaluatedLayer, _index: int, gradients: Sequence[Array | None]) -> Array:
    array = layer.input(0)
    if layer.node.attributes.get_int("storage_order", 0):
        raise _NoRuleError
    settings = {name: attribute.value for name, attribute in layer.node.attributes.items()}
    _, places = operator_kernel("MaxPool", _hashable(settings), 1, 2).run([array])
    return _gather_back(_only(gradients), places.reshape(-1), array.shape)


@dataclass(frozen=True, slots=True)
class _Window:
    """How a window moves over the spatial axes; `before` is the padding before the first element."""

    strides: list[int]
    dilations: list[int]
    before: list[int]

    @classmethod
    def of(cls, layer: EvaluatedLayer, kernel: Sequence[int]) -> _Window:
        rank = len(kernel)
        strides, dilations = layer.ints("strides", [1] * rank), layer.ints("dilations", [1] * rank)
        auto = layer.node.attributes.get_string("auto_pad", "NOTSET")
        before = layer.ints("pads", [0] * 2 * rank)[:rank] if auto in ("NOTSET", "") else [0] * rank
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            sizes = zip(layer.input(0).shape[2:], layer.output().shape[2:], strict=True)
            for axis, (size, out) in enumerate(sizes):
                total = max((out - 1) * strides[axis] + dilations[axis] * (kernel[axis] - 1) + 1 - size, 0)
                before[axis] = total // 2 if auto == "SAME_UPPER" else total - total // 2
        return cls(strides, dilations, before)


def _spread(gradient: Array, weights: Array, group: int, window: _Window, shape: tuple[int, ...]) -> Array:
    """The gradient before a convolution: each element goes back to what the window read."""
    flat = gradient.reshape(-1, *gradient.shape[2:])
    settings = {"strides": window.strides, "dilations": window.dilations, "group": group}
    full = _run_operator("ConvTranspose", settings, flat, weights)
    for axis, (size, before) in enumerate(zip(shape[2:], window.before, strict=True), start=2):
        full = full[(*[slice(None)] * axis, slice(before, before + size))]
        if full.shape[axis] < size:
            padding = [(0, size - full.shape[axis] if other == axis else 0) for other in range(full.ndim)]
            full = np.pad(full, padding)
    return full.reshape(len(gradient), *shape)


def _run_operator(op: str, settings: Mapping[str, object], *inputs: Array) -> Array:
    return operator_kernel(op, _hashable(settings), len(inputs), 1).run(inputs)[0]


def _hashable(settings: Mapping[str, object]) -> Settings:
    values = {name: tuple(value) if isinstance(value, (list, tuple)) else value for name, value in settings.items()}
    return tuple(sorted(values.items()))


# ------------------------------------------------------------------------------------------ reductions and norms


@_rule(*(f"Reduce{what}" for what in ("Sum", "Mean", "Max", "Min", "L1", "L2", "SumSquare", "LogSumExp")))
def _reduction(layer: EvaluatedLayer, index: int, gradients: Sequence[Array | None]) -> Array:
    if index != 0:
        raise _NoRuleError
    array, attributes = layer.input(0), layer.node.attributes
    axes = layer.ints("axes", ())
    if len(layer.inputs) > 1 and layer.inputs[1] is not None:
        axes = [int(axis) for axis in layer.input(1)]
    if not axes and attributes.get_int("noop_with_empty_axes", 0) == 1:
        return _only(gradients)
    axes = sorted(axis % array.ndim for axis in axes) or list(range(array.ndim))
    shape = [1 if axis in axes else size for axis, size in enumerate(array.shape)]
    gradient = _only(gradients)
    return _reduced(layer.node.op_type, array, layer.output().reshape(shape), gradient.reshape(len(gradient), *shape))


@_rule("GlobalAveragePool", "GlobalMaxPool")
def _global_pool(layer: EvaluatedLayer, _index: int, gradients: Sequence[Array | None]) -> Array:
    op = "ReduceMean" if layer.node.op_type == "GlobalAveragePool" else "ReduceMax"
    return _reduced(op, layer.input(0), layer.output(), _only(gradients))


def _reduced(op: str, array: Array, result: Array, gradient: Array) -> Array:
    """Back through a reduction; `result` and `gradient` have kept the reduced axes."""
    shape = (len(gradient), *array.shape)
    if op == "ReduceSum":
        return np.broadcast_to(gradient, shape)
    if op == "ReduceMean":
        return np.broadcast_to(gradient * np.float32(result.size / max(array.size, 1)), shape)
    if op in ("ReduceMax", "ReduceMin"):
        chosen = (array == result).astype(np.float32)
        axes = tuple(axis for axis, size in enumerate(result.shape) if size != array.shape[axis])
        slope = chosen / np.maximum(chosen.sum(axis=axes, keepdims=True), 1)
        found: Array = gradient * slope
        return found
    if op == "ReduceL1":
        return gradient * np.sign(array)
    if op == "ReduceL2":
        return gradient * np.nan_to_num(array / result)
    slope = 2 * array if op == "ReduceSumSquare" else np.exp(array - result)
    return np.asarray(gradient * slope)


@_rule("Softmax", "LogSoftmax")
def _softmax(layer: EvaluatedLayer, _index: int, gradients: Sequence[Array | None]) -> Array:
    result, gradient = layer.output(), _only(gradients)
    old = layer.opset < SOFTMAX_OF_ONE_AXIS
    axis = layer.node.attributes.get_int("axis", 1 if old else -1) % result.ndim
    axes = tuple(range(axis + 1, gradient.ndim)) if old else (axis + 1,)
    if layer.node.op_type == "LogSoftmax":
        return np.asarray(gradient - np.exp(result) * gradient.sum(axis=axes, keepdims=True))
    weighted = gradient * result
    return np.asarray(weighted - result * weighted.sum(axis=axes, keepdims=True))


@_rule("BatchNormalization")
def _batch_norm(layer: EvaluatedLayer, index: int, gradients: Sequence[Array | None]) -> Array:
    if index != 0 or layer.node.attributes.get_int("training_mode", 0) == 1:
        raise _NoRuleError
    epsilon = layer.node.attributes.get_float("epsilon", 1e-5)
    factor = layer.input(1) / np.sqrt(layer.input(4) + epsilon)
    return _only(gradients) * factor.reshape(-1, *[1] * (layer.input(0).ndim - 2))


@_rule("LayerNormalization", "RMSNormalization", "InstanceNormalization", "GroupNormalization")
def _norm(layer: EvaluatedLayer, index: int, gradients: Sequence[Array | None]) -> Array:
    if index != 0:
        raise _NoRuleError
    array, gradient, attributes, op = layer.input(0), _only(gradients), layer.node.attributes, layer.node.op_type
    scale, shape = layer.input(1), array.shape
    if op in ("LayerNormalization", "RMSNormalization"):
        axes = tuple(range(attributes.get_int("axis", -1) % array.ndim, array.ndim))
    elif op == "GroupNormalization":
        groups = attributes.get_int("num_groups", 1)
        per_channel = len(scale) == shape[1]
        scale = (scale if per_channel else np.repeat(scale, shape[1] // groups)).reshape(-1, *[1] * (array.ndim - 2))
        gradient = gradient * scale
        scale = np.ones((), np.float32)
        array = array.reshape(shape[0], groups, -1)
        gradient = gradient.reshape(len(gradient), *array.shape)
        axes = (2,)
    else:
        axes, scale = tuple(range(2, array.ndim)), scale.reshape(-1, *[1] * (array.ndim - 2))
    epsilon = attributes.get_float("epsilon", 1e-5)
    centred = array if op == "RMSNormalization" else array - array.mean(axis=axes, keepdims=True)
    inverse = 1 / np.sqrt((centred * centred).mean(axis=axes, keepdims=True) + np.float32(epsilon))
    normal = centred * inverse
    scaled = gradient * scale
    behind = tuple(axis + 1 for axis in axes)
    found = scaled - normal * (scaled * normal).mean(axis=behind, keepdims=True)
    if op != "RMSNormalization":
        found = found - scaled.mean(axis=behind, keepdims=True)
    return np.asarray(found * inverse).reshape(len(gradient), *shape)


# --------------------------------------------------------------------------------------------------------- movement


@_rule("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def _reshape(layer: EvaluatedLayer, index: int, gradients: Sequence[Array | None]) -> Array:
    gradient = _only(gradients)
    return gradient.reshape(len(gradient), *layer.input(index).shape)


@_rule("Transpose")
def _transpose(layer: EvaluatedLayer, _index: int, gradients: Sequence[Array | None]) -> Array:
    gradient = _only(gradients)
    order = layer.ints("perm", range(gradient.ndim - 1)[::-1])
    return gradient.transpose(0, *(int(axis) + 1 for axis in np.argsort(order)))


@_rule(*(MOVEMENT - RULES.keys() - {"ConstantOfShape"}), "Resize", "Upsample")
def _moved(layer: EvaluatedLayer, index: int, gradients: Sequence[Array | None]) -> Array:
    """Move the indices of the elements as the layer moves the elements, and read where each one went."""
    mode = layer.node.attributes.get_string("mode", "nearest")
    if layer.node.op_type in ("Resize", "Upsample") and mode != "nearest":
        raise _NoRuleError
    array = layer.input(index)
    if array.size >= EXACT or layer.node.attributes.get_string("reduction", "none") != "none":
        raise _NoRuleError
    fixed = SHAPE_INPUTS.get(layer.node.op_type, ())
    zeros = [
        np.zeros_like(one) if one is not None and one.dtype == np.float32 and other not in fixed else one
        for other, one in enumerate(layer.inputs)
    ]
    zeros[index] = np.arange(1, array.size + 1, dtype=np.float32).reshape(array.shape)
    moved = iter(layer.run(zeros))
    total: Array | None = None
    for result, gradient in zip(layer.outputs, gradients, strict=True):
        places = next(moved) if result is not None else None
        if gradient is None or places is None:
            continue
        part = _gather_back(gradient, places.reshape(-1).astype(np.int64) - 1, array.shape)
        total = part if total is None else total + part
    if total is None:
        raise _NoRuleError
    return total


def _gather_back(gradient: Array, places: Array, shape: tuple[int, ...]) -> Array:
    """Add each element of `gradient` (k, ...) at its place in an array of `shape`; places below 0 are left out."""
    size = math.prod(shape)
    flat = gradient.reshape(len(gradient), -1)
    kept = places >= 0
    if not kept.all():
        flat, places = flat[:, kept], places[kept]
    found = np.zeros((len(gradient), size), np.float32)
    if np.bincount(places, minlength=1).max(initial=0) <= 1:
        found[:, places] = flat
    else:
        for row, values in zip(found, flat, strict=True):
            row[:] = np.bincount(places, weights=values, minlength=size)
    return found.reshape(len(gradient), *shape)
