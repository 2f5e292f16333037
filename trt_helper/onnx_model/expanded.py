"""Operators outside the ONNX standard that are written as standard ones before anything is judged.

ONNX Runtime's optimiser and Olive leave operators of the domain com.microsoft in a file. TensorRT has none of them, and
no precision could be decided inside of one. Each is replaced by what its documentation says that it computes
(ContribOperators.md of ONNX Runtime); the reference still runs the file as it is, so a wrong expansion would be seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import count
from math import sqrt

import onnx
import onnx_ir as ir

from trt_helper.errors import ModelError

MICROSOFT = "com.microsoft"
# The opsets from which the standard has it.
GELU_OPSET, LAYER_NORM_OPSET, RMS_NORM_OPSET, AXES_AS_INPUT, SIZES_AS_INPUT, TRILU_OPSET = 20, 17, 23, 18, 13, 14
FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
ACTIVATIONS = ("Relu", "Tanh", "Sigmoid", "LeakyRelu", "Clip", "HardSigmoid")


class CannotExpandError(Exception):
    """The node uses something of the operator that has no plain equivalent here."""


class _Body:
    """The lines of a function in ONNX's text format."""

    def __init__(self, node: ir.Node, opset: int) -> None:
        self.node, self.opset = node, opset
        self.lines: list[str] = []
        self.inputs = [f"i{index}" for index in range(len(node.inputs))]
        self.outputs = [f"o{index}" for index in range(len(node.outputs))]
        self.dtype = next((v.dtype for v in node.inputs if v is not None and v.dtype in FLOATS), FLOATS[0])
        self._names = count()

    def has(self, index: int) -> bool:
        """Whether the node has this optional input."""
        return index < len(self.node.inputs) and self.node.inputs[index] is not None

    def wants(self, index: int) -> bool:
        """Whether somebody reads this output."""
        found = self.node.outputs[index : index + 1]
        return any(value.uses() or value.is_graph_output() for value in found)

    def new(self, op: str, *inputs: str, out: str = "", attributes: str = "") -> str:
        """Add a node, and return the name of its output."""
        out = out or f"t{next(self._names)}"
        attributes = f" <{attributes}>" if attributes else ""
        self.lines.append(f"{out} = {op}{attributes} ({', '.join(inputs)})")
        return out

    def number(self, value: float) -> str:
        """A constant of the type that the operator computes in."""
        constant = self.new("Constant", attributes=f"value = float {{{value!r}}}")
        return constant if self.dtype is FLOATS[0] else self.new("Cast", constant, attributes=f"to = {self.dtype:d}")

    def integers(self, *values: int) -> str:
        listed = ", ".join(map(str, values))
        return self.new("Constant", attributes=f"value = int64[{len(values)}] {{{listed}}}")

    def moved(self, op: str, x: str, *values: int, out: str = "") -> str:
        """Reshape, Squeeze or Unsqueeze."""
        if op != "Reshape" and self.opset < SIZES_AS_INPUT:
            return self.new(op, x, out=out, attributes=f"axes = {list(values)}")
        return self.new(op, x, self.integers(*values), out=out)

    def split(self, x: str, axis: int, sizes: list[int]) -> list[str]:
        parts = [f"t{next(self._names)}" for _ in sizes]
        given = f"axis = {axis}, split = {sizes}" if self.opset < SIZES_AS_INPUT else f"axis = {axis}"
        inputs = x if self.opset < SIZES_AS_INPUT else f"{x}, {self.integers(*sizes)}"
        self.lines.append(f"{', '.join(parts)} = Split <{given}> ({inputs})")
        return parts

    def mean(self, x: str) -> str:
        """Over the last axis, which stays."""
        if self.opset < AXES_AS_INPUT:
            return self.new("ReduceMean", x, attributes="axes = [-1], keepdims = 1")
        return self.new("ReduceMean", x, self.integers(-1), attributes="keepdims = 1")

    def gelu(self, x: str, out: str = "") -> str:
        if self.opset >= GELU_OPSET:
            return self.new("Gelu", x, out=out)
        error = self.new("Erf", self.new("Div", x, self.number(sqrt(2))))
        half = self.new("Mul", x, self.number(0.5))
        return self.new("Mul", half, self.new("Add", error, self.number(1.0)), out=out)

    def layer_norm(self, x: str, scale: str, bias: str, epsilon: float, out: str) -> None:
        if self.opset >= LAYER_NORM_OPSET:
            inputs = [x, scale, *([bias] if bias else [])]
            self.new("LayerNormalization", *inputs, out=out, attributes=f"axis = -1, epsilon = {epsilon!r}")
            return
        centred = self.new("Sub", x, self.mean(x))
        self.normed(centred, self.new("Mul", centred, centred), scale, bias, epsilon, out)

    def rms_norm(self, x: str, scale: str, epsilon: float, out: str) -> None:
        if self.opset >= RMS_NORM_OPSET:
            self.new("RMSNormalization", x, scale, out=out, attributes=f"axis = -1, epsilon = {epsilon!r}")
            return
        self.normed(x, self.new("Mul", x, x), scale, "", epsilon, out)

    def normed(self, x: str, squares: str, scale: str, bias: str, epsilon: float, out: str) -> None:
        deviation = self.new("Sqrt", self.new("Add", self.mean(squares), self.number(epsilon)))
        unit = self.new("Div", x, deviation)
        scaled = self.new("Mul", unit, scale, out="" if bias else out)
        if bias:
            self.new("Add", scaled, bias, out=out)

    def function(self, overload: str) -> ir.Function:
        """The function whose call the node becomes. Its nodes are called NODE/OPERATOR and NODE/OPERATOR_NUMBER."""
        for name in self.outputs:
            if not any(f"{name} =" in line for line in self.lines):
                self.lines.append(f"{name} = Identity (o0)")  # nobody reads it
        text = (
            f'<domain: "{self.node.domain or MICROSOFT}", opset_import: ["" : {self.opset}]>\n'
            f"{self.node.op_type} ({', '.join(self.inputs)}) => ({', '.join(self.outputs)}) {{\n"
        )
        proto = onnx.parser.parse_function(text + "\n".join(self.lines) + "\n}")
        proto.overload = overload
        seen: Counter[str] = Counter()
        for node in proto.node:
            number = seen[node.op_type]
            node.name = f"{self.node.name}/{node.op_type}" + (f"_{number}" if number else "")
            seen[node.op_type] += 1
        made: ir.Function = ir.serde.deserialize_function(proto)
        return made


