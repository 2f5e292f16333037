"""The files of an interrupted search: the best plan so far is kept, and the search goes on from its journal."""

from __future__ import annotations

import numpy as np
import pytest
from support.overflowing_models import PINS, TOLERANCE, overflowing_norm

from trt_helper.config.plan_file import read_config
from trt_helper.errors import ControlError
from trt_helper.inputs.sample import Sample
from trt_helper.onnx_model.graph import Graph, read_graph
from trt_helper.onnx_model.load import load
from trt_helper.search.locate import locate
from trt_helper.search.oracle import EmulatedOracle, emulated
from trt_helper.search.saved import SavedSearch, SearchInterrupted
from trt_helper.search.strategy import no_plans
from trt_helper.values import Tensors, Verdict


@pytest.fixture
def task(tmp_path) -> tuple[Graph, list[Sample]]:
    path = tmp_path / "model.onnx"
    overflowing_norm(path, width=32, depth=6)
    feed = {"x": np.random.default_rng(1).standard_normal((64, 32)).astype(np.float32)}
    return read_graph(load(path)), [Sample("x", feed)]


def interrupting(after: int):
    """A factory of oracles that are interrupted in the middle of a trial."""
    begun = 0

    class Interrupting(EmulatedOracle):
        def judge(self, plan, samples, speculative=no_plans):
            nonlocal begun
            begun += 1
            if begun > after:
                raise KeyboardInterrupt
            return super().judge(plan, samples, speculative)

    return lambda graph, criteria: Interrupting(emulated(graph, criteria).emulator, criteria)


def test_ctrl_c_leaves_the_best_plan_and_a_search_that_goes_on(task, tmp_path):
    output = tmp_path / "plan.yaml"
    whole = locate(*task, TOLERANCE, saved=SavedSearch(tmp_path / "whole.yaml"))
    passed = next(i for i, trial in enumerate(whole.trials) if trial.plan.fp32 and trial.verdict is Verdict.PASS and i)
    with pytest.raises(SearchInterrupted) as caught:
        locate(*task, TOLERANCE, saved=SavedSearch(output), oracle=interrupting(passed + 1))
    assert isinstance(caught.value, KeyboardInterrupt)
    assert caught.value.output == output
    assert caught.value.best == whole.trials[passed].plan
    saved = read_config(output)
    assert set(saved.fp32_layers) == caught.value.best.fp32
    assert saved.evidence["minimal"] is False
    resumed = locate(*task, TOLERANCE, saved=SavedSearch(output), oracle=emulated)
    assert resumed.pins == whole.pins == PINS
    assert resumed.trials == whole.trials
    assert resumed.inferences < whole.inferences
    assert read_config(output).evidence["minimal"] is True
    assert not list(tmp_path.glob("*.journal"))


def test_ctrl_c_before_any_small_plan_passed_leaves_none(task, tmp_path):
    with pytest.raises(SearchInterrupted) as caught:
        locate(*task, TOLERANCE, saved=SavedSearch(tmp_path / "plan.yaml"), oracle=interrupting(1))
    assert caught.value.best is None
    assert not (tmp_path / "plan.yaml").exists()


def test_without_files_ctrl_c_is_what_it_always_is(task):
    with pytest.raises(KeyboardInterrupt) as caught:
        locate(*task, TOLERANCE, oracle=interrupting(2))
    assert not isinstance(caught.value, SearchInterrupted)


def test_an_error_leaves_no_journal(task, tmp_path):
    wrong: list[Tensors] = [{"m5": np.zeros((64, 32), np.float32)}]
    with pytest.raises(ControlError):
        locate(*task, TOLERANCE, saved=SavedSearch(tmp_path / "plan.yaml"), references=wrong)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
