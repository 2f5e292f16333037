"""The search: names of layers and judged trials go in, the next plan to try comes out, or the end.

A strategy is a generator. Whoever drives it evaluates each plan that it yields and sends the trial
back: an emulator, an engine on a GPU, a journal that is being replayed, or a lambda in a test.

Nothing assumes monotony. Precision is not monotone: a plan that keeps more layers in FP32 can be worse,
because roundings that cancelled no longer do. A verdict speaks for its own plan only, and `minimal`
means that each single pin was taken out of the final plan and the result did not pass.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from trt_helper.values import LayerName, Plan, Trial, Verdict


@dataclass(frozen=True, slots=True)
class Try:
    """Evaluate this plan next."""

    plan: Plan
    because: str


@dataclass(frozen=True, slots=True)
class Stop:
    """The search is over. `best` passed, unless it is None."""

    best: Plan | None
    minimal: bool
    because: str


Strategy = Generator[Try, Trial, Stop]
Rung = tuple[Plan, float]  # a plan and its foreseen error over tolerance


@dataclass(frozen=True, slots=True)
class Guess:
    """What the evidence says before anything is tried; it orders the search and decides nothing.

    `ladder` are nested plans, from the empty one to everything pinned. `without(plan)` are the names in
    `plan`, the one least missed first.
    """

    ladder: Sequence[Rung]
    without: Callable[[Plan], Sequence[LayerName]]


def smallest(layers: Sequence[LayerName], guess: Callable[[], Guess]) -> Strategy:
    """The smallest set of pins that passes, as far as single pins can be taken out.

    1. Controls: everything pinned has to pass, or precision is not the cause; nothing pinned may pass.
    2. Climb: find a low rung of the foreseen ladder that passes.
    3. Shrink: take pins out until every single one is needed.

    `guess` is asked only when the controls say that there is something to find.
    """
    everything = Plan.of(layers)
    if not (yield from _passes(everything, "control: every layer pinned")):
        return Stop(None, minimal=False, because="the model with every layer in FP32 does not pass")
    if (yield from _passes(Plan(), "control: no layer pinned")):
        return Stop(Plan(), minimal=True, because="the model passes in FP16")
    evidence = guess()
    found = yield from climb(evidence.ladder, everything)
    best = yield from shrink(found, evidence.without)
    return Stop(best, minimal=True, because="every pin was taken out once more, and each is needed")


def climb(ladder: Sequence[Rung], everything: Plan) -> Generator[Try, Trial, Plan]:
    """A passing rung whose lower neighbours did not pass where they were tried.

    Starts where the error is foreseen to meet the tolerance, gallops by factors of two of the foreseen
    error, then halves the gap between the rung that failed and the one that passed.
    """
    rungs = [plan for plan, _ in ladder if len(plan)]
    foreseen = [error for plan, error in ladder if len(plan)]
    low, high = -1, len(rungs)  # what failed (the empty plan did), what passed (everything did)
    allowed = 1.0
    here = _first_below(foreseen, allowed)
    while low < here < high:
        if (yield from _passes(rungs[here], f"{len(rungs[here])} pins, foreseen to be enough")):
            high, allowed = here, allowed * 2
        else:
            low, allowed = here, allowed / 2
        if low >= 0 and high < len(rungs):
            break
        target = _first_below(foreseen, allowed)
        here = min(target, high - 1) if high < len(rungs) else max(target, low + 1)
    while high - low > 1:
        here = (low + high) // 2
        if (yield from _passes(rungs[here], f"{len(rungs[here])} pins, between too few and enough")):
            high = here
        else:
            low = here
    return rungs[high] if high < len(rungs) else everything


def _first_below(foreseen: Sequence[float], allowed: float) -> int:
    return next((index for index, error in enumerate(foreseen) if error <= allowed), len(foreseen) - 1)


def shrink(plan: Plan, without: Callable[[Plan], Sequence[LayerName]]) -> Generator[Try, Trial, Plan]:
    """Take out pins, the least missed first, until taking out any single one does not pass.

    A success makes everything learned about larger plans worthless, so all other pins have their turn
    again; those that failed already wait until the end.
    """
    needed: list[LayerName] = []  # failed in a larger plan
    proven: set[LayerName] = set()  # failed in this plan
    while len(proven) < len(plan):
        order = [name for name in without(plan) if name not in needed]
        name = next(iter(order), None) or next(name for name in needed if name not in proven)
        rest = Plan(plan.fp32 - {name})
        if (yield from _passes(rest, f"without {name}")):
            plan, proven = rest, set()
            needed = [other for other in needed if other != name]
        else:
            proven.add(name)
            needed = [other for other in needed if other != name] + [name]
    return plan


def _passes(plan: Plan, because: str) -> Generator[Try, Trial, bool]:
    trial = yield Try(plan, because)
    return trial.verdict is Verdict.PASS
