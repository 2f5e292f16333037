"""Judges and oracles made of functions, for tests of the search."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from trt_helper.search.journal import Journal
from trt_helper.search.oracle import EmulatedOracle, Judgement
from trt_helper.search.strategy import Stop, Strategy, Try, drive, no_plans
from trt_helper.values import Plan, Trial


class FunctionJudge:
    """Judges by a function from plans to trials, through a journal, and remembers what was tried."""

    def __init__(self, function: Callable[[Plan], Trial], journal: Journal | None = None) -> None:
        self.trials: dict[Plan, Trial] = {}
        self._function = function
        self._journal = journal or Journal()

    def known(self, plan: Plan) -> Trial | None:
        return self.trials.get(plan)

    def judge(self, decision: Try) -> Trial:
        plan = decision.plan
        self.trials[plan] = self._journal.judgement(("all", plan), lambda: Judgement(self._function(plan))).trial
        return self.trials[plan]


def driven(strategy: Strategy, function: Callable[[Plan], Trial]) -> Iterator[Try | Trial | Stop]:
    return drive(strategy, FunctionJudge(function))


def oracle_with(change: Callable[[Trial], Trial]):
    """A factory of emulated oracles whose trials are changed."""

    class Changed(EmulatedOracle):
        def judge(self, plan, samples, _speculative=no_plans):
            judgement = super().judge(plan, samples)
            return replace(judgement, trial=change(judgement.trial))

    def make(graph, criteria):
        from trt_helper.emulator.emulator import Emulator  # noqa: PLC0415

        return Changed(Emulator(graph), criteria)

    return make
