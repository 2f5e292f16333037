"""What the layers of a graph do with a tensor, as far as the cause of an error depends on it.

An error of one part in a thousand does no harm to most readers. It does where a layer divides by the tensor, takes its
sine, or subtracts it from a nearly equal one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from trt_helper.emulator.causes import DISCONTINUOUS, HALF_MAX, cause
from trt_helper.onnx_model.graph import Graph
from trt_helper.values import Layer, LayerName, LayerReport, Role, TensorName

Readers = dict[TensorName, LayerName]  # a tensor, and the layer that reads it, maybe through others
STEPS = frozenset(("Mul", "Div", "Add", "Sub", "Pow", "Clip", "Max", "Min"))  # passed with a constant operand
BOXES = {"GridSample": 1, "NonMaxSuppression": 0, "RoiAlign": 1, "MaxRoiPool": 1}  # which input holds positions
PHASES = {op: BOXES.get(op, 0) for op in (*DISCONTINUOUS - {"Cast"}, *BOXES)}  # or phases
PHASE_STEPS = frozenset(("Neg",))
DIVISOR_STEPS = frozenset(("Sqrt", "Abs", "Relu", "Neg"))
SUMS = frozenset(("ReduceMean", "ReduceSum", "ReduceSumSquare", "GlobalAveragePool", "AveragePool", "Mul", "Pow"))
MASKS = frozenset(("Add", "Sub", "Mul", "Where", "Min", "Cast"))  # what is masked stays so behind these


def phase_readers(graph: Graph) -> Readers:
    """The tensors that a layer reads as positions or phases, such as the input of a Sin, and that layer."""

    def phases(node: ir.Node) -> Sequence[ir.Value | None]:
        index = PHASES.get(node.op_type)
        return () if index is None else node.inputs[index : index + 1]

    return _read_by(graph, phases, PHASE_STEPS)


def divisor_readers(graph: Graph) -> Readers:
    """The tensors that a layer divides by or takes the logarithm of, and that layer."""
    return _read_by(graph, divisors, DIVISOR_STEPS)


def floors(graph: Graph, readers: Readers) -> dict[TensorName, float]:
    """How large an error in a tensor of `divisor_readers` has to be to matter: 0, or the epsilon added to it."""
    found: dict[TensorName, float] = {}
    for layer in reversed(graph.layers):
        node = graph.nodes[layer.name]
        direct = [value.name for value in divisors(node) if value is not None]
        written = next((value.name for value in node.outputs if value.name in readers), None)
        passes = written is not None and _passes(layer, node, DIVISOR_STEPS)
        for value in node.inputs:
            if value is not None and value.name in readers and (value.name in direct or passes):
                floor = 0.0 if value.name in direct else _floor_before(node, found.get(written or "", 0.0))
                found[value.name] = min(found.get(value.name, floor), floor)
    return found


def _floor_before(node: ir.Node, floor: float) -> float:
    """The floor of a node's input, from that of its output."""
    if node.op_type == "Sqrt":
        return floor**2
    constants = [_largest(value) for value in node.inputs if value is not None and value.const_value is not None]
    return max([floor, *constants]) if node.op_type in ("Add", "Clip", "Max") and len(constants) == 1 else floor


def divisors(node: ir.Node) -> Sequence[ir.Value | None]:
    """The inputs of a node that it divides by, or takes the logarithm of."""
    if node.op_type == "Div":
        return node.inputs[1:2]
    if node.op_type in ("Log", "Reciprocal"):
        return node.inputs[:1]
    return node.inputs[:1] if node.op_type == "Pow" and _largest(node.inputs[1]) < 0 else ()


def masked(graph: Graph) -> frozenset[TensorName]:
    """The constants with values below FP16's range, and the tensors that such a mask was put on."""
    found: set[TensorName] = set()
    for layer in graph.layers:
        node = graph.nodes[layer.name]
        if layer.role is Role.MOVEMENT or layer.op in MASKS:
            found |= {value.name or "" for value in node.inputs if value is not None and _is_mask(value)}
        filled = node.attributes.get("value") if node.op_type == "ConstantOfShape" else None
        if filled is not None and filled.as_tensor().numpy().min() < -HALF_MAX:
            found.update(layer.outputs)
        if (layer.role is Role.MOVEMENT or layer.op in MASKS) and not found.isdisjoint(layer.inputs):
            found.update(layer.outputs)
    return frozenset(found)


def with_readers(graph: Graph, reports: Iterable[LayerReport]) -> tuple[LayerReport, ...]:
    """The reports, each with the layer whose cancellation makes the rounding of this layer matter."""
    found = tuple(reports)
    cancels = {report.layer.name for report in found if cause(report)[0] == "cancellation"}
    readers: Readers = {}
    for layer in reversed(graph.layers):
        node = graph.nodes[layer.name]
        if layer.name in cancels:
            readers |= {name: layer.name for name in layer.inputs if name not in readers}
        elif (layer.role is Role.MOVEMENT or layer.op in SUMS or _has_constant(node)) and layer.outputs:
            _pass_on(readers, node)
    return tuple(
        report
        if report.reader or report.layer.name in cancels
        else replace(report, cancelled_in=next((readers[n] for n in report.layer.outputs if n in readers), ""))
        for report in found
    )


def _read_by(graph: Graph, read: Callable[[ir.Node], Sequence[ir.Value | None]], steps: frozenset[str]) -> Readers:
    """The tensors that `read` names, and those that become one by moving, by `steps` or by a constant operand."""
    readers: Readers = {}
    for layer in reversed(graph.layers):
        node = graph.nodes[layer.name]
        for value in read(node):
            if value is not None and value.name:
                readers[value.name] = layer.name
        if _passes(layer, node, steps):
            _pass_on(readers, node)
    return readers


def _passes(layer: Layer, node: ir.Node, steps: frozenset[str]) -> bool:
    """Whether a relative or a small error in what the layer reads is one in what it writes."""
    return layer.role is Role.MOVEMENT or layer.op in steps or _has_constant(node)


def _pass_on(readers: Readers, node: ir.Node) -> None:
    """Who reads an output reads what it is made of."""
    reader = next((readers[value.name] for value in node.outputs if value.name in readers), "")
    for value in node.inputs if reader else ():
        if value is not None and value.name and value.const_value is None:
            readers.setdefault(value.name, reader)


def _has_constant(node: ir.Node) -> bool:
    """Whether a node computes one tensor and a constant, element by element."""
    given = [value for value in node.inputs if value is not None and value.const_value is None]
    return node.op_type in STEPS and len(given) == 1


def _largest(value: ir.Value | None) -> float:
    array = value.const_value.numpy() if value is not None and value.const_value is not None else None
    return float(array.max()) if array is not None and array.size else 0.0


def _is_mask(value: ir.Value) -> bool:
    """Whether a constant of floats holds nothing but 0 and numbers below FP16's range."""
    if value.const_value is None or value.dtype is not ir.DataType.FLOAT:
        return False
    array = value.const_value.numpy()
    below = array < -HALF_MAX
    return bool((below & np.isfinite(array)).any() and (below | (array == 0)).all())
