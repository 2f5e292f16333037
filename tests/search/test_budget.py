"""A search with a budget ends with the best plan that was verified, and says that it was bounded."""

from __future__ import annotations

import time

import numpy as np
import pytest
from support.overflowing_models import TOLERANCE, overflowing_norm

from trt_helper.emulator.emulator import Emulator
from trt_helper.errors import ControlError
from trt_helper.inputs.sample import Sample
from trt_helper.onnx_model.graph import read_graph
from trt_helper.onnx_model.load import load
from trt_helper.search.budget import Budget
from trt_helper.search.conflicts import conflict
from trt_helper.search.locate import locate
from trt_helper.search.located import NOT_MEASURED
from trt_helper.search.probe import Probe
from trt_helper.values import Plan, Trial, Verdict


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    path = tmp_path_factory.mktemp("budget") / "model.onnx"
    overflowing_norm(path, width=32, depth=6)
    feed = {"x": np.random.default_rng(1).standard_normal((64, 32)).astype(np.float32)}
    return read_graph(load(path)), [Sample("seed 1", feed)]


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


def test_the_time_limit_also_ends_what_is_measured_between_two_trials(task):
    """Measuring roundings takes most of the time: `--time-limit 3` once took 77 s. One step is left to its end."""
    steps = []

    def slow(what: str, _done: int, _total: int) -> None:
        steps.append(what)
        time.sleep(0.5 if what == "what each rounding does" else 0)

    located = locate(*task, TOLERANCE, budget=Budget(seconds=0.5), on_progress=slow)
    assert steps.count("what each rounding does") == 1
    assert located.plan == task[0].all_pinned()
    assert located.after.verdict is Verdict.PASS
    assert located.because == "the best plan after 0.5 s, as long as was allowed"
    assert located.layers == ()
    assert located.warnings == ("the errors of single layers were not measured: the time limit was reached before",)
    assert {located.cause(pin) for pin in located.pins} == {NOT_MEASURED}


def test_the_time_limit_also_ends_a_search_for_roundings_that_do_harm_together(task):
    """Each of its forward passes can be the last one."""
    graph, (sample,) = task
    emulator, steps = Emulator(graph), []
    probe = Probe(emulator, sample.feed, emulator.run(Plan(), sample.feed), TOLERANCE, 4)

    def limited(done: int, _total: int) -> None:
        steps.append(done)
        if len(steps) == 2:
            raise TimeoutError

    failed = Trial(Plan(), Verdict.FAIL, error_ratio=10.0)
    with pytest.raises(TimeoutError):
        conflict(emulator, probe, failed, 1.0, 30, limited)
    assert steps == [0, 1]


def test_a_search_for_roundings_that_do_harm_together_takes_no_more_passes_than_allowed(task):
    graph, (sample,) = task
    emulator = Emulator(graph)
    probe = Probe(emulator, sample.feed, emulator.run(Plan(), sample.feed), TOLERANCE, 4)
    before = probe.passes
    failed = Trial(Plan(), Verdict.FAIL, error_ratio=10.0)
    assert conflict(emulator, probe, failed, 1.0, 2) is None
    assert before + 2 <= probe.passes < before + 3
    found = conflict(emulator, probe, failed, 1.0, 100)
    assert found is not None
    assert {name for party in found.parties for _, name in party} & {"square", "mean"}
