"""Measure the layer errors: the accumulated and the isolated error of every layer under a plan.

Layer errors explain the answer of the search and order its trials. They decide nothing: only the model's outputs do.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from trt_helper.emulator.compare import compare, worst
from trt_helper.emulator.emulator import Emulator, Step
from trt_helper.emulator.first_wrong import Watched, first_wrong
from trt_helper.emulator.readers import with_readers
from trt_helper.values import Array, LayerReport, Plan, Statistic, TensorError, TensorName, Tolerance, WrongElement


def measure_layers(
    emulator: Emulator,
    plan: Plan,
    feeds: Sequence[Mapping[TensorName, Array]],
    tolerance: Tolerance,
    on_layer: Callable[[], None] = lambda: None,
) -> tuple[LayerReport, ...]:
    """The accumulated and the isolated error of every layer under `plan`, each on its worst sample.

    Args:
        emulator: Of the graph to measure.
        plan: The layers in FP32 and in BF16. All others run in FP16.
        feeds: The samples, at least one.
        tolerance: Decides which output and which sample is the worst.
        on_layer: Called after each layer of each sample.

    Returns:
        One report per layer, in topological order. Medians of large tensors are taken from a sample of their
        elements, unless the tolerance is for the median.
    """
    reports: tuple[LayerReport, ...] = ()
    watched = Watched.of(emulator)
    for feed in feeds:
        found = []
        peaks = {name: _peak(array) for name, array in feed.items()}
        for step in emulator.walk(plan, feed):
            read = max((peaks.get(name, 0.0) for name in step.layer.inputs), default=0.0)
            here = {name: _peak(array) for name, array in step.reference.items()}
            rounded_away = emulator.rounded_away(step.layer.name)
            written = max(here.values(), default=0.0)
            report = _report(step, tolerance, (read, written), rounded_away)
            found.append(_explained(emulator, step, watched, report))
            peaks.update(here)
            on_layer()
        reports = tuple(map(_worse(tolerance), reports, found)) if reports else tuple(found)
    return with_readers(emulator.graph, reports)


def _explained(emulator: Emulator, step: Step, watched: Watched, report: LayerReport) -> LayerReport:
    """The report with the first element that goes wrong, and with who reads the layer's output as phases."""
    if report.isolated.max == 0 and not report.isolated.non_finite:
        return report
    lost = report.isolated.non_finite > 0 or report.overflow > 0
    return replace(
        report,
        first=first_wrong(emulator, step, watched, report.written, non_finite=lost),
        reader=next((watched.phases[name] for name in step.layer.outputs if name in watched.phases), ""),
    )


def _report(step: Step, tolerance: Tolerance, peaks: tuple[float, float], weights: tuple[int, int]) -> LayerReport:
    """The report of one layer on one sample.

    `peaks` are the largest magnitudes that it reads and writes in FP32. `weights` are the numbers of its weights
    that become infinite and 0 in FP16.
    """
    accumulated = _worst_output(step.accumulated, step.reference, tolerance)
    same = step.isolated is step.accumulated
    isolated = accumulated if same else _worst_output(step.isolated, step.reference, tolerance)
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
    """Largest finite magnitude of an FP32 tensor; 0 for any other type."""
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
    """A function that merges two reports of one layer: the worse error, the larger figure of each kind."""

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
            first=_worse_element(a.first, b.first),
            reader=a.reader or b.reader,
        )

    return pick


def _worse_element(a: WrongElement | None, b: WrongElement | None) -> WrongElement | None:
    """The element that becomes not finite, else the one with the larger error over its size."""
    if a is None or b is None:
        return a or b
    return max(a, b, key=_how_wrong)


def _how_wrong(element: WrongElement) -> float:
    if not math.isfinite(element.became):
        return math.inf
    return abs(element.became - element.reference) / max(abs(element.reference), sys.float_info.min)
