"""The error predictor: conflicts are looked for only after a failure far above the prediction."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from support.overflowing_models import TOLERANCE, overflowing_norm, overflowing_products

from trt_helper.emulator.emulator import Emulator
from trt_helper.inputs.references import references
from trt_helper.inputs.sample import Sample
from trt_helper.onnx_model.graph import read_graph
from trt_helper.onnx_model.load import load
from trt_helper.search import tuning
from trt_helper.search.journal import Journal
from trt_helper.search.judge import PlanJudge
from trt_helper.search.oracle import Criteria, EmulatedOracle
from trt_helper.search.predictor import ErrorPredictor
from trt_helper.values import Plan, Trial, Verdict


@pytest.fixture
def predictor(tmp_path) -> ErrorPredictor:
    path = tmp_path / "model.onnx"
    overflowing_norm(path, width=32, depth=6)
    return predictor_of(
        read_graph(load(path)), {"x": np.random.default_rng(1).standard_normal((64, 32)).astype(np.float32)}
    )


def predictor_of(graph, feed) -> ErrorPredictor:
    samples = [Sample("x", feed)]
    criteria = Criteria(samples, references(graph, samples), TOLERANCE)
    emulator = Emulator(graph)
    judge = PlanJudge(graph, EmulatedOracle(emulator, criteria), criteria, Journal())
    return ErrorPredictor(emulator, criteria, judge, lambda _text: None, lambda _what, _done, _total: None)


@pytest.fixture
def conflicts_sought(monkeypatch) -> list[Plan]:
    sought: list[Plan] = []

    def conflict(_emulator, probe, trial, _expected, _most_passes, _on_progress):
        sought.append(trial.plan)
        probe.passes += 7

    monkeypatch.setattr("trt_helper.search.predictor.conflict", conflict)
    return sought


FAILED = Trial(Plan(), Verdict.FAIL, error_ratio=10.0)  # far below what is predicted of the empty plan
HOPELESS = float("inf")
ALMOST = Plan.of(["square", "mean", "root"])  # the smallest plan that passes: its predicted error is small


def test_a_failure_far_above_the_prediction_starts_a_search_for_conflicts(predictor, conflicts_sought):
    predictor.predict(FAILED)
    before = predictor.inferences
    predictor.predict(replace(FAILED, plan=ALMOST, error_ratio=HOPELESS))
    assert conflicts_sought == [ALMOST]
    assert predictor.inferences == before + 7


@pytest.mark.parametrize("verdict", [Verdict.UNRESOLVED, Verdict.PASS])
def test_a_plan_that_could_not_be_judged_is_no_surprise(predictor, conflicts_sought, verdict):
    """A failed build says nothing about numbers, though its error ratio is infinite."""
    first = predictor.predict(FAILED)
    again = predictor.predict(replace(FAILED, plan=ALMOST, verdict=verdict, error_ratio=HOPELESS))
    assert again is first
    assert conflicts_sought == []


def test_what_the_search_takes_is_said_once_before_it_begins(predictor, monkeypatch):
    notes: list[str] = []
    monkeypatch.setattr("trt_helper.search.tuning.WORTH_A_NOTE", 0.0)
    predictor._on_note = notes.append
    predictor.predict(FAILED)
    predictor.predict(FAILED)
    (note,) = notes
    assert note.startswith("11 layers, 1 samples, ")
    assert "s for a forward pass" in note


def test_an_infinite_error_is_no_surprise_where_the_prediction_is_as_large_as_any(tmp_path, conflicts_sought):
    predictor = predictor_of(overflowing_products(tmp_path), {"x/1": np.full(4, 2.0, np.float32)})
    prediction = predictor.predict(replace(FAILED, error_ratio=HOPELESS))
    assert prediction.error(Plan()) >= tuning.ERROR_CAP
    assert conflicts_sought == []
