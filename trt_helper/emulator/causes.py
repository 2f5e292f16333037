"""Name the reason why FP16 harms a layer, from the measured layer errors.

A reason follows from the first element that goes wrong, and from what FP16 makes of it. The reasons are constant,
mask, overflow, division, logarithm, epsilon, underflow, integer, coordinate, cancellation and rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from trt_helper.values import LayerReport, Operand, WrongElement

HALF_MAX = 65504.0  # largest finite FP16 value
HALF_NORMAL = 2.0**-14  # smallest FP16 value with all 11 bits
HALF_TINY = 2.0**-24  # smallest FP16 value
WHOLE_MAX = 2048.0  # above it FP16 cannot represent every whole number (11 bits of significand)
FINE = 2.0**-8  # relative isolated error; the plain rounding of one operation stays below it
CANCELLED = 2.0**-5  # output over input; an output that is smaller than this has lost five bits or more
DISCONTINUOUS = frozenset(("Ceil", "Floor", "Mod", "Round", "Sin", "Cos", "Tan", "Cast", "GridSample"))
DIVIDES = frozenset(("Div", "Reciprocal", "Pow"))
TAKES_LOGARITHM = frozenset(("Log", "LogSoftmax"))
BOUNDS = frozenset(("Add", "Clip", "Max", "Sum"))  # of a small constant they leave no result below it

Named = tuple[str, str]  # the reason in one word, and the figures that show it
NONE: Named = ("", "")


def cause(report: LayerReport) -> Named:
    """The reason why FP16 harms this layer, in one word, and the figures that show it.

    Returns:
        Both are empty if the layer itself adds no error in FP16.
    """
    first = report.first
    if first is not None:
        for named in (rule(report, first) for rule in BY_ELEMENT):
            if named != NONE:
                return named
    for named in (rule(report) for rule in BY_REPORT):
        if named != NONE:
            return named
    isolated = report.isolated
    if isolated.max == 0:
        return NONE
    return "rounding", f"off by {isolated.max:.2g} where values reach {isolated.reference_max:.3g}"


# ------------------------------------------------------------------------- by the first element that goes wrong


def _mask(report: LayerReport, first: WrongElement) -> Named:
    value = next((operand for operand in first.operands if operand.mask), None)
    if value is None or math.isfinite(first.became):
        return NONE
    if report.layer.op == "Mul" and not {o.exact for o in first.operands} <= {0.0, 1.0, value.exact}:
        return NONE  # it scales by a large constant
    so = "" if math.isinf(first.became) else f", which makes {first.reference + 0.0:.3g} NaN"
    return "mask", f"the mask value {value.exact:.3g} becomes -inf{so}"


def _division(report: LayerReport, first: WrongElement) -> Named:
    divisor = _divisor(report, first.operands)
    if divisor is None or not _vanishes(divisor) or (divisor.reduced != 0 and abs(first.reference) > HALF_MAX):
        return NONE
    return "division", f"divides by {divisor.exact:.3g}, in FP16 {divisor.reduced:.3g}: {_became(first)}"


def _divisor(report: LayerReport, operands: Sequence[Operand]) -> Operand | None:
    op = report.layer.op
    if op == "Pow":
        return operands[0] if len(operands) > 1 and operands[1].exact < 0 else None
    return operands[-1] if op in DIVIDES and operands else None


def _logarithm(report: LayerReport, first: WrongElement) -> Named:
    op, operands = report.layer.op, first.operands
    if op == "Log" and operands and _vanishes(operands[0]):
        small = operands[0]
        return "logarithm", f"the logarithm of {small.exact:.3g}, in FP16 {small.reduced:.3g}: {_became(first)}"
    within = -HALF_MAX < first.reference < 0 and operands and abs(operands[0].exact) <= HALF_MAX
    if op == "LogSoftmax" and within and not math.isfinite(first.became):
        return "logarithm", f"exp({first.reference:.3g}) is 0 in FP16, and its logarithm {first.became:.3g}"
    return NONE


def _overflow(report: LayerReport, first: WrongElement) -> Named:
    beyond = [o for o in first.operands if abs(o.exact) > HALF_MAX and not math.isinf(o.exact)]
    if any(not operand.constant for operand in beyond) or (abs(first.reference) > HALF_MAX and not beyond):
        return _passes_the_end(max(report.read, report.written))
    return NONE


def _epsilon(report: LayerReport, first: WrongElement) -> Named:
    if report.layer.op not in BOUNDS or first.became != 0:
        return NONE
    lost = [o.exact for o in first.operands if o.constant and o.exact != 0 and o.reduced == 0]
    small = max(lost, key=abs, default=0.0)
    if not small or abs(first.reference) > 2 * abs(small):  # otherwise more than the constant is lost
        return NONE
    return "epsilon", f"the constant {small:.3g} becomes 0 in FP16{_then(first)}"


def _integer(report: LayerReport, first: WrongElement) -> Named:
    reads_positions = report.layer.op in DISCONTINUOUS and report.read > 1
    if not first.whole or not math.isfinite(first.became) or reads_positions:
        return NONE
    most = f"FP16 has every whole number only up to {WHOLE_MAX:.0f}"
    return "integer", f"{first.reference:.0f} becomes {first.became:.0f}: {most}"


def _underflow(_report: LayerReport, first: WrongElement) -> Named:
    if first.became != 0 or first.reference == 0 or not first.then:
        return NONE
    if abs(first.reference) < HALF_TINY:
        return "underflow", f"{first.reference:.3g} becomes 0{_then(first)}"
    lost = next((o.exact for o in first.operands if o.exact != 0 and o.reduced == 0), 0.0)
    return ("underflow", f"{lost:.3g} becomes 0, so {first.reference:.3g} does{_then(first)}") if lost else NONE


def _cancellation(report: LayerReport, first: WrongElement) -> Named:
    if report.layer.op not in ("Sub", "Add") or not first.then or len(first.operands) < 2:  # noqa: PLR2004
        return NONE
    largest = max(abs(operand.exact) for operand in first.operands)
    off = abs(first.became - first.reference)
    if abs(first.reference) >= CANCELLED * largest or off <= FINE * abs(first.reference):
        return NONE
    return "cancellation", f"of {largest:.4g} it leaves {first.reference:.3g}, in FP16 {first.became:.3g}"


def _vanishes(operand: Operand) -> bool:
    """Whether FP16 makes 0 of a number, or keeps few bits of it."""
    off = abs(operand.exact - operand.reduced)
    return 0 < abs(operand.exact) < HALF_NORMAL and off > FINE * abs(operand.exact)


def _became(first: WrongElement) -> str:
    return f"{first.reference + 0.0:.3g} becomes {'NaN' if math.isnan(first.became) else f'{first.became:.3g}'}"


def _then(first: WrongElement) -> str:
    return f", and {first.then}" if first.then else ""


BY_ELEMENT: Sequence[Callable[[LayerReport, WrongElement], Named]] = (
    *(_mask, _division, _logarithm, _overflow, _epsilon, _integer, _underflow, _cancellation),
)


# ---------------------------------------------------------------------------------- by the figures of the layer


def _by_weights(report: LayerReport) -> Named:
    if report.weights_overflow:
        return "constant", f"{report.weights_overflow} of its weights pass {HALF_MAX:.0f}"
    if report.weights_underflow and report.isolated.max > FINE * report.isolated.reference_max:
        return "underflow", f"{report.weights_underflow} of its weights become 0"
    return NONE


def _by_range(report: LayerReport) -> Named:
    isolated = report.isolated
    peak = max(report.read, report.written)
    if peak > HALF_MAX:
        return _passes_the_end(peak)
    if report.overflow or isolated.non_finite:
        return "overflow", f"a step inside passes {HALF_MAX:.0f}, where values reach {peak:.3g}"
    cancelled = report.layer.op in ("Sub", "Add") and isolated.max > HALF_NORMAL  # 0 is left of larger numbers
    if report.underflow and 2 * report.underflow >= isolated.total and not cancelled:
        shown = f"{report.underflow} of {isolated.total} results become 0, the largest is {isolated.reference_max:.3g}"
        return "underflow", shown
    return NONE


def _passes_the_end(peak: float) -> Named:
    return "overflow", f"values up to {peak:.3g}, FP16 ends at {HALF_MAX:.0f}"


def _by_difference(report: LayerReport) -> Named:
    isolated, op = report.isolated, report.layer.op
    a_step_off = report.read > WHOLE_MAX and isolated.max >= 1  # a whole number is another one
    off = isolated.max > FINE * max(isolated.reference_max, 1.0) or a_step_off
    if op in DISCONTINUOUS and report.read > 1 and off:
        whole = f", only whole numbers beyond {WHOLE_MAX:.0f}" if report.read > WHOLE_MAX else ""
        return "coordinate", f"reads positions or phases up to {report.read:.3g}{whole}"
    if op in ("Sub", "Add") and 0 < isolated.reference_max < CANCELLED * report.read:
        return "cancellation", f"reads up to {report.read:.3g}, leaves up to {isolated.reference_max:.3g}"
    return NONE


def _by_reader(report: LayerReport) -> Named:
    """Plain rounding that a certain reader makes large."""
    off = report.isolated.max
    if report.reader and report.written > 1 and off > FINE:
        return "coordinate", f"off by {off:.2g} in positions or phases up to {report.written:.3g}, for {report.reader}"
    if report.cancelled_in and off > 0:
        reach = f"off by {off:.2g} where values reach {report.isolated.reference_max:.3g}"
        return "cancellation", f"{reach}; {report.cancelled_in} cancels the leading digits"
    return NONE


BY_REPORT: Sequence[Callable[[LayerReport], Named]] = (_by_weights, _by_range, _by_difference, _by_reader)
