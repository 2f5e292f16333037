"""The role of a node, and which of its inputs and outputs can be FP16, from the ONNX schema of its operator.

The schema says which inputs and outputs may be FP16. The tables here add the facts that no schema states: which
operators only move values, which decide something by comparing floats, and which inputs are shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import onnx
import onnx_ir as ir

from trt_helper.values import Role

MOVEMENT = frozenset(
    [
        "Compress",
        "Concat",
        "ConstantOfShape",
        "DepthToSpace",
        "Dropout",
        "Expand",
        "Flatten",
        "Gather",
        "GatherElements",
        "GatherND",
        "Identity",
        "Pad",
        "Reshape",
        "ReverseSequence",
        "ScatterElements",
        "ScatterND",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    ]
)
# These compare the floats that they read, and rounding can change the result: they read them as stored.
PICKING = frozenset(["ArgMax", "ArgMin", "TopK", "NonZero"])

# These read the shape of their input and none of its values.
SHAPE_READING = frozenset(("Shape", "Size"))

# Inputs that are shapes, counts or positions. Floats from which only such inputs are computed are TensorRT's shape
# arithmetic: it runs on the host and is never FP16.
SHAPE_INPUTS = {
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "Loop": (0,),
    "OneHot": (1,),
    "Pad": (1, 3),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Unsqueeze": (1,),
    "Upsample": (1,),
}
ALWAYS_FLOAT = {"Resize": (1, 2), "Upsample": (1,)}  # region of interest and scales: FP32 in every layer

# The type of the result is in an attribute, which may be absent, or is that of the bits.
TYPED_BY_ATTRIBUTE = frozenset(
    ("BitCast", "BlackmanWindow", "Constant", "HammingWindow", "HannWindow", "MelWeightMatrix")
)


@dataclass(frozen=True, slots=True)
class Ports:
    """The indices of the inputs and outputs that have the precision of their node. Other floats stay FP32."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def role_and_ports(node: ir.Node, opset: int, *, shape_only: bool) -> tuple[Role, Ports]:
    """Classify a node of a normalised graph.

    Args:
        node: With types.
        opset: Of the model, for the operator's schema.
        shape_only: Its outputs are used only to compute shapes, see `shape_only_values`.
    """
    half_in, half_out = _half_parameters(node.op_type, opset, len(node.inputs), len(node.outputs))
    always = ALWAYS_FLOAT.get(node.op_type, ())
    floats_in = [i for i, value in enumerate(node.inputs) if _is_float(value)]
    floats_out = [i for i, value in enumerate(node.outputs) if _is_float(value)]
    inputs = tuple(i for i in floats_in if half_in[i] and i not in always)
    outputs = tuple(i for i in floats_out if half_out[i])
    ports = Ports(inputs, outputs)
    if shape_only or _has_no_half(node) or not (inputs or outputs):
        return Role.FIXED, Ports((), ())
    if floats_out and not half_out[floats_out[0]]:
        return Role.FIXED, Ports((), ())
    if node.attributes.get_string("reduction", "none") != "none":  # a scatter that adds is arithmetic
        return Role.COMPUTE, ports
    if node.op_type in MOVEMENT | PICKING | SHAPE_READING or (node.op_type == "Cast" and not floats_out):
        return Role.MOVEMENT, ports
    return Role.COMPUTE, ports


def may_be_bf16(node: ir.Node, opset: int) -> bool:
    """Whether the operator's version of this opset takes BF16: Conv, for example, does from opset 22 on."""
    try:
        schema = onnx.defs.get_schema(node.op_type, max_inclusive_version=opset)
    except onnx.defs.SchemaError:
        return False
    cast = onnx.defs.get_schema("Cast", max_inclusive_version=opset)
    first = next((p.types for p in (*schema.inputs, *schema.outputs) if "tensor(float)" in p.types), ())
    return "tensor(bfloat16)" in first and "tensor(bfloat16)" in cast.outputs[0].types


def _has_no_half(node: ir.Node) -> bool:
    """Whether the node has a subgraph, the type of its result in an attribute, or reads bits as another type."""
    if "dtype" in node.attributes or node.op_type in TYPED_BY_ATTRIBUTE:
        return True
    return any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values())


def picks(node: ir.Node) -> bool:
    """Whether the node computes a result that is not a float by comparing floats."""
    return node.op_type in PICKING or (node.op_type == "Cast" and not any(map(_is_float, node.outputs)))


def shape_only_values(graph: ir.Graph) -> frozenset[str]:
    """The names of the tensors that are used only to compute shapes, counts or positions."""
    found: set[str] = set()
    for node in reversed(list(graph)):
        for value in node.outputs:
            uses = value.uses()
            if not value.name or not uses or value.is_graph_output():
                continue
            if all(_is_shape_use(user, index, found) for user, index in uses):
                found.add(value.name)
    return frozenset(found)


def _is_shape_use(user: ir.Node, index: int, found: set[str]) -> bool:
    if index in SHAPE_INPUTS.get(user.op_type, ()):
        return True
    return all(out.name in found or not (out.uses() or out.is_graph_output()) for out in user.outputs)


def _is_float(value: ir.Value | None) -> bool:
    return value is not None and value.type == ir.TensorType(ir.DataType.FLOAT)


@lru_cache(maxsize=4096)
def _half_parameters(op: str, opset: int, inputs: int, outputs: int) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
    try:
        schema = onnx.defs.get_schema(op, max_inclusive_version=opset)
    except onnx.defs.SchemaError:
        return (False,) * inputs, (False,) * outputs
    return _allowed(schema.inputs, inputs), _allowed(schema.outputs, outputs)


def _allowed(parameters: Sequence[onnx.defs.OpSchema.FormalParameter], count: int) -> tuple[bool, ...]:
    """Whether each of `count` parameters may be FP16. A variadic last parameter stands for all further ones."""
    if not parameters:
        return (False,) * count
    half = ["tensor(float16)" in parameter.types for parameter in parameters]
    return tuple(half[min(index, len(half) - 1)] for index in range(count))
