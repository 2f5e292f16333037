"""Plans judged by a runner: verdicts of real runs, and repeats that disagree."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from support.overflowing_models import CPU, overflowing_products, samples_of_products

from trt_helper.builder.settings import BuildSettings
from trt_helper.errors import MachineError
from trt_helper.inputs.references import references
from trt_helper.inputs.sample import Sample
from trt_helper.report.record import located_json
from trt_helper.runners.oracle import RunnerOracle, agreed
from trt_helper.runners.run import RUNNERS, runner_here
from trt_helper.search.locate import locate
from trt_helper.search.located import evidence
from trt_helper.search.oracle import Criteria, control_error
from trt_helper.search.strategy import no_plans
from trt_helper.values import DISAGREE, Plan, Tolerance, Trial, Verdict


@pytest.fixture
def graph(tmp_path):
    return overflowing_products(tmp_path)


def oracle(graph, given, **how):
    return RunnerOracle(
        graph, CPU, Criteria(given, references(graph, given), Tolerance(1e-2, 0)), {}, BuildSettings(), **how
    )


def test_the_oracle_judges_a_plan_by_what_was_run(graph):
    """The all-FP32 plan is the model itself; its FP16 sibling is beyond 65504 on any machine that computes FP16."""
    real = oracle(graph, samples_of_products(2, 3))
    judgement = real.judge(graph.all_pinned(), [0, 1])
    assert (judgement.trial.verdict, judgement.inferences) == (Verdict.PASS, 4)
    assert [len(errors) for errors in judgement.per_sample] == [1, 1]
    assert len(real.judge(graph.all_pinned(), [1]).per_sample) == 1


def test_a_plan_that_cannot_be_run_is_unresolved_with_the_reason(graph):
    good = oracle(graph, samples_of_products(2))
    wrong = [Sample("wrong", {"x/1": np.zeros([2, 9], np.float32)})]
    broken = replace(good, criteria=replace(good.criteria, samples=wrong))
    trial = broken.judge(Plan(), [0]).trial
    assert trial.verdict is Verdict.UNRESOLVED
    assert "sample 0 cannot be run" in trial.why


def test_a_search_asks_the_runner_and_says_so(graph):
    given, judged = samples_of_products(2, 3), []

    class Counting(RunnerOracle):
        def judge(self, plan, which, speculative=no_plans):
            judged.append(plan)
            return super().judge(plan, which, speculative)

    def counting(graph, criteria):
        return Counting(graph, CPU, criteria, {}, BuildSettings())

    located = locate(graph, given, Tolerance(1e-2, 0), oracle=counting, runner="cpu")
    assert {trial.plan for trial in located.trials} <= set(judged)
    assert located.after.verdict is Verdict.PASS
    assert [len(errors) for errors in located.per_sample["after"]] == [1, 1]
    assert located_json(located)["runner"] == evidence(located)["runner"] == "cpu"


@pytest.mark.gpu
@pytest.mark.parametrize("name", RUNNERS)
def test_on_a_gpu_half_overflows_and_the_pinned_plan_passes(graph, name):
    try:
        runner = runner_here(name)
    except MachineError as error:
        pytest.skip(error.message)
    given = samples_of_products(2, 3)
    real = replace(oracle(graph, given), runner=runner, settings=BuildSettings(tensorrt=name == "tensorrt"))
    assert real.judge(graph.all_pinned(), [0, 1]).trial.verdict is Verdict.PASS
    assert real.judge(Plan(), [0, 1]).trial.verdict is Verdict.FAIL


# -------------------------------------------------------------------------------------------------------------- repeats


PASSED, FAILED = (
    Trial(Plan(), verdict, (), error_ratio) for verdict, error_ratio in ((Verdict.PASS, 0.5), (Verdict.FAIL, 3.0))
)


def test_repeats_that_agree_are_as_bad_as_the_worst():
    worse = replace(PASSED, error_ratio=0.9)
    assert agreed([PASSED, worse, PASSED]) == worse
    assert agreed([FAILED]) == FAILED


def test_repeats_that_disagree_are_unresolved_with_the_range():
    trial = agreed([PASSED, FAILED, PASSED])
    assert trial.verdict is Verdict.UNRESOLVED
    assert trial.why == f"{DISAGREE}: 0.5 to 3 times the tolerance in 3 runs"


def test_a_control_whose_repeats_disagree_is_not_called_inaccurate():
    """Exit 5, not 1: nothing is known of the tolerance."""
    control = agreed([PASSED, FAILED])
    error = control_error(control, [], Tolerance())
    assert error.exit_status == 5
    assert "repeats disagree: 0.5 to 3 times the tolerance in 2 runs" in error.message
    assert control_error(replace(FAILED, why="a layer cannot be computed"), [], Tolerance()).exit_status == 3
