"""The loop: a strategy's plans go to an oracle, its trials back. It has no options."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from trt_helper.search.strategy import Stop, Strategy, Try
from trt_helper.values import Plan, Trial

Oracle = Callable[[Plan], Trial]


def drive(strategy: Strategy, oracle: Oracle) -> Iterator[Try | Trial | Stop]:
    """Run a strategy to its end, yielding each decision and each trial as it happens.

    A plan that was tried before is answered from memory.
    """
    tried: dict[Plan, Trial] = {}
    trial: Trial | None = None
    while True:
        try:
            decision = next(strategy) if trial is None else strategy.send(trial)
        except StopIteration as end:
            yield end.value
            return
        if decision.plan not in tried:
            yield decision
            tried[decision.plan] = oracle(decision.plan)
            yield tried[decision.plan]
        trial = tried[decision.plan]
