"""A plan is robust if it passes by every reading of what kernels compute."""

from __future__ import annotations

import pytest

from trt_helper.search.oracle import Judgement, RobustOracle
from trt_helper.values import Plan, Trial, Verdict


class Fixed:
    """Judges every plan alike, and counts."""

    def __init__(self, error_ratio: float) -> None:
        self.error_ratio = error_ratio
        self.asked = 0

    def judge(self, plan, samples):
        self.asked += 1
        verdict = Verdict.PASS if self.error_ratio <= 1 else Verdict.FAIL
        return Judgement(Trial(plan, verdict, (), self.error_ratio), (), len(samples))


@pytest.mark.parametrize(
    ("ratios", "verdict", "decisive", "asked"),
    [
        ((0.1, 0.5, 0.9), Verdict.PASS, 0.9, 3),
        ((0.9, 0.5, 0.1), Verdict.PASS, 0.9, 3),
        ((0.1, 3.0, 0.1), Verdict.FAIL, 3.0, 2),
        ((2.0, 0.1, 0.1), Verdict.FAIL, 2.0, 1),
        ((0.1, 0.1, 9.0), Verdict.FAIL, 9.0, 3),
    ],
)
def test_the_first_reading_that_fails_decides_or_the_largest_error(ratios, verdict, decisive, asked):
    oracles = [Fixed(ratio) for ratio in ratios]
    judgement = RobustOracle(oracles).judge(Plan(), (0, 1))
    assert (judgement.trial.verdict, judgement.trial.error_ratio) == (verdict, decisive)
    assert sum(oracle.asked for oracle in oracles) == asked, "what comes after it is not asked"
    assert judgement.inferences == 2 * asked
