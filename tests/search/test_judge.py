"""The judge of a search: it remembers verdicts, and held-out samples have the last word."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.model_cases import MODELS

from trt_helper.onnx_model.graph import Graph, read_graph
from trt_helper.onnx_model.load import load
from trt_helper.search.journal import Journal
from trt_helper.search.judge import DISAGREED, PlanJudge, hold_out
from trt_helper.search.oracle import Criteria, Judgement
from trt_helper.search.strategy import Try, no_plans
from trt_helper.values import Plan, TensorError, Tolerance, Trial, Verdict


@pytest.mark.parametrize(("count", "held"), [(1, []), (3, []), (4, [3]), (7, [3]), (8, [3, 7]), (11, [3, 7])])
def test_a_quarter_is_held_out_of_four_or_more(count, held):
    searched, held_out = hold_out(count)
    assert list(held_out) == held
    assert list(searched) == [index for index in range(count) if index not in held]


@given(st.integers(0, 40))
def test_each_sample_is_searched_or_held_out(count):
    searched, held_out = hold_out(count)
    assert sorted((*searched, *held_out)) == list(range(count))
    assert len(held_out) == (count // 4 if count >= 4 else 0)


@pytest.fixture
def graph(model_case) -> Graph:
    return read_graph(load(model_case(next(iter(MODELS))).path))


class Counting:
    """Passes a plan on the samples that its number of pins covers: one pin for each sample."""

    def __init__(self) -> None:
        self.judged: list[tuple[Plan, tuple[int, ...]]] = []

    def judge(self, plan, samples, _speculative=no_plans):
        self.judged.append((plan, tuple(samples)))
        worst = max(samples)
        passes = worst < len(plan)
        errors = tuple((TensorError("y", float(index), 0, 0, 0, 0, 0, (), 0, 0, 1),) for index in samples)
        trial = Trial(plan, Verdict.PASS if passes else Verdict.FAIL, errors[0], 0.5 if passes else 2.0)
        return Judgement(trial, errors, len(samples))

    def intermediate_errors(self, *_args):
        return ()


def judge_of(graph: Graph, samples: int, oracle: Counting, warnings: list[str] | None = None) -> PlanJudge:
    criteria = Criteria([None] * samples, [{}] * samples, Tolerance())
    return PlanJudge(graph, oracle, criteria, Journal(), [].append if warnings is None else warnings.append)


class WorstIsLast(Counting):
    """As `Counting`; the sample with the largest index decides, as it has the largest error."""

    def judge(self, plan, samples, speculative=no_plans):
        judgement = super().judge(plan, samples, speculative)
        worst = replace(judgement.trial, sample=samples.index(max(samples)))
        return replace(judgement, trial=worst)


def plan(pins: int) -> Plan:
    return Plan.of(f"n{index}" for index in range(pins))


def test_a_plan_is_judged_once_on_the_same_samples(graph):
    oracle = Counting()
    judge = judge_of(graph, 3, oracle)
    first = judge.judge(Try(plan(3), "because of this"))
    assert judge.on_every_sample(plan(3)) == first
    assert judge.per_sample(plan(3))[2][0].max == 2.0
    assert oracle.judged == [(plan(3), (0, 1, 2))]
    assert judge.inferences == 3
    assert judge.known(plan(3)).because == "because of this"
    assert judge.known(plan(2)) is None


def test_a_plan_that_fails_on_the_searched_samples_is_not_shown_the_held_out_ones(graph):
    oracle = Counting()
    judge = judge_of(graph, 5, oracle)
    assert judge.judge(Try(plan(1), "")).verdict is Verdict.FAIL
    assert oracle.judged == [(plan(1), (0, 1, 2, 4))]


def test_once_held_out_samples_disagree_all_samples_judge(graph):
    class Strict(Counting):
        def judge(self, plan, samples, speculative=no_plans):
            judgement = super().judge(plan, samples, speculative)
            wrong = 3 in samples and len(plan) < 9
            return Judgement(Trial(plan, Verdict.FAIL), (), len(samples)) if wrong else judgement

    oracle, warnings = Strict(), []
    judge = judge_of(graph, 5, oracle, warnings)
    assert judge.judge(Try(plan(8), "")).verdict is Verdict.FAIL
    assert warnings == [DISAGREED]
    assert (judge.searched, judge.held_out) == ((0, 1, 2, 3, 4), ())
    assert judge.judge(Try(plan(9), "")).verdict is Verdict.PASS
    assert [samples for _, samples in oracle.judged] == [(0, 1, 2, 4), (0, 1, 2, 3, 4), (0, 1, 2, 3, 4)]


def test_the_best_plan_is_the_first_of_the_smallest_that_passed(graph):
    judge = judge_of(graph, 2, Counting())
    assert judge.best is None
    for pins in (4, 1, 2, 3):
        judge.judge(Try(plan(pins), ""))
    assert judge.best.plan == plan(2)


# ------------------------------------------------------------------------------------------ one sample first


def one_sample_first(graph, oracle, metric=None) -> PlanJudge:
    criteria = Criteria([None] * 5, [{}] * 5, Tolerance(), metric)
    judge = PlanJudge(graph, oracle, criteria, Journal(), one_sample_first=True)
    judge.judge(Try(plan(2), ""))  # fails; sample 4 decides
    oracle.judged.clear()
    return judge


def test_a_doubtful_plan_that_fails_on_the_decisive_sample_is_judged_on_no_other(graph):
    oracle = WorstIsLast()
    trial = one_sample_first(graph, oracle).judge(Try(plan(1), "", doubtful=True))
    assert trial.verdict is Verdict.FAIL
    assert oracle.judged == [(plan(1), (4,))]
    assert trial.sample == 3  # of the four searched ones: 0, 1, 2 and 4


def test_a_doubtful_plan_that_passes_there_has_to_pass_on_all(graph):
    oracle = WorstIsLast()
    assert one_sample_first(graph, oracle).judge(Try(plan(5), "", doubtful=True)).verdict is Verdict.PASS
    assert [samples for _, samples in oracle.judged] == [(4,), (0, 1, 2, 4), (0, 1, 2, 3, 4)]


def test_a_plan_that_is_not_doubtful_is_judged_on_all_at_once(graph):
    oracle = WorstIsLast()
    one_sample_first(graph, oracle).judge(Try(plan(1), ""))
    assert oracle.judged == [(plan(1), (0, 1, 2, 4))]


def test_no_single_sample_decides_a_metric_of_all(graph):
    """An accuracy of 0 on one image says nothing about that of a hundred."""
    oracle = WorstIsLast()
    one_sample_first(graph, oracle, metric=object()).judge(Try(plan(1), "", doubtful=True))
    assert oracle.judged == [(plan(1), (0, 1, 2, 4))]


def test_an_oracle_whose_builds_are_what_costs_is_asked_once(graph):
    """Where an engine is built for each question, all samples are judged with it."""
    oracle = WorstIsLast()
    judge = judge_of(graph, 5, oracle)
    judge.judge(Try(plan(2), ""))
    judge.judge(Try(plan(1), "", doubtful=True))
    assert [samples for _, samples in oracle.judged] == [(0, 1, 2, 4), (0, 1, 2, 4)]
