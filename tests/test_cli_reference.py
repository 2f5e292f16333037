"""`--reference`: a model that is typed already is judged against the FP32 model that it was made from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cli_helpers import constant, model, node, ok, own_folder, refused, run, saved, value

CONFIG = "fp32_layers.yaml"
EXACT = ("--inputs", "x.npz", "--atol", "0.01", "--rtol", "0")


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch):
    """`model.onnx` has a weight of 1e-9, which no half holds; `typed.onnx` is what another tool makes of it."""
    own_folder(tmp_path, monkeypatch)
    w = np.full((4, 4), 1e-9, np.float32)
    saved(
        model(
            [node("MatMul", ["x", "w"], ["h"], "tiny"), node("Mul", ["h", "back"], ["y"], "scale")],
            [value("x", ["b", 4])],
            [value("y", ["b", 4])],
            [constant("w", w), constant("back", np.float32(5e4))],
        )
    )
    np.savez("x.npz", x=np.full((2, 4), 1e4, np.float32))  # y = 4 * 1e4 * 1e-9 * 5e4 = 2
    Path(CONFIG).write_text("FP32_LAYERS_FOR_FP16: []\natol: 0.01\nrtol: 0.0\n")
    ok("convert", "model.onnx", "--no-engine", "--typed-onnx", "typed.onnx")


def test_a_typed_model_agrees_with_itself_and_not_with_what_it_was_made_from():
    ok("compare", "typed.onnx", *EXACT)
    done = run("compare", "typed.onnx", *EXACT, "--reference", "model.onnx", "--json")
    assert done.status == 1
    (sample,) = json.loads(done.out)["samples"]
    assert sample["outputs"]["y"]["max"] == pytest.approx(2.0, rel=1e-5)


def test_the_gate_asks_the_reference_too():
    given = ("gate", "typed.onnx", CONFIG, "--inputs", "x.npz")
    ok(*given)
    done = run(*given, "--reference", "model.onnx")
    assert done.status == 1
    assert "output 'y': max error 2, allowed 0.01" in done.err
    ok(*given)  # nothing of the other reference was remembered


def test_what_the_typed_model_holds_in_fp32_stays_there():
    Path(CONFIG).write_text("FP32_LAYERS_FOR_FP16: [tiny]\natol: 0.01\nrtol: 0.0\n")
    ok("convert", "model.onnx", "--config", CONFIG, "--no-engine", "--typed-onnx", "pinned.onnx")
    ok("compare", "pinned.onnx", *EXACT, "--reference", "model.onnx")


def test_a_reference_of_another_model_is_refused():
    other = model([node("Relu", ["x"], ["z"], "act")], [value("x", ["b", 4])], [value("z", ["b", 4])])
    saved(other, "other.onnx")
    says = "other.onnx has the outputs 'z', typed.onnx has 'y'"
    refused("compare", "typed.onnx", *EXACT, "--reference", "missing.onnx", says="missing.onnx")
    refused("compare", "typed.onnx", *EXACT, "--reference", "other.onnx", says=says, fix="the FP32 model that")
    done = run("gate", "typed.onnx", CONFIG, "--inputs", "x.npz", "--reference", "other.onnx")
    assert done.status == 3
    assert says in done.err
