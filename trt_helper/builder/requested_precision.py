"""Describe what a typed model requests of each layer: operator, precision and neighbours.

The proof of the pins compares this with the engine. Keys are ONNX node names, Cast nodes included.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b

import onnx_ir as ir

from trt_helper.builder.kernel_precision import RequestedPrecision
from trt_helper.onnx_model.roles import MOVEMENT

_REDUCED = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_LARGE = (ir.AttributeType.TENSOR, ir.AttributeType.TENSORS, ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def requested_precisions(model: ir.Model) -> Mapping[str, RequestedPrecision]:
    """Return node name -> what is requested of it, for every node of the typed model."""
    formulas: dict[ir.Value, str] = {}
    found: dict[str, RequestedPrecision] = {}
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        formula = _formula(node, formulas)
        for index, value in enumerate(node.outputs):
            formulas[value] = formula if _only_moves(node) else f"{formula}.{index}"
        types = {value.dtype for value in (*node.inputs, *node.outputs) if value is not None}
        half, full = not types.isdisjoint(_REDUCED), ir.DataType.FLOAT in types
        found[node.name or ""] = RequestedPrecision(_operator(node), half, full, _is_alone(node), formula)
    return found


def _operator(node: ir.Node) -> str:
    """Return the operator that the compiler makes of the node.

    Powers of 2, 3 and 4 are products, a LeakyRelu of slope 1 is a maximum, nearest-neighbour Resize only moves values.
    """
    if node.op_type == "LeakyRelu" and node.attributes.get_float("alpha", 0.01) == 1.0:
        return "Max"
    exponent = node.inputs[1] if node.op_type == "Pow" else None
    if exponent is not None and exponent.const_value is not None and exponent.const_value.size == 1:
        power = float(exponent.const_value.numpy().reshape(-1)[0])
        return f"Pow{power:g}" if power in (2, 3, 4) else "Pow"
    if node.op_type == "Resize" and node.attributes.get_string("mode", "nearest") == "nearest":
        return "Identity"
    return node.op_type


def _formula(node: ir.Node, formulas: Mapping[ir.Value, str]) -> str:
    """Return a digest of what the node computes: moving values does not change it, another constant does."""
    read = [_value_formula(value, formulas) for value in node.inputs if value is not None]
    if _only_moves(node):
        return read[0]
    attributes = sorted(f"{name}={attribute.value}" for name, attribute in node.attributes.items())
    if any(attribute.type in _LARGE for attribute in node.attributes.values()):
        attributes.append(node.name or "")  # not compared: it counts as different from every other
    return blake2b("\0".join([node.op_type, *attributes, *read]).encode(), digest_size=8).hexdigest()


def _only_moves(node: ir.Node) -> bool:
    """Return whether the output has the values of the first input, rearranged or in another type."""
    moves = node.op_type in MOVEMENT - {"Concat"} or node.op_type == "Cast"
    return moves and any(value is not None for value in node.inputs)


def _value_formula(value: ir.Value, formulas: Mapping[ir.Value, str]) -> str:
    """Return what computes a value: a formula, the number of a one-element constant, or the value's own name."""
    if value in formulas:
        return formulas[value]
    if value.const_value is not None and value.const_value.size == 1 and value.dtype is not ir.DataType.STRING:
        return f"{float(value.const_value.numpy().reshape(-1)[0]):.6g}"
    return value.name or ""


def _is_alone(node: ir.Node) -> bool:
    """Return whether every FP32 tensor of the node comes from a cast or initializer and goes only to casts."""
    reads = (value for value in node.inputs if value is not None and value.dtype is ir.DataType.FLOAT)
    rounded = all(value.is_initializer() or _is_cast(value.producer()) for value in reads)
    return rounded and all(
        not value.is_graph_output() and all(_is_cast(user) for user, _ in value.uses())
        for value in node.outputs
        if value.dtype is ir.DataType.FLOAT
    )


def _is_cast(node: ir.Node | None) -> bool:
    return node is not None and node.op_type == "Cast"
