"""The search as a generator: it yields the plan to try next, and is sent the judged trial.

A strategy knows layers by name only. Whoever drives it judges the plans: an emulator, an engine on a GPU, a journal of
an interrupted search, or a lambda in a test.

Precision is not monotone. A plan that keeps more layers in FP32 can be worse, because roundings that cancelled no
longer do. So a verdict is used for its own plan only, and `minimal` means: each single pin was taken out of the final
plan, and the result did not pass.

Why it stops, whatever verdicts and predictions it is given (n is the number of layers):

- `climb` never tries a plan twice. Each of its turns either tries a new plan or raises `low`, the largest number of
  pins known to be too few under the current prediction. `low` is at most n, and is reset to 0 only by a new prediction,
  which only the failed trial of a new plan can bring. There are finitely many plans, so it ends. A prediction with the
  same order and errors is the same prediction, whatever object it is. What follows makes `high` smaller with each trial
  that passes (`_far_fewer`), or halves `high - low` (the bisection).
- `shrink` either makes the plan smaller (at most n times), or adds a layer to `proven`, or, after a failure with
  several pins taken out, takes out one pin next. `proven` is emptied only when the plan got smaller. So at most
  n + 1 trials lie between two successes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Protocol

from trt_helper.search import tuning
from trt_helper.values import LayerName, Plan, Trial, Verdict

Speculative = Callable[[], Iterable[Plan]]
"""The plans that will probably be tried next if the current one fails, the likeliest first."""

TINY = 1e-9  # stands for 0 in a logarithm


def no_plans() -> tuple[Plan, ...]:
    """Speculate on nothing."""
    return ()


@dataclass(frozen=True, slots=True)
class Try:
    """The decision to evaluate a plan.

    Attributes:
        plan: the plan to evaluate next.
        because: why, in words for the report.
        speculative: the plans that will probably follow; for oracles that judge several plans side by side.
        left: the number of trials that follow if this one and all of them fail; None if that is not known.
        doubtful: it will probably fail, so that one sample may be enough to show it.
    """

    plan: Plan
    because: str
    speculative: Speculative = field(default=no_plans, compare=False, repr=False)
    left: int | None = field(default=None, compare=False)
    doubtful: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class Stop:
    """The end of a search. `best` is the answer and passed; None if not even the plan that pins everything passes."""

    best: Plan | None
    minimal: bool
    because: str


Strategy = Generator[Try, Trial, Stop]


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the error model predicts. It orders the search and decides nothing.

    Attributes:
        order: all layers, the one whose pin helps most first.
        errors: predicted error ratios, n + 1 of them; `errors[k]` is that of the plan that pins the first k of `order`.
        error: the predicted error ratio of any plan.
        without: for a plan, the predicted error ratio of the plan without each of its pins, by layer.
    """

    order: Sequence[LayerName]
    errors: Sequence[float]
    error: Callable[[Plan], float]
    without: Callable[[Plan], Mapping[LayerName, float]]

    def first(self, pins: int) -> Plan:
        """The plan that pins the first layers of the order."""
        return Plan.of(self.order[:pins])

    def is_as(self, other: Prediction) -> bool:
        """Whether two predictions order the search alike."""
        return list(self.order) == list(other.order) and list(self.errors) == list(other.errors)


Predict = Callable[[Trial], Prediction]
"""The prediction after a trial: another one where the trial was a surprise."""


class Judge(Protocol):
    """Judges the plans of one search and remembers the verdicts."""

    def known(self, plan: Plan) -> Trial | None:
        """The trial of a plan that this search has tried before."""

    def judge(self, decision: Try) -> Trial:
        """Judge the plan of a decision."""


def drive(strategy: Strategy, judge: Judge) -> Iterator[Try | Trial | Stop]:
    """Run a strategy to its end, yielding each decision, each trial as it happens, and at last the Stop.

    A plan that was tried before is answered from the judge's memory, and yields nothing.
    """
    trial: Trial | None = None
    while True:
        try:
            decision = next(strategy) if trial is None else strategy.send(trial)
        except StopIteration as end:
            yield end.value
            return
        trial = judge.known(decision.plan)
        if trial is None:
            yield decision
            trial = judge.judge(decision)
            yield trial


