"""What a kernel computes for one layer in half precision, step by step.

One ONNX operator is not always one step of a kernel. Where the kernel rounds in between, so does the emulator: LOWERED
says how. An operator that is not in it is one step: it reads rounded values, computes in FP32 and is rounded once.

The rows were read from the text of the kernels in engines that TensorRT-RTX 1.7.1 builds; a test reads it again in the
version that is installed. Every step's result is rounded to the layer's type, sums are FP32 until they are stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir

from trt_helper.emulator import lowered_loops as loops
from trt_helper.emulator.accumulated import ACCUMULATED
from trt_helper.onnx_model.rewrites import SOFTMAX_OF_ONE_AXIS
from trt_helper.onnx_model.sigmoids import EXACT
from trt_helper.values import Reading, ReducedPrecision

OPSET = 18  # of the steps, whatever the opset of the model
GROUP_NORM_OF_CHANNELS = 21  # opset; before it scale and bias are for groups
STORED_AS = {ReducedPrecision.FP16: onnx.TensorProto.FLOAT16, ReducedPrecision.BF16: onnx.TensorProto.BFLOAT16}


@dataclass(eq=False)
class Steps:
    """Writes the steps of a kernel as ONNX nodes. Tensors are FP32, those of `half` with rounded values.

    Args:
        node: the layer.
        opset: of the model.
        reduced: what steps are rounded to; None for a layer that stays in FP32.
    """

    node: ir.Node
    opset: int
    reduced: ReducedPrecision | None
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    rounded: list[str] = field(default_factory=list)  # operators of the rounded steps
    output: str = ""  # the name of the layer's output, when all steps are written
    _count: int = 0

    def input(self, index: int) -> str:
        """The name of an input of the layer."""
        return f"i{index}"

    def has_input(self, index: int) -> bool:
        """Whether an input is given."""
        return index < len(self.node.inputs) and self.node.inputs[index] is not None

    def full(self, operator: str, *inputs: str | float, **attributes: object) -> str:
        """A step whose result stays FP32, or is exact; numbers are scalar constants, which are rounded."""
        names = [name if isinstance(name, str) else self._scalar(name) for name in inputs]
        name = self._name()
        self.nodes.append(onnx.helper.make_node(operator, names, [name], **attributes))  # type: ignore[arg-type]
        return name

    def half(self, operator: str, *inputs: str | float, **attributes: object) -> str:
        """A step whose result is rounded."""
        self.rounded.append(operator)
        return self.round(self.full(operator, *inputs, **attributes), self.reduced)

    def round(self, name: str, reduced: ReducedPrecision | None) -> str:
        """A tensor rounded to a type; as it is for None."""
        if reduced is None:
            return name
        return self.full("Cast", self.full("Cast", name, to=STORED_AS[reduced]), to=onnx.TensorProto.FLOAT)

    def constant(self, value: object) -> str:
        """A constant of the type of `value`."""
        name = self._name()
        tensor = onnx.numpy_helper.from_array(np.asarray(value), name)
        self.nodes.append(onnx.helper.make_node("Constant", [], [name], value=tensor))
        return name

    def _scalar(self, value: float) -> str:
        return self.round(self.constant(np.float32(value)), self.reduced)

    def number(self, attribute: str, default: float) -> float:
        """A float attribute of the layer."""
        return float(self.node.attributes.get_float(attribute, default))

    def whole(self, attribute: str, default: int) -> int:
        """An integer attribute of the layer."""
        return int(self.node.attributes.get_int(attribute, default))

    def axes(self) -> str:
        """The axes of a reduction, an attribute or an input by the model's opset, as a tensor; empty for all axes."""
        if self.has_input(1):
            return self.input(1)
        axes = self.node.attributes.get_ints("axes", ())
        return self.constant(np.array(axes, np.int64)) if axes else ""

    def _name(self) -> str:
        self._count += 1
        return f"s{self._count}"


Write = Callable[[Steps], str]
"""A row as ONNX nodes; returns the layer's output, where the caller rounds the last step."""


