"""The search with rewrites of the graph: they cost next to nothing at run time, so they are tried before pins.

Every rewrite has to be sound (the FP32 result stays within the tolerance) and needed (the plan fails without it). BF16
comes last: pins whose trouble is range compute in BF16 where that passes.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from trt_helper.emulator.causes import cause
from trt_helper.onnx_model.graph import Graph, read_graph
from trt_helper.onnx_model.rewrites import find, raised_further
from trt_helper.search.graph_search import SearchTask, search_graph
from trt_helper.search.journal import label
from trt_helper.search.located import Located
from trt_helper.search.oracle import Oracle
from trt_helper.values import Plan, Rewrite, Trial, Verdict

RANGE = frozenset(  # causes that BF16 may remove: it has the range of FP32
    ("overflow", "underflow", "constant", "mask", "division", "logarithm", "epsilon")
)


def search_with_rewrites(graph: Graph, task: SearchTask, kinds: Collection[str]) -> Located:
    """Find the smallest plan, with rewrites of the graph before pins.

    Args:
        graph: the graph as it was read.
        task: what the search is judged by; every rewrite is judged on all samples.
        kinds: what may be done, of `values.REWRITE_KINDS`. Without "pins" and "bf16" nothing is pinned.

    Raises:
        ControlError: the model in FP32 does not pass.
    """
    if not {"pins", "bf16"} & set(kinds):  # what is put into BF16 was a pin before
        task = replace(task, budget=replace(task.budget, pins=0))
    trials = _RewriteTrials(graph, task)
    nothing = trials.judge(graph, Plan(), "no cure, no layer pinned")
    found = () if nothing.verdict is Verdict.PASS else find(graph.model.graph, kinds)
    rewrites, located = trials.search(found)
    needed = {rewrite: trials.without(located, rewrite) for rewrite in rewrites}
    if any(trial.verdict is Verdict.PASS for trial in needed.values()):
        rewrites = trials.fewest(located, rewrites)
        trials.add(located)
        located = search_graph(trials.rewritten(rewrites), task)
        needed = {rewrite: trials.without(located, rewrite) for rewrite in rewrites}
    if "bf16" in kinds and located.after.verdict is Verdict.PASS:
        located = trials.in_bf16(located)
    return replace(
        located,
        before=nothing,
        without_rewrite=needed,
        trials=(*located.trials, *trials.trials),
        inferences=located.inferences + trials.inferences,
    )


class _RewriteTrials:
    """The trials that decide about rewrites, on all samples.

    Attributes:
        trials: in order.
        inferences: forward passes of the whole model, one per trial and sample.
    """

    def __init__(self, graph: Graph, task: SearchTask) -> None:
        self.trials: list[Trial] = []
        self.inferences = 0
        self._graph = graph
        self._task = task
        self._graphs: dict[tuple[Rewrite, ...], Graph] = {(): graph}
        self._oracles: dict[tuple[Rewrite, ...], Oracle] = {}

    def rewritten(self, rewrites: tuple[Rewrite, ...]) -> Graph:
        """The graph with these rewrites."""
        if rewrites not in self._graphs:
            self._graphs[rewrites] = read_graph(self._graph.source, rewrites)
        return self._graphs[rewrites]

    def judge(self, graph: Graph, plan: Plan, because: str) -> Trial:
        """Judge a plan on all samples."""
        criteria = self._task.criteria
        if graph.rewrites not in self._oracles:
            self._oracles[graph.rewrites] = self._task.make_oracle(graph, criteria)
        oracle, samples = self._oracles[graph.rewrites], criteria.every_sample
        key = label(samples, graph.rewrites), plan
        trial = self._task.journal.judgement(key, lambda: oracle.judge(plan, samples)).trial
        self.trials.append(replace(trial, because=because))
        self.inferences += len(samples)
        return trial

    def add(self, located: Located) -> None:
        """Add the trials of a search whose answer does not stand."""
        self.trials += located.trials
        self.inferences += located.inferences

    def sound(self, rewrites: tuple[Rewrite, ...]) -> tuple[Rewrite, ...]:
        """The rewrites that leave the FP32 result within the tolerance."""

        def is_sound(some: tuple[Rewrite, ...]) -> bool:
            graph = self.rewritten(some)
            trial = self.judge(graph, graph.all_pinned(), f"{len(some)} cures, every layer pinned")
            return trial.verdict is Verdict.PASS

        if not rewrites or is_sound(rewrites):
            return rewrites
        return tuple(rewrite for rewrite in rewrites if len(rewrites) > 1 and is_sound((rewrite,)))

    def search(self, found: tuple[Rewrite, ...]) -> tuple[tuple[Rewrite, ...], Located]:
        """Those of `found` that are sound, and the search with them.

        Where range is still the trouble of a pin, or no plan passes, and epsilons were raised, they are raised further,
        if that leaves fewer pins.
        """
        rewrites = self.sound(found)
        located = search_graph(self.rewritten(rewrites), self._task)
        further = raised_further(found)
        if further == found or not _lacks_range(located):
            return rewrites, located
        further = self.sound(further)
        other = search_graph(self.rewritten(further), self._task)
        if _pins(other) < _pins(located):
            rewrites, located, other = further, other, located
        self.add(other)
        return rewrites, located

    def without(self, located: Located, rewrite: Rewrite) -> Trial:
        """The plan on the graph without one of its rewrites."""
        return self._with(located, tuple(other for other in located.graph.rewrites if other != rewrite))

    def _with(self, located: Located, rewrites: tuple[Rewrite, ...]) -> Trial:
        graph = self.rewritten(rewrites)
        plan = Plan(located.plan.fp32 & frozenset(graph.candidates))
        return self.judge(graph, plan, f"the plan with {len(rewrites)} of {len(located.graph.rewrites)} cures")

    def fewest(self, located: Located, rewrites: tuple[Rewrite, ...]) -> tuple[Rewrite, ...]:
        """Take out rewrites as long as the plan passes without them."""
        for rewrite in rewrites:
            rest = tuple(other for other in rewrites if other != rewrite)
            if self._with(located, rest).verdict is Verdict.PASS:
                rewrites = rest
        return rewrites

    def in_bf16(self, located: Located) -> Located:
        """Compute pins whose trouble is range in BF16 where that passes; then take out pins that are not needed."""
        graph, plan, after = located.graph, located.plan, located.after
        for report in located.layers:
            name = report.layer.name
            if name in plan.fp32 and name in graph.takes_bf16 and cause(report)[0] in RANGE:
                trial = self.judge(graph, Plan(plan.fp32 - {name}, plan.bf16 | {name}), f"{name} in BF16")
                if trial.verdict is Verdict.PASS:
                    plan, after = trial.plan, trial
        proven = plan == located.plan
        while not proven:
            proven = True
            for name in sorted(plan.kept):
                trial = self.judge(graph, plan.without(name), f"without {name}")
                if trial.verdict is Verdict.PASS:
                    plan, after, proven = trial.plan, trial, False
                    break
        return replace(located, plan=plan, after=after)


def _lacks_range(located: Located) -> bool:
    """Whether a pin's trouble is range, or there is no plan that passes."""
    causes = {cause(report)[0] for report in located.layers if report.layer.name in located.plan.fp32}
    return located.after.verdict is not Verdict.PASS or not causes.isdisjoint(RANGE)


def _pins(located: Located) -> tuple[bool, int]:
    """Whether the plan fails, and its number of pins: less is better."""
    return located.after.verdict is not Verdict.PASS, len(located.plan)