def smallest(layers: Sequence[LayerName], predict: Predict) -> Strategy:
    """Search the smallest set of pins that passes, as far as single pins can be taken out.

    1. Controls: the plan that pins everything has to pass, or precision is not the cause; the empty plan may not pass.
    2. Climb: find a small plan that passes, in the order of the prediction.
    3. Shrink: take out pins until every single one is needed.

    Args:
        layers: the layers that may be pinned.
        predict: called after failed and passed trials, and only when the controls say that there is something to find.
    """
    everything = Plan.of(layers)
    control = yield Try(everything, "control: every layer pinned", lambda: (Plan(),))
    if control.verdict is not Verdict.PASS:
        return Stop(None, minimal=False, because="the model with every layer in FP32 does not pass")
    nothing = yield Try(Plan(), "control: no layer pinned")
    if nothing.verdict is Verdict.PASS:
        return Stop(Plan(), minimal=True, because="the model passes in FP16")
    found, prediction = yield from climb(predict, nothing, control)
    best = yield from shrink(found, prediction, predict)
    return Stop(best, minimal=True, because="every pin was taken out once more, and each is needed")


def climb(predict: Predict, failed: Trial, passed: Trial) -> Generator[Try, Trial, tuple[Trial, Prediction]]:
    """Find a small k for which the plan that pins the first k layers of the predicted order passes.

    A trial costs as much as a pin costs later, when it has to be proven that it is needed. So the first k is an
    optimistic one. After a near miss a few more pins are tried, because the roundings that are left may cancel. After a
    wide miss the predicted error, corrected by the measured one, says how many more. A failure that changes the
    prediction starts the climb afresh. Then the gap between the largest k that failed and the smallest that passed is
    halved until it is closed.

    Args:
        predict: the prediction after a failed trial.
        failed: the trial of the empty plan, or of another one that failed.
        passed: the trial of the plan that pins everything.

    Returns:
        The trial of the plan that passed, and the prediction that it was found with.
    """
    prediction = predict(failed)
    low, high = 0, len(prediction.order)  # pins: too few, and enough (everything pinned has passed)
    step = 1
    tried: dict[Plan, Trial] = {}  # all of them failed
    while high == len(prediction.order):
        k = _next_k(prediction, failed, low, step)
        if k >= high:
            break
        plan = prediction.first(k)
        if plan in tried:  # under an earlier prediction
            failed, low, step = tried[plan], k, 2 * step
            continue
        trial = yield Try(plan, f"{k} pins, foreseen to be enough")
        if trial.verdict is Verdict.PASS:
            high, passed = k, trial
            break
        tried[plan] = failed = trial
        before, prediction = prediction, predict(trial)
        low, step = (k, 2 * step) if prediction.is_as(before) else (0, 1)
    if low == 0:  # passed at once: far fewer may do
        low, passed = yield from _far_fewer(prediction, passed)
        high = len(passed.plan)
    while low > 0 and high - low > 1:
        k = (low + high) // 2
        following = partial(_first_of_each, prediction, ((k + high) // 2, (low + k) // 2))  # if it fails, if it passes
        trial = yield Try(prediction.first(k), f"{k} pins, between too few and enough", following)
        if trial.verdict is Verdict.PASS:
            high, passed = k, trial
        else:
            low = k
    return passed, prediction


def _far_fewer(prediction: Prediction, passed: Trial) -> Generator[Try, Trial, tuple[int, Trial]]:
    """Go down while far fewer pins are predicted to be nearly enough; the k that failed, and the trial that passed."""
    k = _first_below(prediction.errors, 2 * max(prediction.errors[len(passed.plan)], 1.0), 1)
    while k < len(passed.plan) and k <= tuning.FAR_FEWER * len(passed.plan):
        trial = yield Try(prediction.first(k), f"{k} pins, perhaps enough")
        if trial.verdict is not Verdict.PASS:
            return k, passed
        passed, k = trial, _first_below(prediction.errors, 2 * max(prediction.errors[k], 1.0), 1)
    return 0, passed


def _next_k(prediction: Prediction, failed: Trial, low: int, step: int) -> int:
    """The number of pins to try after `failed`, if the first `low` are known to be too few; more than `low`."""
    if failed.plan.fp32 and failed.error_ratio <= tuning.NEAR_MISS:
        return max(len(failed.plan) + step, low + 1)
    predicted = prediction.error(failed.plan) or 1.0
    correction = min(max(failed.error_ratio / predicted, 1 / tuning.NEAR_MISS), tuning.NEAR_MISS)
    return _first_below(prediction.errors, tuning.HOPEFUL / correction, low + step)


def _first_below(errors: Sequence[float], allowed: float, at_least: int) -> int:
    return next((k for k in range(at_least, len(errors)) if errors[k] <= allowed), len(errors) - 1)


def shrink(passed: Trial, prediction: Prediction, predict: Predict) -> Generator[Try, Trial, Plan]:
    """Take out pins, the likeliest to go well first, until no single one can be taken out.

    As long as it goes well, twice as many are taken out at once. A success makes what was learned about larger plans
    worthless as a proof, so every pin has its turn again. Where a pin was tried before, its error is almost known.
    Elsewhere the predicted error, corrected by what such trials measured, is far less certain. So a pin that is
    predicted to be needed may be tried before one that just failed.

    Args:
        passed: the trial of a plan that passed.
        prediction: the prediction that it was found with.
        predict: the prediction after a trial that passed.

    Returns:
        A plan that passed, and that did not pass without any single one of its pins.
    """
    measured: dict[LayerName, float] = {}  # error ratio without it, perhaps in a larger plan
    proven: set[LayerName] = set()  # failed in this plan
    growth = _Growth()
    chunk = 1
    predicted = prediction.without(passed.plan)
    while len(proven) < len(passed.plan):
        plan = passed.plan
        at = prediction.error(plan)
        odds = {
            name: math.log(growth.foreseen(passed.error_ratio, at, predicted.get(name, math.inf)))
            / tuning.PREDICTED_DEVIATION
            for name in _in_order(predicted, plan)
            if name not in measured
        }
        names = sorted(odds, key=lambda name: odds[name])[:chunk]
        while len(names) > 1 and growth.foreseen(passed.error_ratio, at, prediction.error(plan.without(*names))) > 1:
            names = names[: len(names) // 2]
        known = {
            name: math.log(measured[name] or TINY) / tuning.MEASURED_DEVIATION
            for name in plan.fp32 - proven
            if name in measured
        }
        likeliest = min(known, key=lambda name: (known[name], name), default="")
        if likeliest and (not names or known[likeliest] < odds[names[0]]):
            names = [likeliest]
        doubtful = len(names) == 1 and {**odds, **known}[names[0]] > 0
        rest = plan.without(*names)
        because = f"without {names[0]}" + (f" and {len(names) - 1} more" if names[1:] else "")
        left = len(plan) - len(proven) - (len(names) == 1)
        trial = yield Try(rest, because, partial(_without_each, plan, rest, odds, known), left, doubtful)
        growth.learn(passed.error_ratio, trial.error_ratio, at, prediction.error(rest))
        if trial.verdict is Verdict.PASS:
            passed, proven, chunk = trial, set(), 2 * chunk
            prediction = predict(trial)
            predicted = prediction.without(passed.plan)
        else:
            if len(names) == 1:
                measured[names[0]] = trial.error_ratio
                proven.add(names[0])
            chunk = 1
    return passed.plan


class _Growth:
    """How the error of a plan grows when pins are taken out: by squares, times what such trials have measured."""

    def __init__(self) -> None:
        self._factors = [tuning.FIRST_CORRECTION**2]

    def foreseen(self, measured: float, before: float, after: float) -> float:
        """The error ratio of a plan whose predicted error goes from `before` to `after`, if it `measured` this much."""
        grown = measured**2 + median(self._factors) * max(after**2 - before**2, 0.0)
        return math.sqrt(grown) or TINY

    def learn(self, measured: float, then: float, before: float, after: float) -> None:
        """Remember a trial: the error ratio went from `measured` to `then`."""
        predicted = after**2 - before**2
        if 0 < then < tuning.UNINFORMATIVE and predicted > TINY:
            self._factors.append(max(then**2 - measured**2, 0.0) / predicted)


def _in_order(predicted: Mapping[LayerName, float], plan: Plan) -> list[LayerName]:
    """The pins of a plan: those that are predicted in the prediction's order, then the others."""
    return [name for name in predicted if name in plan.fp32] + sorted(plan.fp32 - predicted.keys())


def _first_of_each(prediction: Prediction, counts: Iterable[int]) -> Iterator[Plan]:
    return (prediction.first(k) for k in counts)


def _without_each(
    plan: Plan, tried: Plan, odds: Mapping[LayerName, float], known: Mapping[LayerName, float]
) -> Iterator[Plan]:
    """`plan` less one pin, the likeliest to go well first, as far as that is known before `tried` is judged."""
    likely = {**known, **odds}
    less = (plan.without(name) for name in sorted(likely, key=lambda name: likely[name]))
    return (one for one in less if one != tried)