def expand(model: ir.Model) -> bool:
    """Make each node that has a plain equivalent a call of a function with that, in place.

    Returns:
        Whether there was one. Types and shapes have to be inferred again before the next call, which may expand nodes
        that this one could not, because it did not know their shapes.

    Raises:
        ModelError: None of those that are left can be expanded: they use a form of the operator that has no equivalent.
    """
    opset, refused, done = model.opset_imports.get("", 1), None, False
    for node in list(ir.traversal.RecursiveGraphIterator(model.graph)):
        if (node.domain, node.op_type) not in EXPANDED:
            continue
        body = _Body(node, opset)
        try:
            EXPANDED[node.domain, node.op_type](body)
        except CannotExpandError as error:
            refused = refused or ModelError(
                f"node {node.name or node.op_type!r} is {node.domain}::{node.op_type} with {error}",
                fix="export the model without ONNX Runtime's graph optimisation",
            )
            continue
        node.domain, node.overload = node.domain or MICROSOFT, str(len(model.functions))
        function = body.function(node.overload)
        model.functions[function.identifier()] = function
        done = True
    if refused and not done:
        raise refused
    return done


def _matmul(body: _Body) -> None:
    attributes = body.node.attributes
    if attributes.get_int("transBatchA", 0) or attributes.get_int("transBatchB", 0):
        raise CannotExpandError("transposed batches")
    sides = []
    for index, side in enumerate("AB"):
        x = body.inputs[index]
        if attributes.get_int(f"trans{side}", 0):
            value = body.node.inputs[index]
            if value is None or value.shape is None:
                raise CannotExpandError(f"a transposed input {side} of unknown rank")
            order = [*range(len(value.shape))]
            order[-2:] = reversed(order[-2:])
            x = body.new("Transpose", x, attributes=f"perm = {order}")
        sides.append(x)
    alpha = attributes.get_float("alpha", 1.0)
    product = body.new("MatMul", *sides, out="o0" if alpha == 1 else "")
    if alpha != 1:
        body.new("Mul", product, body.number(alpha), out="o0")


def _gelu(body: _Body) -> None:
    body.gelu("i0", out="o0")


