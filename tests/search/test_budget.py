"""A bounded search ends with the best plan that was verified, and says that it was bounded."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from support.judging import oracle_with
from support.overflowing_norm import PINS, TOLERANCE, overflowing_norm

from trt_helper.errors import ControlError
from trt_helper.inputs.metric import Metric
from trt_helper.inputs.samples import Sample
from trt_helper.onnx_model.graph import read_graph
from trt_helper.onnx_model.load import load
from trt_helper.search.budget import Budget
from trt_helper.search.locate import locate
from trt_helper.values import Plan, Tolerance, Trial, Verdict


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    path = tmp_path_factory.mktemp("budget") / "model.onnx"
    overflowing_norm(path, width=32, depth=6)
    feed = {"x": np.random.default_rng(1).standard_normal((64, 32)).astype(np.float32)}
    return read_graph(load(path)), [Sample("seed 1", feed)]


def test_without_a_budget_the_smallest_plan_is_found(task):
    located = locate(*task, TOLERANCE)
    assert located.pins == PINS
    assert located.minimal


def test_after_the_allowed_trials_the_best_plan_so_far_is_the_answer(task):
    located = locate(*task, TOLERANCE, budget=Budget(trials=3))
    assert len(located.trials) == 3
    assert located.after.verdict is Verdict.PASS
    assert not located.minimal
    assert located.because == "the best plan after 3 trials, as many as were allowed"


def test_with_too_few_pins_the_least_bad_plan_is_given_as_failing(task):
    located = locate(*task, TOLERANCE, budget=Budget(pins=2))
    assert len(located.plan) <= 2
    assert located.after.verdict is Verdict.FAIL
    assert located.because == "the best of those tried with at most 2 pins; 3 pins are enough"
    within = [trial.error_ratio for trial in located.trials if len(trial.plan) <= 2]
    assert located.after.error_ratio == min(within)


def test_no_time_at_all_still_ends_with_a_plan_that_passes(task):
    located = locate(*task, TOLERANCE, budget=Budget(seconds=0))
    assert located.after.verdict is Verdict.PASS
    assert located.plan == task[0].all_pinned()


def test_a_budget_does_not_hide_that_precision_is_not_the_cause(task, monkeypatch):
    """The reference of another model: even everything pinned is far off, and that is said first."""
    graph, samples = task
    wrong = [{name: np.full((64, 32), 7, np.float32) for name in graph.outputs}]
    monkeypatch.setattr("trt_helper.search.locate.reference_outputs", lambda *_: wrong)
    with pytest.raises(ControlError, match="with every layer in FP32 the model already misses the tolerance"):
        locate(graph, samples, TOLERANCE, budget=Budget(seconds=0))


def test_the_curve_goes_from_nothing_pinned_to_everything_pinned(task):
    located = locate(*task, TOLERANCE)
    assert located.curve[0].pins == 0
    assert located.curve[-1].pins == len(task[0].candidates)
    assert located.curve[-1].predicted == 0
    measured = {point.pins: point.measured for point in located.curve if point.measured is not None}
    assert measured[0] == located.before.error_ratio
    assert measured[3] <= 1


def test_a_metric_decides_instead_of_the_tolerance(task):
    """The figure decides; the tolerance of 0 would allow nothing."""

    def alike(reference, found) -> float:
        (name,) = reference[0]
        error = max(float(np.abs(r[name] - f[name]).max()) for r, f in zip(reference, found, strict=True))
        return 1.0 - error if np.isfinite(error) else 0.0

    located = locate(*task, Tolerance(0.0, 0.0), metric=Metric(alike, 0.95, "alike"))
    assert located.pins == PINS
    assert located.after.verdict is Verdict.PASS
    assert locate(*task, Tolerance(0.0, 0.0), metric=Metric(lambda *_: 1.0, 0.5, "blind")).plan == Plan()


def test_plans_that_could_not_be_judged_are_told_of(task):
    """They count as failed, so the answer may have more pins than it needs."""
    graph, samples = task

    def flaky(trial: Trial) -> Trial:
        some = 0 < len(trial.plan) < 5
        return replace(trial, verdict=Verdict.UNRESOLVED, why="repeats disagree: 0.5 to 3") if some else trial

    located = locate(graph, samples, TOLERANCE, oracle=oracle_with(flaky))
    assert len(located.plan) > len(PINS)
    assert located.after.verdict is Verdict.PASS
    (warning,) = located.warnings
    assert "could not be judged and count as failed, so fewer pins may do: repeats disagree: 0.5 to 3" in warning


def test_what_only_the_engine_gets_wrong_is_not_called_precision(task):
    """The emulator passes at this tolerance; what judges in its place does not, without its pins."""
    graph, samples = task
    culprit = "square"

    def broken(trial: Trial) -> Trial:
        return trial if culprit in trial.plan.fp32 else replace(trial, verdict=Verdict.FAIL, error_ratio=10.0)

    oracle = oracle_with(broken)
    loose = Tolerance(1e6, 0.0)
    assert locate(graph, samples, TOLERANCE, oracle=oracle, runner="broken").warnings == ()
    located = locate(graph, samples, loose, oracle=oracle, runner="broken")
    assert located.plan.fp32 == {culprit}
    (warning,) = located.warnings
    assert "a fusion or a kernel is the cause, not precision" in warning
