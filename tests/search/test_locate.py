"""A whole search in Python: the smallest plan, its curve, a metric, many samples, and what it warns of."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from support.judging import oracle_with
from support.onnx_parts import constant, model, node, value
from support.overflowing_models import PINS, TOLERANCE, overflowing_norm

from trt_helper.emulator.emulator import Emulator
from trt_helper.inputs.metric import Metric
from trt_helper.inputs.sample import Sample
from trt_helper.onnx_model.graph import read_graph
from trt_helper.onnx_model.load import load
from trt_helper.search.diagnosis import Kind
from trt_helper.search.locate import locate
from trt_helper.search.oracle import EmulatedOracle
from trt_helper.search.strategy import no_plans
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


def test_plans_that_could_not_be_judged_are_warned_of(task):
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
    right = locate(graph, samples, TOLERANCE, oracle=oracle, runner="broken")
    assert (right.warnings, right.diagnosis) == ((), Kind.PRECISION)
    located = locate(graph, samples, loose, oracle=oracle, runner="broken")
    assert located.plan.fp32 == {culprit}
    (warning,) = located.warnings
    assert "is a fault, not precision" in warning
    assert located.diagnosis is Kind.FAULT


# --------------------------------------------------------------------------------------------------------- many samples


@pytest.mark.parametrize("loud", [0, 7, 8, 22, 39])
def test_the_one_sample_of_forty_that_overflows_decides(tmp_path, loud):
    path = tmp_path / "model.onnx"
    overflowing_norm(path, width=32, depth=6)
    rng = np.random.default_rng(1)
    scales = [1.0 if index == loud else 1e-3 for index in range(40)]
    feeds = [{"x": (scale * rng.standard_normal((64, 32))).astype(np.float32)} for scale in scales]
    located = locate(read_graph(load(path)), [Sample(str(i), feed) for i, feed in enumerate(feeds)], TOLERANCE)
    assert located.pins == PINS
    assert located.before.sample == loud
    assert located.minimal


def two_branches(path):
    """The larger of two branches of equal value, each of which goes through 1e-8: harm comes only where both are 0."""
    nodes, steps = [], ("small", "small", "large", "large")
    for branch in "ab":
        names = ["x", *(f"{branch}{step}" for step in range(len(steps)))]
        nodes += [node("Mul", [names[i], step], [names[i + 1]], f"{branch}_{i}") for i, step in enumerate(steps)]
    nodes.append(node("Max", ["a3", "b3"], ["y"], "larger"))
    constants = [constant("small", np.float32(1e-4)), constant("large", np.float32(1e4))]
    path.write_bytes(model(nodes, [value("x", [3])], [value("y", [3])], constants).SerializeToString())
    return read_graph(load(path))


@pytest.mark.parametrize(("samples", "loud"), [(2, 1), (3, 1), (40, 22), (40, 38)])
def test_a_sample_among_quiet_ones_is_understood_as_if_it_were_alone(tmp_path, samples, loud):
    """Nothing goes wrong where x is 0. What two roundings do together is found on the sample that shows it."""
    graph, tolerance = two_branches(tmp_path / "model.onnx"), Tolerance(0.01, 0.0)
    quiet, one = ({"x": np.full(3, number, np.float32)} for number in (0.0, 1.0))
    alone = locate(graph, [Sample("alone", one)], tolerance)
    assert len(alone.trials) <= 6
    among = [Sample(str(index), one if index == loud else quiet) for index in range(samples)]
    located = locate(graph, among, tolerance)
    assert located.pins == alone.pins
    assert {name[0] for name in located.pins} in ({"a"}, {"b"})
    assert [trial.plan for trial in located.trials] == [trial.plan for trial in alone.trials]


@pytest.mark.parametrize(("runner", "asked_of_one"), [("emulate", True), ("spy", False)])
def test_one_sample_is_asked_first_only_where_samples_are_what_costs(task, runner, asked_of_one):
    """An engine is built for each question: it is asked about all searched samples at once."""
    graph = task[0]
    random = np.random.default_rng(1)
    samples = [Sample(f"{i}", {"x": random.standard_normal((64, 32)).astype(np.float32)}) for i in range(3)]
    counts: list[int] = []

    class Spy(EmulatedOracle):
        def judge(self, plan, samples, speculative=no_plans):
            counts.append(len(samples))
            return super().judge(plan, samples, speculative)

    located = locate(graph, samples, TOLERANCE, oracle=lambda g, c: Spy(Emulator(g), c), runner=runner)
    assert located.pins == PINS
    assert set(counts) == ({1, 3} if asked_of_one else {3})