def _bias_gelu(body: _Body) -> None:
    body.gelu(body.new("Add", "i0", "i1"), out="o0")


def _fast_gelu(body: _Body) -> None:
    x = body.new("Add", "i0", "i1") if body.has(1) else "i0"
    cubed = body.new("Mul", body.new("Mul", x, x), x)
    inner = body.new("Add", x, body.new("Mul", cubed, body.number(0.044715)))
    tanh = body.new("Tanh", body.new("Mul", inner, body.number(0.7978845608028654)))
    half = body.new("Mul", x, body.number(0.5))
    body.new("Mul", half, body.new("Add", tanh, body.number(1.0)), out="o0")


def _quick_gelu(body: _Body) -> None:
    alpha = body.node.attributes.get_float("alpha", 1.702)
    gate = body.new("Sigmoid", body.new("Mul", "i0", body.number(alpha)))
    body.new("Mul", "i0", gate, out="o0")


def _skip_sum(body: _Body, bias: int) -> str:
    """Input + skip + bias, which is also the fourth output."""
    if any(map(body.wants, (1, 2))):
        raise CannotExpandError("mean or deviation as output")
    out = "o3" if body.wants(3) else ""
    if not body.has(bias):
        return body.new("Add", "i0", "i1", out=out)
    return body.new("Add", body.new("Add", "i0", "i1"), f"i{bias}", out=out)


def _skip_layer_norm(body: _Body) -> None:
    epsilon = body.node.attributes.get_float("epsilon", 1e-12)
    body.layer_norm(_skip_sum(body, bias=4), "i2", "i3" if body.has(3) else "", epsilon, "o0")


def _skip_rms_norm(body: _Body) -> None:
    body.rms_norm(_skip_sum(body, bias=3), "i2", body.node.attributes.get_float("epsilon", 1e-12), "o0")


def _rms_norm(body: _Body) -> None:
    if body.wants(1) or body.node.attributes.get_int("axis", -1) != -1:
        raise CannotExpandError("another axis than the last, or the deviation as output")
    body.rms_norm("i0", "i1", body.node.attributes.get_float("epsilon", 1e-5), "o0")


def _embed_layer_norm(body: _Body) -> None:
    if body.has(7) or body.wants(1) or body.has(8):
        raise CannotExpandError("a mask or given positions")
    words = body.new("Gather", "i2", "i0")
    zero, one = (body.new("Constant", attributes=f"value = int64 {{{number}}}") for number in (0, 1))
    length = body.new("Gather", body.new("Shape", "i0"), one)
    positions = body.new("Gather", "i3", body.new("Range", zero, length, one))
    total = body.new("Add", words, positions)
    if body.has(1) and body.has(4):
        total = body.new("Add", total, body.new("Gather", "i4", "i1"))
    if body.wants(2):
        total = body.new("Identity", total, out="o2")
    body.layer_norm(total, "i5", "i6", body.node.attributes.get_float("epsilon", 1e-12), "o0")


def _activated(body: _Body, x: str) -> None:
    attributes = body.node.attributes
    name = attributes.get_string("activation", "")
    given = list(attributes.get_floats("activation_params", ()))
    given += [attributes.get_float(key) for key in ("activation_alpha", "activation_beta") if key in attributes]
    if name == "Clip":
        limits = [body.number(value) for value in given or (-3.4028234663852886e38, 3.4028234663852886e38)]
        body.new("Clip", x, *limits, out="o0")
        return
    if name not in ACTIVATIONS:
        raise CannotExpandError(f"the activation {name!r}")
    settings = ", ".join(f"{key} = {value!r}" for key, value in zip(("alpha", "beta"), given, strict=False))
    body.new(name, x, out="o0", attributes=settings if name in ("LeakyRelu", "HardSigmoid") else "")


def _attributes(node: ir.Node) -> str:
    """The attributes of the operator that an activation was fused into, as text."""
    texts = []
    for attribute in node.attributes.values():
        if attribute.name.startswith("activation"):
            continue
        value = attribute.value
        if isinstance(value, str):
            texts.append(f'{attribute.name} = "{value}"')
        else:
            texts.append(f"{attribute.name} = {list(value) if isinstance(value, tuple | list) else value!r}")
    return ", ".join(texts)


def _fused_conv(body: _Body) -> None:
    inputs = body.inputs[: 3 if body.has(2) else 2]
    product = body.new("Conv", *inputs, attributes=_attributes(body.node))
    _activated(body, body.new("Add", product, "i3") if body.has(3) else product)


