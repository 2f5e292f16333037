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

HOPE = 2.0  # how far the foreseen error may pass the tolerance in a plan that is worth a trial
NEAR = 2.0  # error over tolerance of a near miss
WORTHWHILE = 0.75  # a smaller plan is tried before the shrinking if it has at most this share of the pins


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


@dataclass(frozen=True, slots=True)
class Guess:
    """What the evidence says before anything is tried; it orders the search and decides nothing.

    `order` are all layers, the one whose pin helps most first; pinning the first k is foreseen to leave
    `errors[k]` times the tolerance. `least_missed(plan)` are the pins of a plan, the one that can be
    given up most easily first.
    """

    order: Sequence[LayerName]
    errors: Sequence[float]
    least_missed: Callable[[Plan], Sequence[LayerName]]


def smallest(layers: Sequence[LayerName], guess: Callable[[], Guess]) -> Strategy:
    """The smallest set of pins that passes, as far as single pins can be taken out.

    1. Controls: everything pinned has to pass, or precision is not the cause; nothing pinned may pass.
    2. Climb: find a small plan that passes, in the order of the evidence.
    3. Shrink: take pins out until every single one is needed.

    `guess` is asked only when the controls say that there is something to find.
    """
    everything = Plan.of(layers)
    if not (yield from _passes(everything, "control: every layer pinned")):
        return Stop(None, minimal=False, because="the model with every layer in FP32 does not pass")
    nothing = yield Try(Plan(), "control: no layer pinned")
    if nothing.verdict is Verdict.PASS:
        return Stop(Plan(), minimal=True, because="the model passes in FP16")
    return (yield from cure(guess, nothing.excess))


def cure(guess: Callable[[], Guess], excess: float, start: int = 0) -> Strategy:
    """Climb and shrink, when it is known that everything pinned passes and `start` pins were too few."""
    evidence = guess()
    found = yield from climb(evidence, excess, start)
    best = yield from shrink(found, evidence.least_missed)
    return Stop(best, minimal=True, because="every pin was taken out once more, and each is needed")


def climb(evidence: Guess, excess: float, start: int) -> Generator[Try, Trial, Plan]:
    """The first k layers of the order, for a small k that passes; the first `start` missed by `excess`.

    A trial costs what a pin costs later, when it has to be proven that it is needed. So the first k is a
    hopeful one. After a near miss a few more pins are tried, for roundings that are left may cancel;
    after a wide one the foreseen error, corrected by what was measured, says how many more. Then the gap
    between what failed and what passed is halved.
    """
    order, errors = evidence.order, evidence.errors
    low, high = start, len(order)  # what failed, and everything pinned, which passed
    step = 1
    while high == len(order):
        k = _next_k(errors, low, excess, low + step)
        if k >= high:
            break
        trial = yield Try(Plan.of(order[:k]), f"{k} pins, foreseen to be enough")
        if trial.verdict is Verdict.PASS:
            high = k
        else:
            low, excess, step = k, trial.excess, 2 * step
    if low == start:  # passed at once: perhaps far fewer will do
        k = _first_below(errors, 2 * max(errors[high], 1.0), start + 1)
        while k <= WORTHWHILE * high:
            if (yield from _passes(Plan.of(order[:k]), f"{k} pins, perhaps enough")):
                high, k = k, _first_below(errors, 2 * max(errors[k], 1.0), start + 1)
            else:
                low = k
                break
    while low > start and high - low > 1:
        k = (low + high) // 2
        if (yield from _passes(Plan.of(order[:k]), f"{k} pins, between too few and enough")):
            high = k
        else:
            low = k
    return Plan.of(order[:high])


def _next_k(errors: Sequence[float], k: int, excess: float, at_least: int) -> int:
    """How many pins to try after the first `k` were off by `excess`."""
    if k and excess <= NEAR:
        return at_least
    seen = errors[k] if errors[k] > 0 else 1.0
    correction = min(max(excess / seen, 1 / NEAR), NEAR)  # further off than that, something else is wrong
    return _first_below(errors, HOPE / correction, at_least)


def _first_below(errors: Sequence[float], allowed: float, at_least: int) -> int:
    return next((k for k in range(at_least, len(errors)) if errors[k] <= allowed), len(errors) - 1)


def shrink(plan: Plan, least_missed: Callable[[Plan], Sequence[LayerName]]) -> Generator[Try, Trial, Plan]:
    """Take out pins, the least missed first, until taking out any single one does not pass.

    As long as it goes well, twice as many are taken out at once. A success makes what was learned about
    larger plans worthless as a proof, so every pin has its turn again: the ones that were missed least
    when they were tried come first.
    """
    missed: dict[LayerName, float] = {}  # error without it, perhaps in a larger plan
    proven: set[LayerName] = set()  # failed in this plan
    chunk = 1
    while len(proven) < len(plan):
        names = [name for name in least_missed(plan) if name not in missed][:chunk]
        if not names:
            names = [min(plan.fp32 - proven, key=lambda name: (missed[name], name))]
        rest = Plan(plan.fp32.difference(names))
        trial = yield Try(rest, f"without {names[0]}" + (f" and {len(names) - 1} more" if names[1:] else ""))
        if trial.verdict is Verdict.PASS:
            plan, proven, chunk = rest, set(), 2 * chunk
        else:
            if len(names) == 1:
                missed[names[0]] = trial.excess
                proven.add(names[0])
            chunk = 1
    return plan


def _passes(plan: Plan, because: str) -> Generator[Try, Trial, bool]:
    trial = yield Try(plan, because)
    return trial.verdict is Verdict.PASS
