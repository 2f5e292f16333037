"""A plan and samples go in; errors, FP16 overflows and what each pin is worth come out, in the emulator."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from trt_helper.compare import compare_all
from trt_helper.emulate import Emulator, Values
from trt_helper.graph import Graph
from trt_helper.kernels import Array, EmulationError
from trt_helper.metric import Metric
from trt_helper.oracle import judge
from trt_helper.samples import Sample
from trt_helper.values import LayerName, Plan, TensorError, Tolerance, Trial, Verdict


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
        self.errors: list[tuple[TensorError, ...]] = []  # of each sample
        self._emulator = Emulator(graph)
        self.trial = self._judge()

    def _judge(self) -> Trial:
        counts: list[Counter[LayerName]] = [Counter() for _ in self.samples]

        def emulate(index: int) -> Values:
            def watch(layer: str, exact: Array, half: Array) -> None:
                if half is not exact and (infinite := np.isinf(half)).any():
                    counts[index][layer] += int(np.count_nonzero(infinite & np.isfinite(exact)))

            return self._emulator.run(self.plan, self.samples[index].feed, watch)

        try:
            with ThreadPoolExecutor(min(len(self.samples), os.cpu_count() or 1)) as pool:
                self.found = list(pool.map(emulate, range(len(self.samples))))
        except EmulationError as error:
            return Trial(self.plan, Verdict.UNRESOLVED, why=error.message)
        total = sum(counts, Counter())
        self.overflow = {layer.name: total[layer.name] for layer in self.graph.layers if total[layer.name]}
        pairs = zip(self.found, self.expected, strict=True)
        self.errors = [compare_all(outputs, expected, self.tolerance) for outputs, expected in pairs]
        return judge(self.plan, self.errors, self.tolerance)

    def passes_without(self, name: LayerName, metric: Metric | None) -> bool:
        """Whether the plan is accurate with this pin taken out, too; the worst sample is asked first."""
        plan = Plan(self.plan.fp32 - {name}, self.plan.bf16 - {name})
        first = self.trial.sample
        order = [first, *(index for index in range(len(self.samples)) if index != first)]
        try:
            if metric:
                found = [self._emulator.run(plan, sample.feed) for sample in self.samples]
                return metric.figure(self.expected, found) >= metric.threshold
            return all(self._sample_passes(plan, index) for index in order)
        except EmulationError:
            return False

    def _sample_passes(self, plan: Plan, index: int) -> bool:
        found = self._emulator.run(plan, self.samples[index].feed)
        return all(e.passes(self.tolerance) for e in compare_all(found, self.expected[index], self.tolerance))