def _fused_gemm(body: _Body) -> None:
    inputs = body.inputs[: 3 if body.has(2) else 2]
    _activated(body, body.new("Gemm", *inputs, attributes=_attributes(body.node)))


def _heads(body: _Body, x: str, heads: int) -> str:
    """(batch, length, heads * size) -> (batch, heads, length, size)."""
    return body.new("Transpose", body.moved("Reshape", x, 0, 0, heads, -1), attributes="perm = [0, 2, 1, 3]")


def _attend(body: _Body, q: str, k: str, v: str, size: int, biases: list[str]) -> None:
    """softmax(q k / sqrt(size) + biases) v, with the heads put side by side again."""
    attributes = body.node.attributes
    scale = attributes.get_float("scale", 0.0) or 1 / sqrt(size)
    keys = body.new("Transpose", k, attributes="perm = [0, 1, 3, 2]")
    scores = body.new("MatMul", q, keys)
    scores = body.new("Mul", scores, body.number(scale))
    if attributes.get_int("unidirectional", 0):
        biases = [*biases, _causal(body, scores)]
    for bias in biases:
        scores = body.new("Add", scores, bias)
    mixed = body.new("MatMul", body.new("Softmax", scores, attributes="axis = -1"), v)
    body.moved("Reshape", body.new("Transpose", mixed, attributes="perm = [0, 2, 1, 3]"), 0, 0, -1, out="o0")


def _causal(body: _Body, scores: str) -> str:
    """What is added to scores of keys after the query: the last query sees all keys."""
    if body.opset < TRILU_OPSET:
        raise CannotExpandError("a causal mask below opset 14")
    shape = body.new("Gather", body.new("Shape", scores), body.integers(2, 3))
    before = body.new("Sub", *(body.new("Gather", shape, body.integers(index)) for index in (1, 0)))
    after = body.new("Squeeze", body.new("Add", before, body.integers(1)))
    hidden = body.number(body.node.attributes.get_float("mask_filter_value", -10000.0))
    return body.new("Trilu", body.new("Expand", hidden, shape), after, attributes="upper = 1")


def _key_mask(body: _Body, mask: str, rank: int) -> str:
    """A mask of keys, 1 where they count, as what is added to scores."""
    axes = {2: (1, 2), 3: (1,)}.get(rank)
    if axes is None:
        raise CannotExpandError(f"a mask of rank {rank}")
    shown = body.new("Cast", body.moved("Unsqueeze", mask, *axes), attributes=f"to = {body.dtype:d}")
    hidden = body.new("Sub", body.number(1.0), shown)
    filtered = body.node.attributes.get_float("mask_filter_value", -10000.0)
    return body.new("Mul", hidden, body.number(filtered))


def _rank(body: _Body, index: int) -> int:
    value = body.node.inputs[index]
    return len(value.shape) if value is not None and value.shape is not None else 0