# ---------------------------------------------------------------------------------------------------------- softmaxes


def _softmax(steps: Steps) -> str:
    """exp(x - max) / sum; the sum is stored in half: 0 beyond 65504 equal scores."""
    if steps.opset >= SOFTMAX_OF_ONE_AXIS:
        return steps.full("Div", *_softmax_parts(steps, steps.input(0), steps.whole("axis", -1)))
    flat = steps.full("Flatten", steps.input(0), axis=steps.whole("axis", 1))
    quotient = steps.full("Div", *_softmax_parts(steps, flat, 1))
    return steps.full("Reshape", quotient, steps.full("Shape", steps.input(0)))


def _softmax_parts(steps: Steps, x: str, axis: int) -> tuple[str, str]:
    axes = steps.constant(np.array([axis], np.int64))
    largest = steps.full("ReduceMax", x, axes, keepdims=1)
    powers = steps.half("Exp", steps.half("Sub", x, largest))
    return powers, steps.round(steps.full("ReduceSum", powers, axes, keepdims=1), steps.reduced)


def _log_softmax(steps: Steps) -> str:
    """The logarithm of the softmax, also in FP32: -inf where x - max is below -17 in half, -104 in FP32."""
    quotient = _softmax(steps)
    steps.rounded.append("Div")
    return steps.full("Log", steps.round(quotient, steps.reduced))


# --------------------------------------------------------------------------------------------------------- reductions


def _reduction(steps: Steps, x: str, operator: str = "ReduceSum", **attributes: int) -> str:
    attributes = {"keepdims": steps.whole("keepdims", 1), **attributes}
    axes = steps.axes()
    attributes["noop_with_empty_axes"] = steps.whole("noop_with_empty_axes", 0)
    return steps.full(operator, x, axes, **attributes) if axes else steps.full(operator, x, **attributes)


def _reduce_sum_square(steps: Steps) -> str:
    x = steps.input(0)
    return _reduction(steps, steps.half("Mul", x, x))


def _reduce_log_sum_exp(steps: Steps) -> str:
    """log(sum(exp(x - max))) + max, where an infinite largest value counts as 0."""
    x = steps.input(0)
    shift = _reduction(steps, x, "ReduceMax", keepdims=1)
    shift = steps.full("Where", steps.full("IsInf", shift), 0.0, shift)
    total = steps.round(_reduction(steps, steps.half("Exp", steps.half("Sub", x, shift)), keepdims=1), steps.reduced)
    result = steps.full("Add", steps.half("Log", total), shift)
    if steps.whole("keepdims", 1):
        return result
    return steps.full("Squeeze", result, axes) if (axes := steps.axes()) else steps.full("Squeeze", result)


# --------------------------------------------------------------------------------------------------- pointwise layers


def _logistic(steps: Steps, x: str) -> str:
    """0.5 tanh(x / 2) + 0.5 with a tanh of 11 bits (tanh.approx.f32): an absolute error, whatever the value."""
    approximate = steps.round(steps.full("Tanh", steps.full("Mul", x, 0.5)), steps.reduced and ReducedPrecision.FP16)
    return steps.full("Add", steps.full("Mul", approximate, 0.5), 0.5)


def _sigmoid(steps: Steps) -> str:
    return _logistic(steps, steps.input(0)) if steps.reduced else steps.full("Sigmoid", steps.input(0))


def _swish(steps: Steps) -> str:
    x, alpha = steps.input(0), steps.number("alpha", 1.0)
    return steps.full("Mul", x, _logistic(steps, x if alpha == 1 else steps.full("Mul", x, alpha)))


def _gelu(steps: Steps) -> str:
    x = steps.input(0)
    if steps.node.attributes.get_string("approximate", "none") == "tanh":
        cube = steps.half("Mul", steps.half("Mul", steps.half("Mul", x, x), x), 0.044715)
        inner = steps.half("Mul", steps.half("Add", cube, x), float(np.sqrt(2 / np.pi)))
        return steps.full("Mul", steps.half("Mul", x, steps.half("Add", steps.half("Tanh", inner), 1.0)), 0.5)
    one_more = steps.half("Add", steps.half("Erf", steps.half("Div", x, float(np.sqrt(2)))), 1.0)
    return steps.full("Mul", steps.half("Mul", x, one_more), 0.5)


