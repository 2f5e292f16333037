"""Sums that half precision cannot accumulate are named, whatever is taken of kernels; sums that it can are not."""

from __future__ import annotations

import numpy as np
import pytest
from support.lowered_models import OneOperator
from support.model_cases import save_case

from trt_helper.emulator.emulator import Emulator
from trt_helper.emulator.partial_sums import partial_sums
from trt_helper.values import Plan, Reading

LAST = np.array([-1])


def full(value: float, *shape: int) -> np.ndarray:
    return np.full(shape, value, np.float32)


def alternating(value: float, *shape: int) -> np.ndarray:
    return full(value, *shape) * np.resize(np.array([1, -1], np.float32), shape)


LARGE = {
    "ReduceMean": (OneOperator("ReduceMean", (full(300, 2, 300),), (LAST,)), 300, 90_000),
    "ReduceSum": (OneOperator("ReduceSum", (alternating(300, 2, 300),), (LAST,)), 300, 90_000),
    "GlobalAveragePool": (OneOperator("GlobalAveragePool", (full(300, 1, 2, 20, 20),)), 400, 120_000),
    "MatMul": (OneOperator("MatMul", (alternating(30, 2, 100),), (full(30, 100, 4),)), 100, 90_000),
    "Gemm": (
        OneOperator("Gemm", (alternating(30, 2, 100).T.copy(),), (full(30, 100, 4),), 20, {"transA": 1}),
        100,
        90_000,
    ),
    "Conv": (OneOperator("Conv", (full(100, 1, 100, 2, 2),), (alternating(10, 3, 100, 1, 1),)), 100, 100_000),
    "ReduceL2": (OneOperator("ReduceL2", (full(30, 1, 100),), (LAST,)), 100, 90_000),
}
LONG = {
    "Softmax": (OneOperator("Softmax", (full(0, 1, 4096),)), 4096, 4096),
    "ReduceMean": (OneOperator("ReduceMean", (full(0.5, 1, 3000),), (LAST,)), 3000, 1500),
}
SMALL = {
    "Softmax": OneOperator("Softmax", (full(0, 1, 1000),)),
    "MatMul": OneOperator("MatMul", (full(1, 2, 4096),), (full(1, 4096, 4),)),
    "overflows by itself": OneOperator("ReduceSum", (full(300, 2, 300),), (LAST,)),
}


@pytest.mark.parametrize("one", [*LARGE.values(), *LONG.values()], ids=lambda one: one[0].operator)
def test_a_sum_that_half_cannot_accumulate_is_named(tmp_path, one):
    model, terms, largest = one
    case = save_case(model.case(), tmp_path)
    (found,) = partial_sums(case.emulator, (), case.feed)
    assert (found.layer, found.op, found.terms) == ("layer", model.operator, terms)
    assert found.largest == pytest.approx(largest, rel=1e-3)
    assert found.overflows == (largest > 65504)
    assert partial_sums(case.emulator, ["layer"], case.feed) == [], "in FP32 it can"


@pytest.mark.parametrize("one", SMALL.values(), ids=SMALL)
def test_a_sum_that_it_can_is_not(tmp_path, one):
    case = save_case(one.case(), tmp_path)
    assert partial_sums(case.emulator, (), case.feed) == []


@pytest.mark.parametrize("name", ["ReduceMean", "GlobalAveragePool"])
def test_the_worst_reading_overflows_where_that_is_said(tmp_path, name):
    case = save_case(LARGE[name][0].case(), tmp_path)
    (found,) = Emulator(case.graph, reading=Reading.WORST).run(Plan(), case.feed).values()
    assert np.isinf(found).all()