def _attention(body: _Body) -> None:
    attributes, weights = body.node.attributes, body.node.inputs[1]
    if attributes.get_int("do_rotary", 0) or attributes.get_int("past_present_share_buffer", 0) or body.has(6):
        raise CannotExpandError("rotary embedding or a shared cache")
    if weights is None or weights.shape is None or not isinstance(weights.shape[1], int):
        raise CannotExpandError("weights of unknown shape")
    heads = attributes.get_int("num_heads", 1)
    sizes = list(attributes.get_ints("qkv_hidden_sizes", ())) or [weights.shape[1] // 3] * 3
    product = body.new("MatMul", "i0", "i1")
    if body.has(2):
        product = body.new("Add", product, "i2")
    q, k, v = (_heads(body, x, heads) for x in body.split(product, -1, sizes))
    if body.has(4):
        old = [body.new("Gather", "i4", body.new("Constant", attributes=f"value = int64 {{{n}}}")) for n in (0, 1)]
        k, v = (body.new("Concat", past, x, attributes="axis = 2") for past, x in zip(old, (k, v), strict=True))
    if body.wants(1):
        both = [body.moved("Unsqueeze", x, 0) for x in (k, v)]
        body.new("Concat", *both, out="o1", attributes="axis = 0")
    biases = [_key_mask(body, "i3", _rank(body, 3))] if body.has(3) else []
    _attend(body, q, k, v, sizes[0] // heads, [*biases, *(["i5"] if body.has(5) else [])])


def _multi_head_attention(body: _Body) -> None:
    query, heads = body.node.inputs[0], body.node.attributes.get_int("num_heads", 1)
    if query is None or query.shape is None or len(query.shape) != 3 or not isinstance(query.shape[2], int):  # noqa: PLR2004
        raise CannotExpandError("a packed query, or one of unknown width")
    if not (body.has(1) and body.has(2)) or _rank(body, 1) == 4 or any(map(body.has, (8, 9))) or body.wants(3):  # noqa: PLR2004
        raise CannotExpandError("packed or shared keys and values")
    width = query.shape[2]
    parts = ["i0", "i1", "i2"]
    if body.has(3):
        value = body.node.inputs[2]
        last = value.shape[-1] if value is not None and value.shape is not None else width
        if not isinstance(last, int):
            raise CannotExpandError("values of unknown width")
        biases = body.split("i3", 0, [width, width, last])
        parts = [body.new("Add", x, bias) for x, bias in zip(parts, biases, strict=True)]
    q, k, v = (_heads(body, x, heads) for x in parts)
    if body.has(6) and body.has(7):
        k, v = (body.new("Concat", past, x, attributes="axis = 2") for past, x in (("i6", k), ("i7", v)))
    for index, x in ((1, k), (2, v)):
        if body.wants(index):
            body.new("Identity", x, out=f"o{index}")
    masks = [_key_mask(body, "i4", _rank(body, 4))] if body.has(4) else []
    _attend(body, q, k, v, width // heads, [*masks, *(["i5"] if body.has(5) else [])])


def _expand_dims(body: _Body) -> None:
    axis = body.new("Cast", body.moved("Reshape", "i1", -1), attributes=f"to = {ir.DataType.INT64:d}")
    if body.opset < SIZES_AS_INPUT:
        raise CannotExpandError("an axis that is no attribute, below opset 13")
    body.new("Unsqueeze", "i0", axis, out="o0")


def _mean_variance_norm(body: _Body) -> None:
    """TensorRT-RTX 1.7.1 computes it in these steps, and onnx infers no FP16 type for it."""
    axes = list(body.node.attributes.get_ints("axes", [0, 2, 3]))

    def mean(x: str) -> str:
        if body.opset < AXES_AS_INPUT:
            return body.new("ReduceMean", x, attributes=f"axes = {axes}, keepdims = 1")
        return body.new("ReduceMean", x, body.integers(*axes), attributes="keepdims = 1")

    centred = body.new("Sub", "i0", mean("i0"))
    deviation = body.new("Sqrt", mean(body.new("Mul", centred, centred)))
    body.new("Div", centred, body.new("Add", deviation, body.number(1e-9)), out="o0")


def _trilu(body: _Body) -> None:
    if body.opset < TRILU_OPSET:
        raise CannotExpandError("opset below 14")
    _renamed("Trilu")(body)


def _renamed(op: str) -> Callable[[_Body], None]:
    """An operator that the standard has, too, with the same inputs, outputs and attributes."""

    def write(body: _Body) -> None:
        given = [name if body.has(index) else '""' for index, name in enumerate(body.inputs)]
        body.new(op, *given, out="o0", attributes=_attributes(body.node))

    return write


EXPANDED: dict[tuple[str, str], Callable[[_Body], None]] = {
    ("", "SimplifiedLayerNormalization"): _rms_norm,  # ONNX Runtime's own, though in the standard's domain
    ("", "MeanVarianceNormalization"): _mean_variance_norm,
    **{
        (MICROSOFT, op): write
        for op, write in {
            "Attention": _attention,
            "BiasGelu": _bias_gelu,
            "EmbedLayerNormalization": _embed_layer_norm,
            "ExpandDims": _expand_dims,
            "FastGelu": _fast_gelu,
            "FusedConv": _fused_conv,
            "FusedGemm": _fused_gemm,
            "FusedMatMul": _matmul,
            "GatherND": _renamed("GatherND"),
            "Gelu": _gelu,
            "MultiHeadAttention": _multi_head_attention,
            "QuickGelu": _quick_gelu,
            "SkipLayerNormalization": _skip_layer_norm,
            "SkipSimplifiedLayerNormalization": _skip_rms_norm,
            "TransposeMatMul": _matmul,
            "Trilu": _trilu,
        }.items()
    },
}