def _where_positive(steps: Steps, x: str, otherwise: str) -> str:
    return steps.full("Where", steps.full("Greater", x, 0.0), x, otherwise)


def _elu(steps: Steps) -> str:
    x = steps.input(0)
    below = steps.half("Mul", steps.half("Sub", steps.half("Exp", x), 1.0), steps.number("alpha", 1.0))
    return _where_positive(steps, x, below)


def _selu(steps: Steps) -> str:
    x, alpha = steps.input(0), steps.number("alpha", 1.67326319217681884765625)
    below = steps.half("Add", steps.half("Mul", steps.half("Exp", x), alpha), -alpha)
    return steps.full("Mul", _where_positive(steps, x, below), steps.number("gamma", 1.05070102214813232421875))


def _clipped(steps: Steps, x: str, slope: float, offset: float) -> str:
    line = steps.half("Add", steps.half("Mul", x, slope), offset)
    return steps.full("Max", steps.full("Min", line, 1.0), 0.0)


def _hard_sigmoid(steps: Steps) -> str:
    return _clipped(steps, steps.input(0), steps.number("alpha", 0.2), steps.number("beta", 0.5))


def _hard_swish(steps: Steps) -> str:
    return steps.full("Mul", steps.input(0), _clipped(steps, steps.input(0), 1 / 6, 0.5))


def _softplus_of(steps: Steps, x: str) -> str:
    """log1p(exp(x)), or x where the power is infinite."""
    powers = steps.half("Exp", x)
    steps.rounded.append("Log1p")
    log1p = steps.full("Softplus", steps.full("Log", powers))
    return steps.full("Where", steps.full("IsInf", powers), x, log1p)


def _softplus(steps: Steps) -> str:
    return _softplus_of(steps, steps.input(0))


def _mish(steps: Steps) -> str:
    softplus = steps.round(_softplus_of(steps, steps.input(0)), steps.reduced)
    return steps.full("Mul", steps.input(0), steps.half("Tanh", softplus))


def _softsign(steps: Steps) -> str:
    return steps.full("Div", steps.input(0), steps.half("Add", steps.full("Abs", steps.input(0)), 1.0))


def _mod(steps: Steps) -> str:
    """X - y trunc(x / y), with a quotient in half."""
    x, y = steps.input(0), steps.input(1)
    quotient = steps.half("Div", x, y)
    down = steps.full("Less", quotient, 0.0)
    whole = steps.full("Where", down, steps.full("Ceil", quotient), steps.full("Floor", quotient))
    return steps.full("Sub", x, steps.half("Mul", y, whole))


def _power(steps: Steps) -> str:
    x = power = steps.input(0)
    for _ in range(int(_exponent(steps.node)) - 2):
        power = steps.half("Mul", power, x)
    return steps.full("Mul", power, x)


def _sum_of_many(steps: Steps) -> str:
    total = steps.input(0)
    for index in range(1, len(steps.node.inputs)):
        add = steps.full if index + 1 == len(steps.node.inputs) else steps.half
        total = add("Add", total, steps.input(index))
    return total


def _mean_of_many(steps: Steps) -> str:
    steps.rounded.append("Add")
    return steps.full("Mul", steps.round(_sum_of_many(steps), steps.reduced), 1 / len(steps.node.inputs))


# -------------------------------------------------------------------------------------------------------------- norms


def _scaled(steps: Steps, normalised: str, scale: str, bias: str = "") -> str:
    """The normalised values are rounded, then scaled, then shifted."""
    scaled = steps.round(normalised, steps.reduced)
    return steps.full("Add", steps.half("Mul", scaled, scale), bias) if bias else steps.full("Mul", scaled, scale)


