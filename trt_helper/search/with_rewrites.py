"""A graph, samples and kinds of cures go in; the smallest plan for the cured graph comes out.

Cures cost nothing at run time, so they come before pins, and every one has to earn its place: it must leave
the FP32 result within the tolerance, and the plan must fail without it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from trt_helper.emulator.causes import cause
from trt_helper.inputs.references import references
from trt_helper.inputs.samples import Sample
from trt_helper.onnx_model.graph import Graph, read_graph
from trt_helper.onnx_model.rewrites import find
from trt_helper.search.locate import Budget, Located, label, locate
from trt_helper.search.oracle import emulated
from trt_helper.values import Plan, Rewrite, Tolerance, Trial, Verdict

UNLIMITED = Budget()
RANGE = frozenset(("overflow", "underflow", "constant"))  # causes that BF16 may cure: it has the range of FP32


def locate_with_rewrites(
    graph: Graph,
    samples: Sequence[Sample],
    tolerance: Tolerance,
    kinds: Collection[str],
    *,
    budget: Budget = UNLIMITED,
    on_graph: Callable[[Graph], None] = lambda _graph: None,
    **how: Any,
) -> Located:
    """`locate`, with cures of `kinds` (see `values.CURES`) before pins; without "pins" among them nothing is pinned.

    `how` is what else `locate` takes; `on_graph` hears of each graph before it is searched. Every cure is judged on
    all samples. Raises ControlError when the model in FP32 does not pass.
    """
    started = time.monotonic()
    if "pins" not in kinds:
        budget = replace(budget, pins=0)
    bench = _Bench(graph, samples, tolerance, how)

    def search(rewrites: tuple[Rewrite, ...]) -> Located:
        on_graph(bench.rewritten(rewrites))
        graph = bench.rewritten(rewrites)
        return locate(graph, samples, tolerance, budget=budget, expected=bench.expected, **how)

    nothing = bench.judge(graph, Plan(), "no cure, no layer pinned")
    rewrites = () if nothing.verdict is Verdict.PASS else bench.sound(find(graph.model.graph, kinds))
    located = search(rewrites)
    needed = {rewrite: bench.without(located, rewrite) for rewrite in rewrites}
    if any(trial.verdict is Verdict.PASS for trial in needed.values()):
        rewrites = bench.fewest(located, rewrites)
        bench.count(located)
        located = search(rewrites)
        needed = {rewrite: bench.without(located, rewrite) for rewrite in rewrites}
    if "bf16" in kinds and located.after.verdict is Verdict.PASS:
        located = bench.in_bf16(located)
    return replace(
        located,
        before=nothing,
        without_rewrite=needed,
        trials=(*located.trials, *bench.trials),
        reasons=(*located.reasons, *bench.reasons),
        inferences=located.inferences + bench.inferences,
        seconds=time.monotonic() - started,
    )


class _Bench:
    """Owns the emulators of the graph as it was and as cures change it."""

    def __init__(self, graph: Graph, samples: Sequence[Sample], tolerance: Tolerance, how: dict[str, Any]) -> None:
        self.graph, self.samples, self.journal = graph, samples, how.get("journal")
        self.expected = references(graph, samples)
        given: Any = {
            "samples": samples,
            "references": self.expected,
            "tolerance": tolerance,
            "metric": how.get("metric"),
        }
        self._oracle: Callable[[Graph], Any] = partial(how.get("oracle") or emulated, **given)
        self.trials: list[Trial] = []
        self.reasons: list[str] = []  # why each of them was made
        self.inferences = len(samples)
        self._graphs: dict[tuple[Rewrite, ...], Graph] = {(): graph}
        self._oracles: dict[tuple[Rewrite, ...], Any] = {}

    def rewritten(self, rewrites: tuple[Rewrite, ...]) -> Graph:
        """The graph as these cures make it."""
        if rewrites not in self._graphs:
            self._graphs[rewrites] = read_graph(self.graph.source, rewrites)
        return self._graphs[rewrites]

    def judge(self, graph: Graph, plan: Plan, because: str) -> Trial:
        """Judge a plan on all samples."""
        if graph.rewrites not in self._oracles:
            self._oracles[graph.rewrites] = self._oracle(graph)
        judge = self._oracles[graph.rewrites].judge
        if self.journal is not None:
            judge = self.journal.remember(judge, label(graph, range(len(self.samples))))
        self.trials.append(judge(plan))
        self.reasons.append(because)
        self.inferences += len(self.samples)
        return self.trials[-1]

    def count(self, located: Located) -> None:
        """Keep the trials of a search whose answer does not stand."""
        self.trials += located.trials
        self.reasons += located.reasons
        self.inferences += located.inferences

    def sound(self, rewrites: tuple[Rewrite, ...]) -> tuple[Rewrite, ...]:
        """Those cures that leave the FP32 result as it was."""

        def is_sound(some: tuple[Rewrite, ...]) -> bool:
            graph = self.rewritten(some)
            return (
                self.judge(graph, graph.all_pinned(), f"{len(some)} cures, every layer pinned").verdict is Verdict.PASS
            )

        if not rewrites or is_sound(rewrites):
            return rewrites
        return tuple(rewrite for rewrite in rewrites if len(rewrites) > 1 and is_sound((rewrite,)))

    def without(self, located: Located, rewrite: Rewrite) -> Trial:
        """The plan on the graph without one of its cures."""
        return self._with(located, tuple(other for other in located.graph.rewrites if other != rewrite))

    def _with(self, located: Located, rewrites: tuple[Rewrite, ...]) -> Trial:
        graph = self.rewritten(rewrites)
        plan = Plan(located.plan.fp32 & frozenset(graph.candidates))
        return self.judge(graph, plan, f"the plan with {len(rewrites)} of {len(located.graph.rewrites)} cures")

    def fewest(self, located: Located, rewrites: tuple[Rewrite, ...]) -> tuple[Rewrite, ...]:
        """Take cures out as long as the plan passes without them."""
        for rewrite in rewrites:
            rest = tuple(other for other in rewrites if other != rewrite)
            if self._with(located, rest).verdict is Verdict.PASS:
                rewrites = rest
        return rewrites

    def in_bf16(self, located: Located) -> Located:
        """Pins whose trouble is range, in BF16 where that passes; then no pin that is not needed any longer."""
        graph, plan, after = located.graph, located.plan, located.after
        for report in located.layers:
            name = report.layer.name
            if name in plan.fp32 and cause(report)[0] in RANGE:
                trial = self.judge(graph, Plan(plan.fp32 - {name}, plan.bf16 | {name}), f"{name} in BF16")
                if trial.verdict is Verdict.PASS:
                    plan, after = trial.plan, trial
        proven = plan == located.plan
        while not proven:
            proven = True
            for name in sorted(plan.fp32 | plan.bf16):
                trial = self.judge(graph, Plan(plan.fp32 - {name}, plan.bf16 - {name}), f"without {name}")
                if trial.verdict is Verdict.PASS:
                    plan, after, proven = trial.plan, trial, False
                    break
        return replace(located, plan=plan, after=after)
