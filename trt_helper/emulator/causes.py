"""Name the reason why FP16 harms a layer, from the measured layer errors.

The reasons are constant, overflow, underflow, coordinate, cancellation and rounding.
"""

from __future__ import annotations

from trt_helper.values import LayerReport

HALF_MAX = 65504.0  # largest finite FP16 value
WHOLE_MAX = 2048.0  # above it FP16 cannot represent every whole number (11 bits of significand)
FINE = 2.0**-8  # relative isolated error; the plain rounding of one operation stays below it
CANCELLED = 2.0**-5  # output over input; an output that is smaller than this has lost five bits or more
DISCONTINUOUS = frozenset(("Ceil", "Floor", "Mod", "Round", "Sin", "Cos", "Tan", "Cast", "GridSample"))


def cause(report: LayerReport) -> tuple[str, str]:
    """The reason why FP16 harms this layer, in one word, and the figures that show it.

    Returns:
        Both are empty if the layer itself adds no error in FP16.
    """
    isolated = report.isolated
    for name, value in (_by_weights(report), _by_range(report), _by_difference(report)):
        if name:
            return name, value
    if isolated.max == 0:
        return "", ""
    return "rounding", f"off by {isolated.max:.2g} where values reach {isolated.reference_max:.3g}"


def _by_weights(report: LayerReport) -> tuple[str, str]:
    if report.weights_overflow:
        return "constant", f"{report.weights_overflow} of its weights pass {HALF_MAX:.0f}"
    if report.weights_underflow and report.isolated.max > FINE * report.isolated.reference_max:
        return "underflow", f"{report.weights_underflow} of its weights become 0"
    return "", ""


def _by_range(report: LayerReport) -> tuple[str, str]:
    isolated = report.isolated
    peak = max(report.read, report.written)
    if report.overflow or isolated.non_finite or peak > HALF_MAX:
        return "overflow", f"values up to {peak:.3g}, FP16 ends at {HALF_MAX:.0f}"
    if report.underflow and report.underflow >= isolated.total // 2:
        shown = f"{report.underflow} of {isolated.total} results become 0, the largest is {isolated.reference_max:.3g}"
        return "underflow", shown
    return "", ""


def _by_difference(report: LayerReport) -> tuple[str, str]:
    isolated, op = report.isolated, report.layer.op
    if op in DISCONTINUOUS and report.read > 1 and isolated.max > FINE * max(isolated.reference_max, 1.0):
        whole = f", only whole numbers beyond {WHOLE_MAX:.0f}" if report.read > WHOLE_MAX else ""
        return "coordinate", f"reads positions or phases up to {report.read:.3g}{whole}"
    if op in ("Sub", "Add") and 0 < isolated.reference_max < CANCELLED * report.read:
        return "cancellation", f"reads up to {report.read:.3g}, leaves up to {isolated.reference_max:.3g}"
    return "", ""
