"""docs/operators.md says of every operator of the standard what trt-helper does with it today. No engine is built."""

from __future__ import annotations

import operators
import pytest

PAGE = operators.rows(operators.PAGE.read_text(encoding="utf-8"))


def test_every_operator_of_the_standard_has_a_row():
    assert set(operators.operators()) <= PAGE.keys()


def test_the_deprecated_operators_that_are_still_seen_have_a_row():
    assert {"Scatter", "Upsample"} <= PAGE.keys()


@pytest.mark.parametrize("operator", sorted(PAGE))
def test_the_row_is_what_trt_helper_does_now(operator):
    example = operators.examples()[operator]
    opsets, says, _ = PAGE[operator]
    assert (opsets, says) == (operators.opsets(example), operators.helper_column(example))


def test_each_verdict_is_seen_in_the_table():
    kinds = {says.partition(":")[0].partition(";")[0] for _, says, _ in PAGE.values()}
    assert kinds == {"judged", "moves values", "fixed", "rewritten", "folded", "refused"}
