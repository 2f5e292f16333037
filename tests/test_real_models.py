"""The emulator on real models with real inputs, against ONNX Runtime."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from support.independent import run_on_ort, run_with_pairs
from support.model_cases import ModelCase

from trt_helper.values import Plan

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "models"
NAMES = [
    "gtcrn_simple",
    "magika_standard_v3_3",
    "mnist",
    "ppocrv3_det",
    "silero_vad_16k_op15",
    "ultraface_rfb_320",
    "yunet_n_dynamic",
]
# Largest error over the output's range when everything is FP16: a few steps of half precision (2**-11)
# for the networks that are known to stay fine.
FINE = {"silero_vad_16k_op15": 0.02, "ultraface_rfb_320": 0.02, "yunet_n_dynamic": 0.03, "mnist": 0.01}
# What folding constants and BatchNorm in FP32, and sums in another order, may change, over the output's range.
FP32_NOISE = 1e-4

real_model = pytest.mark.parametrize("name", NAMES)


@cache
def real(name: str) -> ModelCase:
    path = FOLDER / name / "model.onnx"
    if not path.is_file():
        pytest.skip(f"the real models are not here: {path} does not exist")
    inputs = sorted((FOLDER / name / "inputs").glob("*.npz"))
    if not inputs:
        model = onnx.load(path)
        held = {tensor.name for tensor in model.graph.initializer}
        (given,) = (value for value in model.graph.input if value.name not in held)
        shape = [d.dim_value for d in given.type.tensor_type.shape.dim]
        return ModelCase(path, {given.name: np.random.default_rng(0).random(shape, np.float32)})
    with np.load(inputs[0]) as archive:
        return ModelCase(path, dict(archive))


def of_range(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest error over the largest value."""
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-6))


@real_model
@pytest.mark.parametrize("pinned", ["nothing", "every third layer"])
def test_the_emulator_says_what_the_typed_file_computes(tmp_path, name, pinned):
    """Bit for bit."""
    model_case = real(name)
    plan = Plan() if pinned == "nothing" else Plan.of(model_case.graph.candidates[::3])
    expected = run_with_pairs(model_case.write(plan, tmp_path), model_case.feed)
    found = model_case.one_step.run(plan, model_case.feed)
    assert list(found) == list(expected)
    for output, array in expected.items():
        np.testing.assert_array_equal(found[output], array, err_msg=output)


@real_model
def test_with_everything_pinned_the_users_own_file_is_matched(tmp_path, name):
    model_case = real(name)
    typed = model_case.write(model_case.graph.all_pinned(), tmp_path)
    assert not [node for node in onnx.load(typed).graph.node if "to_fp16" in node.name]
    found = run_on_ort(typed, model_case.feed)
    for output, expected in run_on_ort(model_case.path, model_case.feed).items():
        assert of_range(found[output], expected) < FP32_NOISE, output


@pytest.mark.parametrize("name", FINE)
def test_models_that_are_fine_in_half_are_judged_fine(name):
    model_case = real(name)
    found = model_case.emulator.run(Plan(), model_case.feed)
    for output, expected in run_on_ort(model_case.path, model_case.feed).items():
        assert of_range(found[output], expected) < FINE[name], output


def test_the_answer_of_ppocrv3_det_in_half_points_the_same_way():
    """INDEX.md: cosine 0.99998. Rounded before it is folded, a running variance of 4.8e7 breaks it."""
    model_case = real("ppocrv3_det")
    expected = run_on_ort(model_case.path, model_case.feed)
    found = model_case.emulator.run(Plan(), model_case.feed)
    (a,), (b,) = ([array.ravel().astype(np.float64) for array in outputs.values()] for outputs in (found, expected))
    assert a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) > 0.9999


def test_magika_breaks_in_half_by_an_overflow_that_a_walk_shows():
    """INDEX.md: the decomposed LayerNorm_1 passes 65504 on every file."""
    model_case = real("magika_standard_v3_3")
    (expected,) = run_on_ort(model_case.path, model_case.feed).values()
    (found,) = model_case.emulator.run(Plan(), model_case.feed).values()
    assert np.abs(found - expected).max() > 0.5
    beyond = [
        step.layer.name
        for step in model_case.emulator.walk(Plan(), model_case.feed)
        if any(a.dtype.kind == "f" and np.abs(a).max(initial=0) > 65504 for a in step.reference.values())
    ]
    assert [layer for layer in beyond if "LayerNorm_1" in layer]


@real_model
def test_the_users_file_is_never_changed(tmp_path, name):
    model_case = real(name)
    before = model_case.path.stat()
    model_case.write(Plan(), tmp_path)
    assert model_case.path.stat() == before
