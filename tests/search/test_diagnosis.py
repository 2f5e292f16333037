"""Precision, a kernel of lower accuracy or a fault: seeded in what stands in for a runner, each is named right.

What stands in shares no code with the emulator: ONNX Runtime on the typed file with pairs of casts, products in numpy
that are accumulated in half (one, eight or thirty-two terms at a time, as other kernels would), and faults put on top.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import support.zoo_cases  # noqa: F401 - fills CASES
from support.independent import run_with_pairs
from support.lowered_models import OneOperator
from support.model_cases import ModelCase, save_case
from support.zoo import CASES

from trt_helper.emulator.emulator import Emulator
from trt_helper.inputs.references import references
from trt_helper.inputs.sample import Sample
from trt_helper.search.diagnosis import Kind, diagnose
from trt_helper.search.oracle import Criteria, EmulatedOracle
from trt_helper.values import Plan, Reading, Tolerance, Verdict

WITH_HAZARDS = [name for name, case in CASES.items() if case.k][::9]


def diagnosed(case: ModelCase, atol: float, outputs: dict[str, np.ndarray]) -> Kind:
    """What is said of a runner that gives these outputs, which are out of tolerance."""
    sample = Sample("x", case.feed)
    criteria = Criteria([sample], references(case.graph, [sample]), Tolerance(atol, 0.0))
    found = criteria.judge(Plan(), [outputs], [0]).trial
    assert found.verdict is Verdict.FAIL
    by_reading = {
        reading: EmulatedOracle(Emulator(case.graph, reading=reading), criteria).judge(Plan(), [0]).trial
        for reading in (Reading.TYPICAL, Reading.WORST)
    }
    return diagnose(found, by_reading, criteria.tolerance)


def zoo_case(name: str, folder) -> ModelCase:
    path = folder / "model.onnx"
    onnx.save(CASES[name].make(), path)
    return ModelCase(path, CASES[name].samples(0)[0])


@pytest.mark.parametrize("name", WITH_HAZARDS)
def test_precision_is_named(tmp_path, name):
    case = zoo_case(name, tmp_path)
    outputs = dict(run_with_pairs(case.write(Plan()), case.feed))
    assert diagnosed(case, CASES[name].atol, outputs) is Kind.PRECISION


def accumulated(a: np.ndarray, b: np.ndarray, at_a_time: int) -> np.ndarray:
    """A product of halves that is accumulated in half."""
    total = np.zeros((len(a), b.shape[1]), np.float16)
    for first in range(0, a.shape[1], at_a_time):
        part = a[:, first : first + at_a_time].astype(np.float32) @ b[first : first + at_a_time].astype(np.float32)
        total = (total.astype(np.float32) + part).astype(np.float16)
    return total.astype(np.float32)


def product(folder, terms: int, offset: float) -> tuple[ModelCase, np.ndarray, np.ndarray]:
    random = np.random.default_rng(terms)
    a = (random.standard_normal((8, terms)) + offset).astype(np.float16).astype(np.float32)
    b = (random.standard_normal((terms, 16)) + offset).astype(np.float16).astype(np.float32)
    return save_case(OneOperator("MatMul", (a,), (b,)).case(), folder), a, b


@pytest.mark.parametrize("at_a_time", [1, 8, 32])
@pytest.mark.parametrize(("terms", "offset"), [(2048, 0.0), (4096, 0.0), (1024, 1.0)])
def test_a_kernel_of_lower_accuracy_is_named(tmp_path, terms, offset, at_a_time):
    case, a, b = product(tmp_path, terms, offset)
    outputs = accumulated(a.astype(np.float16), b.astype(np.float16), at_a_time)
    atol = 1.5 * float(np.abs((a @ b).astype(np.float16).astype(np.float32) - a @ b).max())  # FP16 passes
    assert diagnosed(case, atol, {"y": outputs}) is Kind.KERNEL


def swapped(y: np.ndarray) -> np.ndarray:
    return y[..., ::-1].copy()


def one_wrong(y: np.ndarray) -> np.ndarray:
    y = y.copy()
    y.flat[y.size // 2] = -y.flat[y.size // 2] + 40
    return y


def one_nan(y: np.ndarray) -> np.ndarray:
    y = y.copy()
    y.flat[0] = np.nan
    return y


def block_lost(y: np.ndarray) -> np.ndarray:
    y = y.copy()
    y[: len(y) // 2] = 0
    return y


FAULTS = {
    "swapped": swapped,
    "one wrong": one_wrong,
    "one NaN": one_nan,
    "block lost": block_lost,
    "scaled": lambda y: y * np.float32(1.1),
    "shifted": lambda y: np.roll(y, 1, axis=0),
    "infinite": lambda y: np.full_like(y, np.inf),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(tmp_path, fault):
    case, a, b = product(tmp_path, 1024, 0.0)
    outputs = FAULTS[fault]((a @ b).astype(np.float16).astype(np.float32))
    atol = 1.5 * float(np.abs((a @ b).astype(np.float16).astype(np.float32) - a @ b).max())
    assert diagnosed(case, atol, {"y": outputs}) is Kind.FAULT


@pytest.mark.parametrize("fault", ["swapped", "block lost", "infinite"])
def test_a_fault_on_top_of_precision_is_named(tmp_path, fault):
    """FP16 misses the tolerance by itself, and what is seen is much worse."""
    case, a, b = product(tmp_path, 1024, 0.0)
    exact = a @ b
    outputs = FAULTS[fault](exact.astype(np.float16).astype(np.float32))
    assert diagnosed(case, float(np.abs(exact.astype(np.float16) - exact).max()) / 2, {"y": outputs}) is Kind.FAULT
