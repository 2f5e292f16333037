"""One walk over the samples goes in, what FP16 does to each layer comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from trt_helper.compare import compare, worst
from trt_helper.emulate import Emulator, Step
from trt_helper.kernels import Array
from trt_helper.values import LayerReport, Plan, TensorError, TensorName, Tolerance

HALF_MAX = 65504.0
FINE = 2.0**-8  # relative isolated error; plain rounding of one operation stays below it


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
        for step in emulator.walk(plan, feed):
            found.append(_report(step, tolerance))
            on_layer()
        reports = tuple(map(_worse(tolerance), reports, found)) if reports else tuple(found)
    return reports


def _report(step: Step, tolerance: Tolerance) -> LayerReport:
    overflow = underflow = 0
    for name, reference in step.reference.items():
        alone = step.isolated[name]
        if alone is not reference and reference.dtype.kind == "f" and alone.shape == reference.shape:
            overflow += int(np.count_nonzero(np.isfinite(reference) & ~np.isfinite(alone)))
            underflow += int(np.count_nonzero((reference != 0) & (alone == 0)))
    return LayerReport(
        step.layer,
        _worst_output(step.accumulated, step.reference, tolerance),
        _worst_output(step.isolated, step.reference, tolerance),
        overflow,
        underflow,
    )


def _worst_output(
    found: Mapping[TensorName, Array], reference: Mapping[TensorName, Array], tolerance: Tolerance
) -> TensorError:
    return worst((compare(name, found[name], array, tolerance) for name, array in reference.items()), tolerance)


def _worse(tolerance: Tolerance) -> Callable[[LayerReport, LayerReport], LayerReport]:
    def pick(a: LayerReport, b: LayerReport) -> LayerReport:
        return LayerReport(
            a.layer,
            worst((a.accumulated, b.accumulated), tolerance),
            worst((a.isolated, b.isolated), tolerance),
            max(a.overflow, b.overflow),
            max(a.underflow, b.underflow),
        )

    return pick


def cause(report: LayerReport) -> str:
    """What FP16 does to this layer, in one word; empty when it does nothing."""
    isolated = report.isolated
    if report.overflow or isolated.non_finite or isolated.spread > HALF_MAX:
        return "overflow"
    if report.underflow and report.underflow >= isolated.total // 2:
        return "underflow"
    if isolated.max == 0:
        return ""
    if report.layer.op in ("Sub", "Add") and isolated.max > FINE * max(isolated.spread, 1e-30):
        return "cancellation"
    return "rounding"