def _layer_normalization(steps: Steps) -> str:
    x, axis, epsilon = steps.input(0), steps.whole("axis", -1), steps.number("epsilon", 1e-5)
    one = onnx.helper.make_tensor("value", onnx.TensorProto.FLOAT, [1], [1.0])
    ones = steps.full("ConstantOfShape", steps.full("Shape", steps.input(1)), value=one)
    normalised = steps.full("LayerNormalization", x, ones, axis=axis, epsilon=epsilon)
    return _scaled(steps, normalised, steps.input(1), steps.input(2) if steps.has_input(2) else "")


def _rms_normalization(steps: Steps) -> str:
    x, axis = steps.input(0), steps.whole("axis", -1)
    rank = _rank(steps.node.inputs[0])
    axes = steps.constant(np.arange(axis % rank, rank))
    square = steps.full("ReduceMean", steps.full("Mul", x, x), axes, keepdims=1)
    root = steps.full("Sqrt", steps.full("Add", square, steps.number("epsilon", 1e-5)))
    return _scaled(steps, steps.full("Div", x, root), steps.input(1))


def _group_normalization(steps: Steps) -> str:
    """From opset 21 on, with a scale and a bias for each channel."""
    x, groups = steps.input(0), steps.whole("num_groups", 1)
    flat = steps.full("Reshape", x, steps.constant(np.array([0, groups, -1], np.int64)))
    last = steps.constant(np.array([2], np.int64))
    mean = steps.full("ReduceMean", flat, last, keepdims=1)
    centred = steps.full("Sub", flat, mean)
    variance = steps.full("ReduceMean", steps.full("Mul", centred, centred), last, keepdims=1)
    root = steps.full("Sqrt", steps.full("Add", variance, steps.number("epsilon", 1e-5)))
    normalised = steps.full("Reshape", steps.full("Div", centred, root), steps.full("Shape", x))
    shape = steps.constant(np.array([-1] + [1] * (_rank(steps.node.inputs[0]) - 2), np.int64))
    scale, bias = (steps.full("Reshape", steps.input(index), shape) for index in (1, 2))
    return _scaled(steps, normalised, scale, bias)


def _batch_normalization(steps: Steps) -> str:
    """One factor and one summand for each channel, both rounded: what is far from 0 loses digits in between."""
    x, scale, bias, mean, variance = (steps.input(index) for index in range(5))
    deviation = steps.full("Sqrt", steps.full("Add", variance, steps.number("epsilon", 1e-5)))
    factor = steps.full("Div", scale, deviation)
    summand = steps.full("Sub", bias, steps.full("Mul", mean, factor))
    rank = _rank(steps.node.inputs[0])
    shape = steps.constant(np.array([-1] + [1] * (rank - 2), np.int64))
    factor, summand = (steps.full("Reshape", steps.round(one, steps.reduced), shape) for one in (factor, summand))
    return steps.full("Add", steps.half("Mul", x, factor), summand)


def _rank(value: ir.Value | None) -> int:
    return len(value.shape or ()) if value is not None else 0


# -------------------------------------------------------------------------------------------------------------- table


def _always(_node: ir.Node, _opset: int) -> bool:
    return True


@dataclass(frozen=True, eq=False, slots=True)
class Row:
    """How kernels compute one operator.

    Attributes:
        says: the steps in words.
        steps: writes them as ONNX nodes; None where `loop` computes them.
        loop: computes them in numpy.
        applies: whether this node is computed so, from its attributes, static shapes and the model's opset.
        in_fp32: also a layer that stays in FP32 is computed in these steps.
    """

    says: str
    steps: Write | None = None
    loop: loops.Compute | None = None
    applies: Callable[[ir.Node, int], bool] = _always
    in_fp32: bool = False


def _has_rank(node: ir.Node, _opset: int) -> bool:
    value = node.inputs[0]
    return value is not None and value.shape is not None and len(value.shape) > 1


