"""The result of a search."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from trt_helper.emulator.causes import cause
from trt_helper.emulator.partial_sums import PartialSum
from trt_helper.inputs.metric import Metric
from trt_helper.onnx_model.cost import Estimate, Shapes
from trt_helper.onnx_model.graph import Graph
from trt_helper.search.diagnosis import Kind
from trt_helper.system.versions import versions
from trt_helper.values import (
    IntermediateError,
    Layer,
    LayerName,
    LayerReport,
    PerSample,
    Plan,
    Reading,
    Rewrite,
    TensorError,
    Tolerance,
    Trial,
)

NOT_MEASURED = ("not measured", "the time limit was reached before")


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """The best plan of a size.

    Attributes:
        pins: its number of pins.
        predicted: its predicted error ratio.
        measured: the smallest error ratio of the trials of that size; None where none was tried.
    """

    pins: int
    predicted: float
    measured: float | None


@dataclass(frozen=True, eq=False)
class Located:
    """The answer of a search, and everything that was measured on the way.

    Attributes:
        graph: the graph that the plan is for, rewritten where the search found rewrites.
        tolerance: what plans were judged by.
        metric: what they were judged by instead, if anything.
        samples: the sources of all samples.
        held_out: the sources of those that were held out of the search to the end.
        plan: the answer.
        minimal: whether each single pin was taken out of the plan, and the result did not pass.
        because: why the search ended, in words.
        before: the trial of the plan that leaves everything in FP16, on all samples.
        after: the trial of the answer, on all samples.
        trials: every trial of the search, in order.
        layers: errors of every layer when everything is FP16; empty where nobody needs them.
        inferences: forward passes of the whole model.
        seconds: wall clock.
        warnings: in the order in which they were given.
        curve: the best plans by size.
        per_sample: errors of each sample under 'before' and 'after'; empty where they could not be computed.
        without_rewrite: for each rewrite of the graph the trial of the plan without it.
        shapes: shapes of all tensors, for the first sample.
        estimate: what the plan costs, for the first sample; None before the search has ended.
        runner: what judged the trials: 'emulate', or the name of a runner.
        intermediate_errors: errors of tensors between the kernels of an engine without pins; they decide nothing.
        diagnosis: what makes everything in FP16 fail on a runner; None where it passes, or where nothing else runs.
        by_reading: the trial of the answer by each reading of what kernels compute, on the sample that decides; one
            for which there was no time is missing.
        partial_sums: layers of the answer whose sums only kernels get right that accumulate in FP32.
        pins_by_one: with several readings, the number of pins that are enough by the first alone; else None.
        margin: the part of the tolerance that the search was allowed.
    """

    graph: Graph
    tolerance: Tolerance
    metric: Metric | None
    samples: tuple[str, ...]
    held_out: tuple[str, ...]
    plan: Plan
    minimal: bool
    because: str
    before: Trial
    after: Trial
    trials: tuple[Trial, ...]
    layers: tuple[LayerReport, ...]
    inferences: int
    seconds: float
    warnings: tuple[str, ...]
    curve: tuple[CurvePoint, ...]
    per_sample: Mapping[str, PerSample] = field(default_factory=dict)
    without_rewrite: Mapping[Rewrite, Trial] = field(default_factory=dict)
    shapes: Shapes = field(default_factory=dict)
    estimate: Estimate | None = None
    runner: str = "emulate"
    intermediate_errors: tuple[IntermediateError, ...] = ()
    diagnosis: Kind | None = None
    by_reading: Mapping[Reading, Trial] = field(default_factory=dict)
    partial_sums: tuple[PartialSum, ...] = ()
    pins_by_one: int | None = None
    margin: float = 1.0

    @property
    def pins(self) -> tuple[LayerName, ...]:
        """The plan's layers in FP32 and in BF16, in topological order."""
        return self.graph.in_order(self.plan.kept)

    @property
    def pinned_layers(self) -> tuple[Layer, ...]:
        """The layers of `pins`."""
        return tuple(layer for layer in self.graph.layers if layer.name in self.plan.kept)

    def cause(self, pin: LayerName) -> tuple[str, str]:
        """Why FP16 harms a pin, and what shows it; said to be not measured where there was no time for it."""
        report = next((report for report in self.layers if report.layer.name == pin), None)
        return cause(report) if report else NOT_MEASURED

    def without(self, name: LayerName) -> Trial | None:
        """The trial of the plan with this one pin taken out; None where there was none."""
        rest = self.plan.without(name)
        return next((trial for trial in self.trials if trial.plan == rest), None)


def evidence(located: Located) -> dict[str, Any]:
    """The `evidence` of the YAML: why each pin, errors before and after, runner, versions, samples."""
    metric = located.metric
    return {
        "runner": located.runner,
        **({"metric": {"function": metric.name, "threshold": metric.threshold}} if metric else {}),
        "samples": list(located.samples),
        "held-out": list(located.held_out),
        "trials": len(located.trials),
        "minimal": located.minimal,
        "before": {error.name: _statistics(error) for error in located.before.outputs},
        "after": {error.name: _statistics(error) for error in located.after.outputs},
        "layers": {pin.name: _pin_evidence(located, pin) for pin in located.pinned_layers},
        **({"kernels": readings_json(located)} if located.by_reading else {}),
        "versions": versions(),
    }


def readings_json(located: Located) -> dict[str, Any]:
    """The error of the answer by each reading, as a multiple of what is allowed."""
    return {
        reading.value: _four_digits(trial.error_ratio) if math.isfinite(trial.error_ratio) else "not finite"
        for reading, trial in located.by_reading.items()
    }


def _pin_evidence(located: Located, pin: Layer) -> dict[str, Any]:
    without = located.without(pin.name)
    return {
        "op": pin.op,
        "cause": ": ".join(located.cause(pin.name)),
        "max-error-without": _largest(without.outputs if without else ()),
    }


def _statistics(error: TensorError) -> dict[str, Any]:
    return {
        "max": _four_digits(error.max),
        "mean": _four_digits(error.mean),
        "median": _four_digits(error.median),
        "non-finite": error.non_finite,
    }


def _largest(outputs: Iterable[TensorError]) -> float | str | None:
    errors = list(outputs)
    if broken := [error.resized or "not finite" for error in errors if error.non_finite]:
        return broken[0]
    finite = [error.max for error in errors if math.isfinite(error.max)]
    return _four_digits(max(finite)) if finite else None


def _four_digits(number: float) -> float | None:
    return float(f"{number:.4g}") if math.isfinite(number) else None
