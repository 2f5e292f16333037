"""One plan run on its samples: its errors, where FP16 overflows, and whether it passes without a pin.

Emulated, or as what `convert` makes of it on a GPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from trt_helper.emulator.compare import compare_all
from trt_helper.emulator.emulator import Emulator, Watch
from trt_helper.emulator.kernels import EmulationError
from trt_helper.errors import BuildError, DisagreementError, RunError
from trt_helper.inputs.metric import Metric
from trt_helper.onnx_model.graph import Graph
from trt_helper.runners.oracle import RunnerOracle
from trt_helper.search.oracle import Criteria, EmulatedOracle
from trt_helper.values import Array, LayerName, PerSample, Plan, Reading, Tensors, Trial, Verdict


class PlanRun(Protocol):
    """One plan, run on every sample.

    Attributes:
        plan: the plan.
        pins: its layers in FP32 and BF16, in topological order.
        trial: the verdict by the tolerance.
        outputs: the outputs of each sample; empty where the plan could not be computed.
        per_sample: the errors of each sample, of each output.
        overflow: for each layer the number of finite values that FP16 made infinite, in topological order; None where
            that cannot be seen, in an engine.
    """

    @property
    def plan(self) -> Plan: ...
    @property
    def pins(self) -> tuple[LayerName, ...]: ...
    @property
    def trial(self) -> Trial: ...
    @property
    def outputs(self) -> Sequence[Tensors]: ...
    @property
    def per_sample(self) -> PerSample: ...
    @property
    def overflow(self) -> Mapping[LayerName, int] | None: ...

    def passes_without(self, name: LayerName, metric: Metric | None) -> bool:
        """Whether the plan also passes, by the metric if there is one, with this pin taken out."""


class EmulatedPlanRun:
    """A plan run on the emulator, by one reading of what kernels compute."""

    def __init__(self, graph: Graph, plan: Plan, criteria: Criteria, reading: Reading = Reading.TYPICAL) -> None:
        self.graph, self.plan, self.criteria = graph, plan, criteria
        self.pins = graph.in_order(plan.kept)
        self.overflow: dict[LayerName, int] = {}
        self.outputs: Sequence[Tensors] = ()
        self.per_sample: PerSample = ()
        self._emulator = Emulator(graph, reading=reading)
        self.trial = self._run()

    def _run(self) -> Trial:
        counts: list[Counter[LayerName]] = [Counter() for _ in self.criteria.samples]

        def watching(index: int) -> Watch:
            def watch(layer: str, exact: Array, half: Array) -> None:
                if half is not exact and (infinite := np.isinf(half)).any():
                    counts[index][layer] += int(np.count_nonzero(infinite & np.isfinite(exact)))

            return watch

        samples = self.criteria.every_sample
        try:
            self.outputs = EmulatedOracle(self._emulator, self.criteria).run(self.plan, samples, watching)
        except EmulationError as error:
            return Trial(self.plan, Verdict.UNRESOLVED, why=error.message)
        total = sum(counts, Counter())
        self.overflow = {layer.name: total[layer.name] for layer in self.graph.layers if total[layer.name]}
        judgement = self.criteria.judge(self.plan, self.outputs, samples)
        self.per_sample = judgement.per_sample
        return judgement.trial

    def passes_without(self, name: LayerName, metric: Metric | None) -> bool:
        """Whether the plan also passes with this pin taken out; the worst sample is tried first."""
        plan, criteria = self.plan.without(name), self.criteria
        first = self.trial.sample
        order = [first, *(index for index in criteria.every_sample if index != first)]
        try:
            if metric:
                outputs = [self._emulator.run(plan, sample.feed) for sample in criteria.samples]
                return metric.figure(criteria.references, outputs) >= metric.threshold
            return all(self._sample_passes(plan, index) for index in order)
        except EmulationError:
            return False

    def _sample_passes(self, plan: Plan, index: int) -> bool:
        outputs = self._emulator.run(plan, self.criteria.samples[index].feed)
        errors = compare_all(outputs, self.criteria.references[index], self.criteria.tolerance)
        return all(error.passes(self.criteria.tolerance) for error in errors)


class EnginePlanRun:
    """A plan run as an engine, or as a typed model, on a GPU.

    Raises:
        BuildError: the engine cannot be built.
        RunError: it cannot be run.
        DisagreementError: repeats disagree about the verdict.
    """

    overflow: Mapping[LayerName, int] | None = None

    def __init__(self, oracle: RunnerOracle, plan: Plan) -> None:
        self.plan, self._oracle = plan, oracle
        self.pins = oracle.graph.in_order(plan.kept)
        judgement, self.outputs = oracle.run(plan, oracle.criteria.every_sample)
        self.trial, self.per_sample = judgement.trial, judgement.per_sample
        if self.trial.verdict is Verdict.UNRESOLVED:
            raise DisagreementError(self.trial.why, fix="raise --repeats to see how far, or loosen the tolerance")

    def passes_without(self, name: LayerName, metric: Metric | None) -> bool:
        """Whether the plan also passes with this pin taken out; that takes an engine of its own."""
        criteria = self._oracle.criteria
        try:
            judgement, outputs = self._oracle.run(self.plan.without(name), criteria.every_sample)
        except (BuildError, RunError):
            return False
        if metric:
            return metric.figure(criteria.references, outputs) >= metric.threshold
        return judgement.trial.verdict is Verdict.PASS