def _is_product(node: ir.Node, _opset: int) -> bool:
    a, b = (list(value.shape) if value is not None and value.shape is not None else [] for value in node.inputs[:2])
    if node.op_type == "Gemm":
        a = a[::-1] if node.attributes.get_int("transA", 0) else a
        b = b[::-1] if node.attributes.get_int("transB", 0) else b
    return loops.runs_without_tensor_cores(a, b)


def _exponent(node: ir.Node) -> float:
    """The exponent of a Pow, if it is one constant; else 0."""
    value = node.inputs[1]
    constant = value.const_value if value is not None else None
    return float(constant.numpy().reshape(-1)[0]) if constant is not None and constant.size == 1 else 0.0


PRODUCT = "one row or one column, static, or at most 4 terms: each term in half, the sum FP32; short sums in half"
RECURRENT = "both products, every sum, gate and state in half; sigmoid by a tanh of 11 bits"

LOWERED: Mapping[str, Row] = {
    "BatchNormalization": Row(
        "x * factor + summand, both and the product in half", _batch_normalization, applies=_has_rank
    ),
    "Conv": Row(
        "kernel of 1 and at most 4 channels: each term and each sum in half",
        loop=loops.convolution,
        applies=lambda node, _opset: loops.is_short_convolution(node),
    ),
    "CumSum": Row("the running sum is kept in half", loop=loops.cum_sum),
    "Elu": Row("alpha * (exp(x) - 1), each step in half", _elu),
    "GRU": Row(RECURRENT, loop=loops.gru, applies=lambda node, _opset: loops.is_plain_recurrence(node)),
    "Gelu": Row("erf in FP32, the other steps in half; with tanh all steps in half", _gelu),
    "Gemm": Row(f"{PRODUCT}; stored before the third input is added", loop=loops.gemm, applies=_is_product),
    "GroupNormalization": Row(
        "statistics FP32; rounded, scaled and shifted in half",
        _group_normalization,
        applies=lambda node, opset: opset >= GROUP_NORM_OF_CHANNELS and _has_rank(node, opset),
    ),
    "HardSigmoid": Row("alpha * x + beta in half, then min and max", _hard_sigmoid),
    "HardSwish": Row("x / 6 + 0.5 in half, then min and max, times x", _hard_swish),
    "LSTM": Row(RECURRENT, loop=loops.lstm, applies=lambda node, _opset: loops.is_plain_recurrence(node)),
    "LayerNormalization": Row("statistics FP32; rounded, scaled and shifted in half", _layer_normalization),
    "LogSoftmax": Row("log(softmax), each step in half; in FP32 the same steps", _log_softmax, in_fp32=True),
    "MatMul": Row(PRODUCT, loop=loops.matmul, applies=_is_product),
    "Mean": Row("one sum after the other in half, then times 1 / n", _mean_of_many),
    "Mish": Row("exp, log1p and tanh in half; guarded against overflow", _mish),
    "Mod": Row("x - y * trunc(x / y), each step in half", _mod),
    "Pow": Row(
        "exponent 3 or 4: products in half, one after the other; any other is one step",
        _power,
        applies=lambda node, _opset: _exponent(node) in (3.0, 4.0),
    ),
    "RMSNormalization": Row("statistics FP32; rounded, then scaled in half", _rms_normalization, applies=_has_rank),
    "RNN": Row(RECURRENT, loop=loops.rnn, applies=lambda node, _opset: loops.is_plain_recurrence(node)),
    "ReduceLogSumExp": Row("x - max, exp and log in half, the sum FP32 and stored in half", _reduce_log_sum_exp),
    "ReduceSumSquare": Row("squares in half, the sum FP32", _reduce_sum_square),
    "RotaryEmbedding": Row("each product and each sum in half", loop=loops.rotary_embedding),
    "Selu": Row("alpha * exp(x) - alpha, each step in half, then times gamma", _selu),
    "Sigmoid": Row("0.5 tanh(x / 2) + 0.5 in FP32, with a tanh of 11 bits", _sigmoid),
    "Softmax": Row("x - max and exp in half, the sum FP32 and stored in half", _softmax),
    "Softplus": Row("log1p(exp(x)), each in half; guarded against overflow", _softplus),
    "Softsign": Row("1 + abs(x) in half", _softsign),
    "Sum": Row("one sum after the other in half", _sum_of_many),
    "Swish": Row("x * sigmoid(x) in FP32, with a tanh of 11 bits", _swish),
}


