"""The search strategy, driven by oracles that are functions: no model, no tensor."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import islice
from random import Random
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.judging import driven

from trt_helper.search import tuning
from trt_helper.search.strategy import Prediction, Stop, Try, climb, shrink, smallest
from trt_helper.values import Plan, Trial, Verdict

Oracle = Callable[[Plan], Trial]


def names(count: int) -> list[str]:
    return [f"n{index}" for index in range(count)]


def verdict(plan: Plan, passes: bool, error_ratio: float | None = None) -> Trial:
    if error_ratio is None:
        error_ratio = 0.5 if passes else 10.0
    return Trial(plan, Verdict.PASS if passes else Verdict.FAIL, (), error_ratio)


def needs(culprits: Iterable[str]) -> Oracle:
    """Passes when all culprits are pinned, whatever else is."""
    wanted = frozenset(culprits)
    return lambda plan: verdict(plan, wanted <= plan.fp32)


def prediction_of(order: Sequence[str], helpful: int) -> Prediction:
    """A prediction_of that its first `helpful` pins are enough."""
    return prediction_with(order, [10.0 if k < helpful else 0.1 for k in range(len(order) + 1)])


def prediction_with(order: Sequence[str], errors: Sequence[float]) -> Prediction:
    """A prediction_of of `errors[k]` for any k pins, in which the last of `order` are missed least."""
    place = {name: index for index, name in enumerate(order)}

    def without(plan: Plan) -> dict[str, float]:
        return {name: 1 / (1 + place[name]) for name in sorted(plan.fp32, key=lambda name: -place[name])}

    return Prediction(order, errors, lambda plan: errors[len(plan)], without)


def run(layers: Sequence[str], oracle: Oracle, prediction: Prediction) -> tuple[Stop, list[Trial]]:
    trials: list[Trial] = []
    for event in driven(smallest(layers, lambda _trial: prediction), oracle):
        if isinstance(event, Trial):
            trials.append(event)
        elif isinstance(event, Stop):
            return event, trials
    raise AssertionError("the strategy did not stop")


def test_a_clean_model_costs_two_trials_and_no_prediction():
    def never(_trial: Trial) -> Prediction:
        raise AssertionError("a prediction was requested although FP16 passes")

    events = list(driven(smallest(names(30), never), needs(())))
    assert sum(isinstance(event, Trial) for event in events) == 2
    assert events[-1] == Stop(Plan(), minimal=True, because="the model passes in FP16")


def test_a_model_that_fails_with_everything_pinned_is_not_searched():
    layers = names(10)
    stop, trials = run(layers, lambda plan: verdict(plan, passes=False), prediction_of(layers, 1))
    assert stop.best is None
    assert [trial.plan for trial in trials] == [Plan.of(layers)]


@pytest.mark.parametrize("culprits", [1, 3, 10])
@pytest.mark.parametrize("size", [50, 500, 5000])
def test_with_a_good_prediction_the_answer_costs_little_more_than_its_proof(size, culprits):
    layers = names(size)
    guilty = Random(size * culprits).sample(layers, culprits)
    order = guilty + [name for name in layers if name not in guilty]
    stop, trials = run(layers, needs(guilty), prediction_of(order, culprits))
    assert stop.best == Plan.of(guilty)
    assert len(trials) <= culprits + 5  # the floor is k + 2, and the control


@pytest.mark.parametrize("size", [50, 500, 5000])
def test_with_a_prediction_that_helps_nothing_the_answer_is_right_all_the_same(size):
    layers = names(size)
    guilty = Random(size).sample(layers, 3)
    shuffled = Random(1).sample(layers, size)
    stop, trials = run(layers, needs(guilty), prediction_of(shuffled, size))
    assert stop.best == Plan.of(guilty)
    assert len(trials) <= 40 + size // 4


def passed(size: int) -> Trial:
    """The control: every one of `size` layers is pinned."""
    return verdict(Plan.of(names(size)), True)


def test_pins_that_only_help_together_are_found_together():
    layers = names(40)
    pairs = [("n3", "n4"), ("n20", "n21")]

    def oracle(plan: Plan) -> Trial:
        missing = sum(not set(pair) <= plan.fp32 for pair in pairs)
        return verdict(plan, missing == 0, float(missing * 5))

    order = ["n3", "n4", "n20", "n21", *(name for name in layers if name not in {"n3", "n4", "n20", "n21"})]
    stop, _ = run(layers, oracle, prediction_of(order, 4))
    assert stop.best == Plan.of(["n3", "n4", "n20", "n21"])


def test_either_of_two_pins_is_enough_and_only_one_is_kept():
    layers = names(12)

    def oracle(plan: Plan) -> Trial:
        return verdict(plan, bool({"n2", "n9"} & plan.fp32))

    stop, _ = run(layers, oracle, prediction_of(layers, 12))
    assert stop.best in (Plan.of(["n2"]), Plan.of(["n9"]))


def test_an_unresolved_trial_never_counts_as_a_pass():
    layers = names(8)

    def oracle(plan: Plan) -> Trial:
        if plan == Plan.of(["n0"]):
            return Trial(plan, Verdict.UNRESOLVED, why="the builder crashed")
        return verdict(plan, "n0" in plan.fp32)

    stop, trials = run(layers, oracle, prediction_of(layers, 1))
    assert stop.best is not None
    assert len(stop.best) == 2
    assert "n0" in stop.best.fp32
    assert Verdict.UNRESOLVED in {trial.verdict for trial in trials}


def test_a_near_miss_is_followed_by_a_small_step():
    layers = names(30)
    tried: list[int] = []

    def oracle(plan: Plan) -> Trial:
        tried.append(len(plan))
        return verdict(plan, len(plan) >= 11, 1.4 if len(plan) == 10 else None)

    prediction = prediction_with(layers, [8.0] * 10 + [1.5] * 10 + [0.1] * 11)
    failed = verdict(Plan(), False, 8.0)
    strategy = _as_strategy(climb(lambda _trial: prediction, failed, passed(30)))
    found = next(event for event in driven(strategy, oracle) if isinstance(event, Stop))
    assert tried[0] == 10
    assert tried[1] <= 12
    assert found.best is not None
    assert len(found.best) == 11


def test_shrinking_tries_the_least_missed_first_and_takes_out_more_as_long_as_it_goes_well():
    tried: list[frozenset[str]] = []

    def oracle(plan: Plan) -> Trial:
        tried.append(plan.fp32)
        return verdict(plan, "n0" in plan.fp32)

    prediction = prediction_of(names(16), 1)
    strategy = _as_strategy(shrink(passed(16), prediction, lambda _trial: prediction))
    stop = list(driven(strategy, oracle))[-1]
    assert isinstance(stop, Stop)
    assert stop.best == Plan.of(["n0"])
    assert [len(plan) for plan in tried[:4]] == [15, 13, 9, 1]


def test_a_pin_that_was_all_but_missed_is_tried_again_before_one_that_is_predicted_to_be():
    """A measured near miss says more than a predicted wide one."""
    measured = {"n3": 1.02, "n2": 1.3}  # without it, as long as n1 is kept too
    tried: list[frozenset[str]] = []

    def oracle(plan: Plan) -> Trial:
        gone = {"n0", "n1", "n2", "n3"} - plan.fp32
        tried.append(frozenset(gone))
        error = max((measured.get(name, 0.9 if name == "n1" else 9.0) for name in gone), default=0.5)
        return verdict(plan, error <= 1, error)

    predicted = {"n3": 0.2, "n2": 0.3, "n1": 0.4, "n0": 40.0}
    prediction = Prediction(
        names(4), [1.0] * 5, lambda _plan: 0.5, lambda plan: {n: predicted[n] for n in predicted if n in plan.fp32}
    )
    list(driven(_as_strategy(shrink(passed(4), prediction, lambda _trial: prediction)), oracle))
    assert tried == [{"n3"}, {"n2"}, {"n1"}, {"n1", "n3"}, {"n1", "n2"}, {"n1", "n0"}]


def test_a_pin_that_was_clearly_missed_waits_for_one_of_which_less_is_known():
    """1.3 was measured, 1.9 is only predicted: the second may well go well, the first hardly."""
    tried: list[frozenset[str]] = []

    def oracle(plan: Plan) -> Trial:
        gone = frozenset(names(4)) - plan.fp32
        tried.append(gone)
        error = max(({"n2": 1.3, "n1": 0.9, "n0": 0.9, "n3": 9.0}[name] for name in gone), default=0.5)
        return verdict(plan, error <= 1, error)

    predicted = {"n2": 0.5, "n1": 0.6, "n0": 1.2, "n3": 100.0}
    prediction = Prediction(
        names(4), [1.0] * 5, lambda _plan: 0.0, lambda plan: {n: predicted[n] for n in predicted if n in plan.fp32}
    )
    list(driven(_as_strategy(shrink(passed(4), prediction, lambda _trial: prediction)), oracle))
    assert tried[:2] == [{"n2"}, {"n1"}]
    assert tried.index({"n1", "n0"}) < min(index for index, gone in enumerate(tried) if gone >= {"n1", "n2"})


def test_what_a_trial_measured_counts_against_taking_out_many_at_once():
    """A quarter of the tolerance is spent by squares, and each pin adds 0.28: two fit, three would not."""
    tried: list[int] = []

    def oracle(plan: Plan) -> Trial:
        gone = 4 - len(plan)
        tried.append(gone)
        error = math.sqrt(0.5**2 + 0.28 * gone) if gone else 0.5
        return verdict(plan, error <= 1, error)

    def without(plan: Plan) -> dict[str, float]:
        return {name: math.sqrt(0.28 * (5 - len(plan))) for name in sorted(plan.fp32)}

    prediction = Prediction(names(4), [0.0] * 5, lambda plan: math.sqrt(0.28 * (4 - len(plan))), without)
    list(driven(_as_strategy(shrink(passed(4), prediction, lambda _trial: prediction)), oracle))
    assert tried[:2] == [1, 2], "0.73 after the first, which two more would take to 1.04"


def test_only_a_single_pin_that_is_expected_to_be_missed_is_doubtful():
    """One sample may be enough to judge such a plan; one that should pass has to pass on all anyhow."""
    tries: list[Try] = []
    prediction = prediction_with(names(6), [1.0] * 7)
    errors = {name: 10.0 if name in {"n0", "n1"} else 0.01 for name in names(6)}
    prediction = replace(prediction, without=lambda plan: {n: errors[n] for n in reversed(names(6)) if n in plan.fp32})
    strategy = shrink(passed(6), prediction, lambda _trial: prediction)
    decision = next(strategy)
    with contextlib.suppress(StopIteration):
        while True:
            tries.append(decision)
            decision = strategy.send(needs({"n0", "n1"})(decision.plan))
    assert {True, False} == {one.doubtful for one in tries}
    for one in tries:
        assert one.doubtful == (needs({"n0", "n1"})(one.plan).verdict is not Verdict.PASS and len(one.plan) == 1)


def test_a_failure_that_changes_the_prediction_starts_the_climb_afresh():
    layers = names(30)
    blind, knowing = prediction_of(layers, 3), prediction_of([*reversed(layers)], 2)
    tried: list[frozenset[str]] = []

    def oracle(plan: Plan) -> Trial:
        tried.append(plan.fp32)
        return verdict(plan, {"n29", "n28"} <= plan.fp32)

    failed = verdict(Plan(), False, 10.0)
    strategy = _as_strategy(climb(lambda trial: knowing if trial.plan.fp32 else blind, failed, passed(30)))
    stop = list(driven(strategy, oracle))[-1]
    assert tried == [{"n0", "n1", "n2"}, {"n29", "n28"}]
    assert isinstance(stop, Stop)
    assert stop.best == Plan.of(["n29", "n28"])


def test_a_prediction_that_is_equal_but_a_new_object_is_no_news():
    """The climb ends, with the trials of one that is given the same object each time."""
    layers = names(30)

    def tried(predict) -> list[Plan]:
        strategy = _as_strategy(climb(predict, verdict(Plan(), False, 10.0), passed(30)))
        events = driven(strategy, lambda plan: verdict(plan, len(plan) >= 20))
        return [event.plan for event in events if isinstance(event, Trial)]

    same = prediction_of(layers, 3)
    assert tried(lambda _trial: prediction_of(layers, 3)) == tried(lambda _trial: same)


@given(size=st.integers(1, 12), seed=st.integers(0, 2**32 - 1))
def test_the_climb_ends_whatever_predictions_it_is_given(size, seed):
    """Each failure brings another order and other errors, for ever; and no plan is tried twice."""
    random = Random(seed)

    def predict(_trial: Trial) -> Prediction:
        return prediction_with(
            random.sample(names(size), size), [random.choice((0.0, 1.0, 9.0)) for _ in range(size + 1)]
        )

    everything = Plan.of(names(size))
    events = list(
        driven(
            _as_strategy(climb(predict, verdict(Plan(), False), passed(size))),
            lambda plan: verdict(plan, plan == everything),
        )
    )
    plans = [event.plan for event in events if isinstance(event, Try)]
    assert len(set(plans)) == len(plans)
    assert events[-1].best == everything


def test_pins_that_a_prediction_does_not_know_are_tried_as_well():
    silent = Prediction(names(5), [1.0] * 6, lambda _plan: 1.0, lambda _plan: {})
    strategy = _as_strategy(shrink(passed(5), silent, lambda _trial: silent))
    assert list(driven(strategy, needs(["n1", "n3"])))[-1].best == Plan.of(["n1", "n3"])


def _as_strategy(part):
    found = yield from part
    best = found[0].plan if isinstance(found, tuple) else found
    return Stop(best, minimal=True, because="")


def arbitrary_oracle(seed: int, everything: Plan) -> Oracle:
    """An oracle that is not monotone in any way; only the control is sure to pass."""

    def oracle(plan: Plan) -> Trial:
        digest = crc32(f"{seed}{sorted(plan.fp32)}".encode())
        passes = plan == everything or (digest % 3 == 0 and plan != Plan())
        return verdict(plan, passes, (digest % 97) / 97 if passes else 1.001 + digest % 50)

    return oracle


@given(size=st.integers(1, 24), seed=st.integers(0, 2**32 - 1), predicted=st.lists(st.floats(0, 1e4), min_size=25))
def test_the_result_passes_and_taking_out_any_single_pin_does_not(size, seed, predicted):
    """Holds for arbitrary oracles and arbitrary predictions: that is what `minimal` promises."""
    layers = names(size)
    everything = Plan.of(layers)
    order = Random(seed).sample(layers, size)
    prediction = prediction_with(order, predicted[: size + 1])
    stop, trials = run(layers, arbitrary_oracle(seed, everything), prediction)
    by_plan = {trial.plan: trial.verdict for trial in trials}
    assert stop.best is not None
    assert by_plan[stop.best] is Verdict.PASS
    for name in stop.best.fp32:
        assert by_plan[Plan(stop.best.fp32 - {name})] is not Verdict.PASS


@given(size=st.integers(2, 16), culprits=st.integers(1, 16), seed=st.integers(0, 2**32 - 1))
def test_a_trial_says_how_many_may_follow_it(size, culprits, seed):
    """From the last plan that passes on all fail: then no more follow than announced, and the last one knows it."""
    order = Random(seed).sample(names(size), size)
    helpful = min(culprits, size - 1)
    events = list(driven(smallest(names(size), lambda _trial: prediction_of(order, helpful)), needs(order[:helpful])))
    passed = [index for index, e in enumerate(events) if isinstance(e, Trial) and e.verdict is Verdict.PASS]
    announced = [event.left for event in events[passed[-1] :] if isinstance(event, Try) and event.left is not None]
    assert announced == sorted(announced, reverse=True)
    assert all(following <= left for following, left in zip(range(len(announced))[::-1], announced, strict=True))
    assert announced[-1:] in ([], [0])


@given(size=st.integers(1, 16), seed=st.integers(0, 2**32 - 1))
def test_no_plan_is_evaluated_twice(size, seed):
    layers = names(size)
    prediction = prediction_of(Random(seed).sample(layers, size), size // 2)
    _, trials = run(layers, arbitrary_oracle(seed, Plan.of(layers)), prediction)
    plans = [trial.plan for trial in trials]
    assert len(plans) == len(set(plans))


@given(size=st.integers(2, 16), seed=st.integers(0, 2**32 - 1), cut=st.integers(0, 40))
def test_taking_the_first_trials_from_memory_gives_the_same_answer(size, seed, cut):
    """A journal of any length leads to the same end, and to no trial that is in it."""
    layers = names(size)
    prediction = prediction_of(Random(seed).sample(layers, size), size // 2)
    oracle = arbitrary_oracle(seed, Plan.of(layers))
    stop, trials = run(layers, oracle, prediction)
    journal = {trial.plan: trial for trial in trials[:cut]}
    requested: list[Plan] = []

    def resumed(plan: Plan) -> Trial:
        if plan in journal:
            return journal[plan]
        requested.append(plan)
        return oracle(plan)

    again, _ = run(layers, resumed, prediction)
    assert again == stop
    assert len(requested) == max(0, len(trials) - cut)


@pytest.mark.parametrize("constant", ["HOPEFUL", "NEAR_MISS", "FAR_FEWER", "FIRST_CORRECTION", "UNINFORMATIVE"])
@pytest.mark.parametrize("value", [0.01, 0.99, 1.0, 1.5, 100.0])
@pytest.mark.parametrize("helpful", [1, 9])
def test_no_tuning_constant_is_needed_for_the_search_to_end_or_to_be_right(monkeypatch, constant, value, helpful):
    """With FAR_FEWER above 1 the way down once tried the same plan for ever."""
    monkeypatch.setattr(tuning, constant, value)
    layers, culprits = names(20), ["n3", "n7", "n11"]
    prediction = prediction_of([*culprits, *(name for name in layers if name not in culprits)], helpful)
    events = driven(smallest(layers, lambda _trial: prediction), needs(culprits))
    stop = next((event for event in islice(events, 1000) if isinstance(event, Stop)), None)
    assert stop is not None, "no end"
    assert stop.best == Plan.of(culprits)
