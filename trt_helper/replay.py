"""A plan and samples go in; errors, FP16 overflows and what each pin is worth come out, in the emulator."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from trt_helper.compare import compare_all
from trt_helper.emulate import Emulator, Values, Watch
from trt_helper.graph import Graph
from trt_helper.kernels import Array, EmulationError
from trt_helper.metric import Metric
from trt_helper.oracle import EmulatedOracle, PerSample
from trt_helper.samples import Sample
from trt_helper.values import LayerName, Plan, Tolerance, Trial, Verdict


class Replay:
    """One plan on its samples; owns the emulator."""

    def __init__(
        self, graph: Graph, plan: Plan, samples: Sequence[Sample], expected: Sequence[Values], tolerance: Tolerance
    ) -> None:
        self.graph, self.plan, self.samples, self.expected = graph, plan, samples, expected
        self.tolerance = tolerance
        pinned = plan.fp32 | plan.bf16
        self.pins = tuple(name for name in graph.candidates if name in pinned)  # in topological order
        self.overflow: dict[LayerName, int] = {}  # finite values that FP16 made infinite, in topological order
        self.found: list[Values] = []
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
        trial = self._oracle.weigh(self.plan, self.found)
        self.errors = self._oracle.per_sample[self.plan]
        return trial

    def passes_without(self, name: LayerName, metric: Metric | None) -> bool:
        """Whether the plan is accurate with this pin taken out, too; the worst sample is asked first."""
        plan = Plan(self.plan.fp32 - {name}, self.plan.bf16 - {name})
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
