"""A plan and samples go in; errors, FP16 overflows and what each pin is worth come out, emulated or of an engine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from trt_helper.emulator.compare import compare_all
from trt_helper.emulator.emulator import Emulator, Watch
from trt_helper.emulator.kernels import EmulationError
from trt_helper.errors import BuildError, DisagreementError, RunError
from trt_helper.inputs.metric import Metric
from trt_helper.inputs.samples import Sample
from trt_helper.onnx_model.graph import Graph
from trt_helper.runners.oracle import RunnerOracle
from trt_helper.search.oracle import EmulatedOracle, PerSample
from trt_helper.values import Array, LayerName, Plan, Tensors, Tolerance, Trial, Verdict


class PlanRun:
    """One plan on its samples in the emulator, which it owns."""

    def __init__(
        self, graph: Graph, plan: Plan, samples: Sequence[Sample], expected: Sequence[Tensors], tolerance: Tolerance
    ) -> None:
        self.graph, self.plan, self.samples, self.expected = graph, plan, samples, expected
        self.tolerance = tolerance
        self.pins = pins_of(graph, plan)
        self.overflow: dict[LayerName, int] = {}  # finite values that FP16 made infinite, in topological order
        self.found: list[Tensors] = []
        self.errors: PerSample = ()
        self._oracle = EmulatedOracle(Emulator(graph), samples, expected, tolerance)
        self.trial = self._judge()

    def _judge(self) -> Trial:
        counts: list[Counter[LayerName]] = [Counter() for _ in self.samples]

        def watching(index: int) -> Watch:
            def watch(layer: str, exact: Array, half: Array) -> None:
                if half is not exact and (infinite := np.isinf(half)).any():
                    counts[index][layer] += int(np.count_nonzero(infinite & np.isfinite(exact)))

            return watch

        try:
            self.found = self._oracle.run(self.plan, watching)
        except EmulationError as error:
            return Trial(self.plan, Verdict.UNRESOLVED, why=error.message)
        total = sum(counts, Counter())
        self.overflow = {layer.name: total[layer.name] for layer in self.graph.layers if total[layer.name]}
        trial = self._oracle.judge_outputs(self.plan, self.found)
        self.errors = self._oracle.per_sample[self.plan]
        return trial

    def passes_without(self, name: LayerName, metric: Metric | None) -> bool:
        """Whether the plan is accurate with this pin taken out, too; the worst sample is asked first."""
        plan = without(self.plan, name)
        first = self.trial.sample
        order = [first, *(index for index in range(len(self.samples)) if index != first)]
        try:
            if metric:
                found = [self._oracle.emulator.run(plan, sample.feed) for sample in self.samples]
                return metric.figure(self.expected, found) >= metric.threshold
            return all(self._sample_passes(plan, index) for index in order)
        except EmulationError:
            return False

    def _sample_passes(self, plan: Plan, index: int) -> bool:
        found = self._oracle.emulator.run(plan, self.samples[index].feed)
        return all(e.passes(self.tolerance) for e in compare_all(found, self.expected[index], self.tolerance))


class EnginePlanRun:
    """One plan on its samples, as an engine or as a typed model on a GPU. Nobody sees where FP16 overflows in there.

    Raises BuildError and RunError where there is no verdict, DisagreementError where repeats disagree about it.
    """

    overflow: Mapping[LayerName, int] | None = None

    def __init__(self, oracle: RunnerOracle, plan: Plan) -> None:
        self.plan, self._oracle = plan, oracle
        self.pins = pins_of(oracle.graph, plan)
        self.trial, self.found = oracle.run(plan)
        self.errors = oracle.per_sample[plan]
        if self.trial.verdict is Verdict.UNRESOLVED:
            raise DisagreementError(self.trial.why, fix="raise --repeats to see how far, or loosen the tolerance")

    def passes_without(self, name: LayerName, metric: Metric | None) -> bool:
        """Whether the plan is accurate with this pin taken out, too; that takes an engine of its own."""
        try:
            trial, found = self._oracle.run(without(self.plan, name))
        except (BuildError, RunError):
            return False
        if metric:
            return metric.figure(self._oracle.references, found) >= metric.threshold
        return trial.verdict is Verdict.PASS


def pins_of(graph: Graph, plan: Plan) -> tuple[LayerName, ...]:
    """The layers that a plan pins or leaves in BF16, in topological order."""
    return tuple(name for name in graph.candidates if name in plan.fp32 | plan.bf16)


def without(plan: Plan, name: LayerName) -> Plan:
    """The plan with one pin less."""
    return Plan(plan.fp32 - {name}, plan.bf16 - {name})
