"""Find the element of a layer's output that tells most about why FP16 harms the layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from trt_helper.emulator.causes import BOUNDS, DIVIDES, FINE, HALF_MAX, TAKES_LOGARITHM, WHOLE_MAX
from trt_helper.emulator.emulator import Emulator, Step
from trt_helper.emulator.gradients import ELEMENTWISE
from trt_helper.emulator.readers import Readers, divisor_readers, floors, masked, phase_readers
from trt_helper.onnx_model.rewrites import SOFTMAX_OF_ONE_AXIS
from trt_helper.values import Array, LayerName, Operand, ReducedPrecision, TensorName, WrongElement

SOFTMAX = frozenset(("Softmax", "LogSoftmax", "ReduceLogSumExp"))
NEARLY_ZERO = 1e-30  # a relative error is taken of at least this


@dataclass(frozen=True, eq=False)
class Watched:
    """What the readers of a graph's tensors are sensitive to."""

    phases: Readers
    divisors: Readers
    floors: Mapping[TensorName, float]  # of errors in divisors
    masked: frozenset[TensorName]

    @staticmethod
    def of(emulator: Emulator) -> Watched:
        """Looked up once per graph."""
        graph = emulator.graph
        divisors = divisor_readers(graph)
        return Watched(phase_readers(graph), divisors, floors(graph, divisors), masked(graph))


def first_wrong(
    emulator: Emulator, step: Step, watched: Watched, written: float, *, non_finite: bool
) -> WrongElement | None:
    """The element that becomes not finite; else the one with the largest error, relative where a reader divides by it.

    Only layers are looked at whose operator or values make more than plain rounding possible.

    Args:
        emulator: That made the step.
        step: The layer in FP16 and in FP32.
        watched: The readers of the graph's tensors.
        written: The largest magnitude of the layer's outputs in FP32.
        non_finite: Whether an element becomes infinite or NaN.
    """
    layer = step.layer
    name = next((name for name, array in step.reference.items() if _comparable(array, step.isolated[name])), "")
    if not name or step.reduced is not ReducedPrecision.FP16:
        return None
    relative = name in watched.divisors or (layer.op in BOUNDS and emulator.rounded_away(layer.name)[1] > 0)
    if not (non_finite or relative or written > WHOLE_MAX or layer.op in DIVIDES | TAKES_LOGARITHM):
        return None
    reference, alone = step.reference[name], step.isolated[name]
    floor = max(watched.floors.get(name, 0.0), NEARLY_ZERO)
    index = _index(reference, alone, floor if relative else None)
    if index is None:
        return None
    place = np.unravel_index(index, reference.shape)
    expected, became = float(reference[place]), float(alone[place])
    matters = not abs(became - expected) <= FINE * max(abs(expected), floor)  # NaN does
    beyond = abs(expected) > WHOLE_MAX and expected.is_integer()
    return WrongElement(
        reference=expected,
        became=became,
        operands=tuple(_operands(emulator, step, watched, place, reference.shape)),
        whole=beyond and bool((np.rint(reference) == reference).all()),
        then=_then(emulator, watched.divisors.get(name, "")) if matters else "",
    )


def _then(emulator: Emulator, reader: LayerName) -> str:
    """What a layer does that reads a tensor as a divisor, or to take its logarithm."""
    if not reader:
        return ""
    does = "takes its logarithm" if emulator.graph.nodes[reader].op_type == "Log" else "divides by it"
    return f"{reader} {does}"


def _comparable(reference: Array, alone: Array) -> bool:
    same_shape = reference.dtype.kind == "f" and alone.shape == reference.shape
    return alone is not reference and same_shape and reference.size > 0


def _index(reference: Array, alone: Array, floor: float | None) -> int | None:
    """The flat index of the element, None if no element differs. Errors are relative to at least `floor`, if given."""
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.abs(alone - reference)
        lost = ~np.isfinite(error)
        if lost.any():
            spoiled = lost & np.isfinite(reference)
            if spoiled.any():
                return int(spoiled.argmax())
            error[lost] = 0
        if floor is not None:
            error /= np.maximum(np.abs(reference), np.float32(floor))
    index = int(error.argmax())
    return index if error.reshape(-1)[index] > 0 else None


def _operands(
    emulator: Emulator, step: Step, watched: Watched, place: tuple[np.intp, ...], shape: tuple[int, ...]
) -> Iterator[Operand]:
    """What the layer computes this element from, where that is a few numbers."""
    op = step.layer.op
    if op in SOFTMAX:
        name, array, constant = next(iter(step.reads()))
        row = array[_row(emulator, step, array, place)]
        if row.size:
            yield _operand(name, float(row.max()), constant, watched)
    elif op in ELEMENTWISE:
        for name, array, constant in step.reads():
            if array.dtype.kind == "f":
                yield _operand(name, float(np.broadcast_to(array, shape)[place]), constant, watched)


def _row(emulator: Emulator, step: Step, array: Array, place: tuple[np.intp, ...]) -> tuple[np.intp | slice, ...]:
    """The elements that a softmax divides by the sum of, for one element of its output."""
    node = emulator.graph.nodes[step.layer.name]
    if len(place) != array.ndim or step.layer.op == "ReduceLogSumExp":
        return (slice(None),) * array.ndim
    new = emulator.graph.model.opset_imports.get("", 1) >= SOFTMAX_OF_ONE_AXIS
    axis = _axis(node, -1 if new else 1) % array.ndim
    return tuple(slice(None) if i == axis or (i > axis and not new) else at for i, at in enumerate(place))


def _axis(node: ir.Node, default: int) -> int:
    return node.attributes.get_int("axis", default)


def _operand(name: TensorName, exact: float, constant: bool, watched: Watched) -> Operand:
    with np.errstate(over="ignore"):
        reduced = float(np.float16(exact))
    return Operand(exact, reduced, constant=constant, mask=name in watched.masked and exact < -HALF_MAX)
