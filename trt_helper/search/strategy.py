"""The search: names of layers and judged trials go in, the next plan to try comes out, or the end.

A strategy is a generator. Whoever drives it evaluates each plan that it yields and sends the trial
back: an emulator, an engine on a GPU, a journal that is being replayed, or a lambda in a test.

Nothing assumes monotony. Precision is not monotone: a plan that keeps more layers in FP32 can be worse,
because roundings that cancelled no longer do. A verdict speaks for its own plan only, and `minimal`
means that each single pin was taken out of the final plan and the result did not pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median

from trt_helper.values import LayerName, Plan, Trial, Verdict

HOPE = 2.0  # how far the foreseen error may pass the tolerance in a plan that is worth a trial
NEAR = 2.0  # error over tolerance of a near miss
WORTHWHILE = 0.75  # a smaller plan is tried before the shrinking if it has at most this share of the pins
USUAL = 1.6  # measured over foreseen error, before anything was measured
FAR = 50.0  # error over tolerance that tells nothing about errors near it
TINY = 1e-9
FORESEEN, MEASURED = 0.3, 0.04  # spread of the logarithm of an error: foreseen, or measured in a plan with other pins


@dataclass(frozen=True, slots=True)
class Try:
    """Evaluate this plan next. `ahead` are those that are probably asked for if it fails, the next one first.

    `left` says how many more trials there will be if this one and all of them fail; None where nobody knows.
    """

    plan: Plan
    because: str
    speculative: Callable[[], Iterable[Plan]] = field(default=tuple, compare=False, repr=False)
    left: int | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Stop:
    """The search is over. `best` passed, unless it is None."""

    best: Plan | None
    minimal: bool
    because: str


Strategy = Generator[Try, Trial, Stop]


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the evidence says before anything is tried; it orders the search and decides nothing.

    `order` are all layers, the one whose pin helps most first; pinning the first k is foreseen to leave
    `errors[k]` times the tolerance. `error(plan)` is the same for any plan, and `without(plan)` for the plan
    less each of its pins.
    """

    order: Sequence[LayerName]
    errors: Sequence[float]
    error: Callable[[Plan], float]
    without: Callable[[Plan], Mapping[LayerName, float]]


Evidence = Callable[[Trial], Prediction]  # what it says after this trial: a new guess where the trial surprised


def smallest(layers: Sequence[LayerName], evidence: Evidence) -> Strategy:
    """The smallest set of pins that passes, as far as single pins can be taken out.

    1. Controls: everything pinned has to pass, or precision is not the cause; nothing pinned may pass.
    2. Climb: find a small plan that passes, in the order of the evidence.
    3. Shrink: take pins out until every single one is needed.

    `evidence` is asked only when the controls say that there is something to find.
    """
    everything = Plan.of(layers)
    if not (yield from _passes(everything, "control: every layer pinned", lambda: (Plan(),))):
        return Stop(None, minimal=False, because="the model with every layer in FP32 does not pass")
    nothing = yield Try(Plan(), "control: no layer pinned")
    if nothing.verdict is Verdict.PASS:
        return Stop(Plan(), minimal=True, because="the model passes in FP16")
    found, prediction = yield from climb(evidence, nothing)
    best = yield from shrink(found, prediction, evidence)
    return Stop(best, minimal=True, because="every pin was taken out once more, and each is needed")


