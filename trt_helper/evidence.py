"""One walk over the samples goes in; what FP16 does to each layer, and why, comes out.

Evidence explains and orders; it decides nothing. Integer tensors are never judged by size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from trt_helper.compare import compare, worst
from trt_helper.emulate import Emulator, Step
from trt_helper.kernels import Array
from trt_helper.values import LayerReport, Plan, Statistic, TensorError, TensorName, Tolerance

HALF_MAX = 65504.0  # largest finite half
WHOLE_MAX = 2048.0  # beyond it a half cannot hold every whole number (11 bits of significand)
FINE = 2.0**-8  # relative isolated error; plain rounding of one operation stays below it
CANCELLED = 2.0**-5  # an output this much smaller than what was read has lost five bits or more
DISCONTINUOUS = frozenset(("Ceil", "Floor", "Mod", "Round", "Sin", "Cos", "Tan", "Cast", "GridSample"))


def survey(
    emulator: Emulator,
    plan: Plan,
    feeds: Sequence[Mapping[TensorName, Array]],
    tolerance: Tolerance,
    on_layer: Callable[[], None] = lambda: None,
) -> tuple[LayerReport, ...]:
    """Accumulated and isolated error of every layer under `plan`, each on its worst sample."""
    reports: tuple[LayerReport, ...] = ()
    for feed in feeds:
        found = []
        peaks = {name: _peak(array) for name, array in feed.items()}
        for step in emulator.walk(plan, feed):
            read = max((peaks.get(name, 0.0) for name in step.layer.inputs), default=0.0)
            here = {name: _peak(array) for name, array in step.reference.items()}
            away = emulator.rounded_away(step.layer.name)
            found.append(_report(step, tolerance, (read, max(here.values(), default=0.0)), away))
            peaks.update(here)
            on_layer()
        reports = tuple(map(_worse(tolerance), reports, found)) if reports else tuple(found)
    return reports


def _report(step: Step, tolerance: Tolerance, peaks: tuple[float, float], weights: tuple[int, int]) -> LayerReport:
    accumulated = _worst_output(step.accumulated, step.reference, tolerance)
    together = step.isolated is step.accumulated
    isolated = accumulated if together else _worst_output(step.isolated, step.reference, tolerance)
    overflow = underflow = 0
    for name, reference in step.reference.items():
        alone = step.isolated[name]
        if alone is not reference and reference.dtype.kind == "f" and alone.shape == reference.shape:
            overflow += int(np.count_nonzero(np.isfinite(reference) & ~np.isfinite(alone)))
            underflow += int(np.count_nonzero((reference != 0) & (alone == 0)))
    return LayerReport(
        layer=step.layer,
        accumulated=accumulated,
        isolated=isolated,
        overflow=overflow,
        underflow=underflow,
        read=peaks[0],
        written=peaks[1],
        weights_overflow=weights[0],
        weights_underflow=weights[1],
    )


def _peak(array: Array) -> float:
    """Largest finite magnitude of a float tensor; 0 for any other."""
    if array.dtype != np.float32 or not array.size:
        return 0.0
    peak = float(np.abs(array).max())
    return peak if np.isfinite(peak) else float(np.abs(array, where=np.isfinite(array), out=np.zeros_like(array)).max())


def _worst_output(
    found: Mapping[TensorName, Array], reference: Mapping[TensorName, Array], tolerance: Tolerance
) -> TensorError:
    sampled = tolerance.stat is not Statistic.MEDIAN
    errors = (compare(name, found[name], array, tolerance, sampled=sampled) for name, array in reference.items())
    return worst(errors, tolerance)


def _worse(tolerance: Tolerance) -> Callable[[LayerReport, LayerReport], LayerReport]:
    def pick(a: LayerReport, b: LayerReport) -> LayerReport:
        return LayerReport(
            layer=a.layer,
            accumulated=worst((a.accumulated, b.accumulated), tolerance),
            isolated=worst((a.isolated, b.isolated), tolerance),
            overflow=max(a.overflow, b.overflow),
            underflow=max(a.underflow, b.underflow),
            read=max(a.read, b.read),
            written=max(a.written, b.written),
            weights_overflow=a.weights_overflow,
            weights_underflow=a.weights_underflow,
        )

    return pick


def cause(report: LayerReport) -> tuple[str, str]:
    """What FP16 does to this layer in one word, and the value that shows it; both empty when it does nothing."""
    isolated = report.isolated
    for name, value in (_by_weights(report), _by_range(report), _by_difference(report)):
        if name:
            return name, value
    if isolated.max == 0:
        return "", ""
    return "rounding", f"off by {isolated.max:.2g} where values reach {isolated.spread:.3g}"


def _by_weights(report: LayerReport) -> tuple[str, str]:
    if report.weights_overflow:
        return "constant", f"{report.weights_overflow} of its weights pass {HALF_MAX:.0f}"
    if report.weights_underflow and report.isolated.max > FINE * report.isolated.spread:
        return "underflow", f"{report.weights_underflow} of its weights become 0"
    return "", ""


def _by_range(report: LayerReport) -> tuple[str, str]:
    isolated = report.isolated
    peak = max(report.read, report.written)
    if report.overflow or isolated.non_finite or peak > HALF_MAX:
        return "overflow", f"values up to {peak:.3g}, FP16 ends at {HALF_MAX:.0f}"
    if report.underflow and report.underflow >= isolated.total // 2:
        shown = f"{report.underflow} of {isolated.total} results become 0, the largest is {isolated.spread:.3g}"
        return "underflow", shown
    return "", ""


def _by_difference(report: LayerReport) -> tuple[str, str]:
    isolated, op = report.isolated, report.layer.op
    if op in DISCONTINUOUS and report.read > 1 and isolated.max > FINE * max(isolated.spread, 1.0):
        whole = f", only whole numbers beyond {WHOLE_MAX:.0f}" if report.read > WHOLE_MAX else ""
        return "coordinate", f"reads positions or phases up to {report.read:.3g}{whole}"
    if op in ("Sub", "Add") and 0 < isolated.spread < CANCELLED * report.read:
        return "cancellation", f"reads up to {report.read:.3g}, leaves up to {isolated.spread:.3g}"
    return "", ""
