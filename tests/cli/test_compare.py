"""`trt-helper compare` of a model with its plan: its figures, its tables, and what is refused."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from support.command_line import PINS, misused, ok, refused, run, save_overflowing

pytestmark = pytest.mark.usefixtures("own_folder")


def test_compare_says_what_fp16_does_to_every_layer():
    path, samples = save_overflowing()
    result = run("compare", path, "-i", samples, "--json")
    assert result.status == 1
    assert result.err == ""
    found = result.json
    assert (found["schema"], found["verdict"], found["runner"], found["fp32_layers"]) == (1, "fail", "emulate", [])
    assert found["model"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found["tolerance"] == {"atol": 0.001, "rtol": 0.001, "check-error-stat": "max"}
    assert [sample["source"] for sample in found["samples"]] == ["x.npz"]
    assert found["samples"][0]["outputs"]["y"]["max"] == 1
    layers = {layer["name"]: layer for layer in found["layers"]}
    assert list(layers) == [*PINS, "/norm/Div"]
    assert layers["/norm/Pow"]["isolated"]["non_finite"] == 8  # 90000 in each of the eight
    assert layers["/norm/Div"]["isolated"]["max"] == 0  # 300 / 300: a victim, no culprit
    assert layers["/norm/Div"]["accumulated"]["max"] == 1


def test_compare_with_the_plan_passes_and_marks_its_pins():
    path, samples = save_overflowing()
    ok("locate", path, "-i", samples)
    found = ok("compare", "-c", "fp32_layers.yaml", "-i", samples, "--json").json
    assert found["verdict"] == "pass"
    assert found["fp32_layers"] == [layer["name"] for layer in found["layers"] if layer["pinned"]] == PINS
    assert {layer["accumulated"]["max"] for layer in found["layers"]} == {0}


def test_compare_shows_tables_with_the_worst_layers_only():
    path, samples = save_overflowing()
    whole = run("compare", path, "-i", samples)
    assert whole.status == 1
    assert all(name in whole.out for name in [*PINS, "/norm/Div", "x.npz", "FAIL"])
    one = run("compare", path, "-i", samples, "--rows", "1")
    assert sum(name in one.out for name in [*PINS, "/norm/Div"]) == 1
    misused("compare", path, "--rows", "0", says="Invalid value for '--rows'")


def test_compare_needs_a_model_and_a_plan_that_fits():
    misused("compare", says="Invalid value: give a model, or a --config that names one")
    save_overflowing()
    Path("plan.yaml").write_text("model: model.onnx\nFP32_LAYERS_FOR_FP16: [/norm/Divv]\n")
    refused("compare", "-c", "plan.yaml", says="the model has no layer named '/norm/Divv'", fix="'/norm/Div'")
    Path("plan.yaml").write_text("atol: {z: 1.0}\n")
    refused("compare", "model.onnx", "-c", "plan.yaml", says="the model has no output 'z'", fix="its outputs: y")