def climb(evidence: Evidence, failed: Trial) -> Generator[Try, Trial, tuple[Plan, Prediction]]:
    """The first k layers of the order, for a small k that passes, after a plan that `failed`.

    A trial costs what a pin costs later, when it has to be proven that it is needed. So the first k is a
    hopeful one. After a near miss a few more pins are tried, for roundings that are left may cancel;
    after a wide one the foreseen error, corrected by what was measured, says how many more. A failure that
    changes the evidence starts the climb afresh. Then the gap between what failed and what passed is halved.
    """
    prediction = evidence(failed)
    low, high = 0, len(prediction.order)  # what failed, and everything pinned, which passed
    step = 1
    while high == len(prediction.order):
        k = _next_k(prediction, failed, low, step)
        if k >= high:
            break
        trial = yield Try(Plan.of(prediction.order[:k]), f"{k} pins, foreseen to be enough")
        if trial.verdict is Verdict.PASS:
            high = k
            continue
        before, prediction, failed = prediction, evidence(trial), trial
        low, step = (k, 2 * step) if prediction is before else (0, 1)
    if low == 0:  # passed at once: perhaps far fewer will do
        low, high = yield from _far_fewer(prediction, high)
    while low > 0 and high - low > 1:
        k = (low + high) // 2
        speculative = partial(_first, prediction.order, ((k + high) // 2, (low + k) // 2))  # if it fails, if it passes
        if (yield from _passes(Plan.of(prediction.order[:k]), f"{k} pins, between too few and enough", speculative)):
            high = k
        else:
            low = k
    return Plan.of(prediction.order[:high]), prediction


def _far_fewer(prediction: Prediction, high: int) -> Generator[Try, Trial, tuple[int, int]]:
    """Go down from `high` pins as long as far fewer are foreseen to be near enough; what failed, what passed."""
    k = _first_below(prediction.errors, 2 * max(prediction.errors[high], 1.0), 1)
    while k <= WORTHWHILE * high:
        if not (yield from _passes(Plan.of(prediction.order[:k]), f"{k} pins, perhaps enough")):
            return k, high
        high, k = k, _first_below(prediction.errors, 2 * max(prediction.errors[k], 1.0), 1)
    return 0, high


def _next_k(prediction: Prediction, failed: Trial, low: int, step: int) -> int:
    """How many pins to try after `failed`, if the first `low` are known to be too few."""
    if failed.plan.fp32 and failed.error_ratio <= NEAR:
        return len(failed.plan) + step
    seen = prediction.error(failed.plan) or 1.0
    correction = min(max(failed.error_ratio / seen, 1 / NEAR), NEAR)  # further off than that, something else is wrong
    return _first_below(prediction.errors, HOPE / correction, low + step)


def _first_below(errors: Sequence[float], allowed: float, at_least: int) -> int:
    return next((k for k in range(at_least, len(errors)) if errors[k] <= allowed), len(errors) - 1)


def shrink(plan: Plan, prediction: Prediction, evidence: Evidence) -> Generator[Try, Trial, Plan]:
    """Take out pins, the likeliest to go well first, until taking out any single one does not pass.

    As long as it goes well, twice as many are taken out at once. A success makes what was learned about
    larger plans worthless as a proof, so every pin has its turn again. Where a pin was tried before, its
    error is all but known; elsewhere the foreseen one, corrected by what such trials measured, is far less
    certain, and so a pin that is foreseen to be missed may be tried before one that just failed.
    """
    missed: dict[LayerName, float] = {}  # error without it, perhaps in a larger plan
    proven: set[LayerName] = set()  # failed in this plan
    corrections = [USUAL]
    chunk = 1
    predicted = prediction.without(plan)
    while len(proven) < len(plan):
        odds = {
            name: math.log(error * median(corrections) or TINY) / FORESEEN
            for name, error in predicted.items()
            if name not in missed
        }
        names = sorted(odds, key=lambda name: odds[name])[:chunk]
        known = {name: math.log(missed[name] or TINY) / MEASURED for name in plan.fp32 - proven if name in missed}
        likeliest = min(known, key=lambda name: (known[name], name), default="")
        if likeliest and (not names or known[likeliest] < odds[names[0]]):
            names = [likeliest]
        rest = Plan(plan.fp32.difference(names))
        because = f"without {names[0]}" + (f" and {len(names) - 1} more" if names[1:] else "")
        left = len(plan) - len(proven) - (len(names) == 1)
        trial = yield Try(rest, because, partial(_without_each, plan, rest, odds, known), left)
        if 0 < trial.error_ratio < FAR and (expected := prediction.error(rest)) > 0:
            corrections.append(trial.error_ratio / expected)
        if trial.verdict is Verdict.PASS:
            plan, proven, chunk = rest, set(), 2 * chunk
            prediction = evidence(trial)
            predicted = prediction.without(plan)
        else:
            if len(names) == 1:
                missed[names[0]] = trial.error_ratio
                proven.add(names[0])
            chunk = 1
    return plan


def _first(order: Sequence[LayerName], counts: Iterable[int]) -> Iterator[Plan]:
    return (Plan.of(order[:k]) for k in counts)


def _without_each(
    plan: Plan, tried: Plan, odds: Mapping[LayerName, float], known: Mapping[LayerName, float]
) -> Iterator[Plan]:
    """`plan` less one pin, the likeliest to go well first, as far as that is known before `tried` is judged."""
    likely = {**known, **odds}
    less = (Plan(plan.fp32 - {name}) for name in sorted(likely, key=lambda name: likely[name]))
    return (one for one in less if one != tried)


def _passes(plan: Plan, because: str, speculative: Callable[[], Iterable[Plan]] = tuple) -> Generator[Try, Trial, bool]:
    trial = yield Try(plan, because, speculative)
    return trial.verdict is Verdict.PASS


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