READ = "read from the text of its kernels: one step, sums and statistics in FP32"
_EXACT = "nothing is rounded inside: it compares, selects or changes a sign"
_TENSOR_CORES = "on tensor cores, whose accumulation no text shows: assumed in FP32; `worst` assumes half"
_NOT_BUILT = "TensorRT-RTX 1.7.1 does not build it: assumed"
_ONE_STEP = {
    READ: (
        "Acos Acosh Add Asin Asinh Atan Atanh AveragePool Cos Cosh Div Erf Exp GlobalAveragePool GridSample "
        "InstanceNormalization LRN LeakyRelu Log LpNormalization Mul PRelu Reciprocal ReduceL1 ReduceL2 ReduceLogSum "
        "ReduceMean ReduceProd ReduceSum Resize Round Shrink Sin Sinh Sqrt Sub Tan Tanh Upsample GlobalLpPool LpPool"
    ),
    _EXACT: (
        "Abs Ceil Clip Equal Floor GlobalMaxPool Greater GreaterOrEqual Hardmax IsInf IsNaN Less LessOrEqual Max "
        "MaxPool Min Neg ReduceMax ReduceMin Relu Scatter ScatterElements ScatterND Sign ThresholdedRelu Trilu Where"
    ),
    _TENSOR_CORES: "Attention Conv ConvTranspose Einsum Gemm MatMul",
    _NOT_BUILT: (
        "AffineGrid CausalConvWithState Celu CenterCropPad Col2Im DFT DeformConv Det LinearAttention MaxRoiPool "
        "MaxUnpool MeanVarianceNormalization NegativeLogLikelihoodLoss RoiAlign STFT SoftmaxCrossEntropyLoss SwiGLU "
        "TensorScatter Unique"
    ),
}
ONE_STEP: Mapping[str, str] = {name: says for says, names in _ONE_STEP.items() for name in names.split()}
"""Operator -> why it is one step; where it is in `LOWERED`, too, where that row does not apply."""


def _accumulated(node: ir.Node, opset: int) -> loops.Compute | None:
    """What computes a layer whose sums are accumulated in half."""
    if node.op_type == "Softmax" and opset < SOFTMAX_OF_ONE_AXIS:
        return None
    return ACCUMULATED.get(node.op_type)


def exact_sigmoid(node: ir.Node) -> Steps:
    """A Sigmoid as the reference has it (`onnx_model.sigmoids`), in FP32."""
    steps = Steps(node, OPSET, None)
    steps.output = steps.input(0)
    for operator in EXACT:
        steps.output = steps.full(operator, steps.output)
    return steps


def lowered(
    node: ir.Node, opset: int, reduced: ReducedPrecision | None, reading: Reading = Reading.TYPICAL
) -> Steps | loops.Compute | None:
    """How a kernel computes a layer.

    Args:
        node: the layer; a node with types and, where they are static, shapes.
        opset: of the model.
        reduced: the layer's precision; None for FP32.
        reading: what kernels are taken to compute.

    Returns:
        The steps, with the output as the last node's; what computes them; or None for one step.
    """
    if node.domain not in ("", "ai.onnx") or reading in (Reading.ONE_STEP, Reading.EXACT):
        return None
    if reading is Reading.WORST and reduced and (found := _accumulated(node, opset)):
        return found
    row = LOWERED.get(node.op_type)
    if row is None or (reduced is None and not row.in_fp32) or not row.applies(node, opset):
        return None
    if row.loop is not None:
        return row.loop
    if row.steps is None or any(value.name for value in node.outputs[1:]):
        return None
    steps = Steps(node, opset, reduced)
    steps.output = row.steps(steps)
    return steps
