"""`--cures` of `locate`, and the commands that apply the rewrites of a config."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from support.command_line import ok, run, two_lines
from support.rewritable_models import WIDTH, rms
from support.zoo import Net


@pytest.fixture
def norm_model(tmp_path, monkeypatch) -> str:
    """A root mean square of values near 300, whose squares pass 65504."""
    monkeypatch.chdir(tmp_path)
    net = Net(9)
    y = rms(net, net("Mul", net.input("x", [4, WIDTH]), 300.0, name="up"))
    onnx.save(net.model("norm", [net("Add", y, net.normal(WIDTH), name="shift")], [4, WIDTH]), "model.onnx")
    np.savez("x.npz", x=np.random.default_rng(2).normal(size=(4, WIDTH)).astype(np.float32))
    return "model.onnx"


LOCATE = ("-i", "x.npz", "--atol", "0.02", "--rtol", "0")


def test_every_command_applies_the_rewrites_of_the_config(norm_model):
    assert ok("locate", norm_model, *LOCATE, "--json").json["fp32_layers"] != []
    found = ok("locate", norm_model, *LOCATE, "--cures", "pins,norms", "--json").json
    assert found["fp32_layers"] == []
    assert [(rewrite["norms"], rewrite["as"]) for rewrite in found["cures"]] == [("norm", "RMSNormalization")]
    assert next(iter(found["cures"][0]["without"].values()))["max"] > 0.02
    again = ok("compare", "-c", "fp32_layers.yaml", "-i", "x.npz", "--json").json
    assert again["verdict"] == "pass"
    assert "RMSNormalization" in [layer["op"] for layer in again["layers"]]
    ok("convert", "-c", "fp32_layers.yaml", "--typed-onnx", "typed.onnx", "--no-engine")
    assert "RMSNormalization" in [node.op_type for node in onnx.load("typed.onnx").graph.node]
    assert ok("gate", "fp32_layers.yaml", "--json").json["verdict"] == "pass"


def test_without_pins_the_best_that_rewrites_reach_is_the_answer(norm_model):
    found = run("locate", norm_model, *LOCATE, "--cures", "constants", "--json")
    assert found.status == 1
    assert found.json["fp32_layers"] == []
    assert found.json["verdict"] == "fail"


@pytest.mark.parametrize("kinds", ["", "norm", "pins,,norms", "all"])
def test_a_kind_of_rewrite_that_is_none_is_refused(norm_model, kinds):
    result = run("locate", norm_model, *LOCATE, "--cures", kinds)
    assert result.status == 2
    assert "pins, constants, norms, logs, rows, bf16" in " ".join(result.err.split())


def test_a_rewrite_that_the_model_lacks_is_refused_in_two_lines(norm_model):
    Path("plan.yaml").write_text("cures:\n- {norms: nrm, as: RMSNormalization}\n")
    result = run("compare", norm_model, "-c", "plan.yaml", "-i", "x.npz")
    assert result.status == 3
    assert two_lines(result.err) == ("the model offers no cure of 'nrm' by norms", "did you mean 'norm'?")


def test_a_logarithm_that_underflows_in_fp32_too_is_said_and_cured(tmp_path, monkeypatch):
    """No pin helps: an engine computes log(softmax), and exp(-120) is 0 in FP32."""
    monkeypatch.chdir(tmp_path)
    net = Net(0)
    onnx.save(net.model("log", [net("LogSoftmax", net.input("x", [2, 8]), name="log", axis=-1)], [2, 8]), "model.onnx")
    np.savez("x.npz", x=np.linspace([-120, -1], [0, 1], 8, axis=1, dtype=np.float32))
    tolerance = ("-i", "x.npz", "--atol", "0.2", "--rtol", "0")
    failed = run("locate", "model.onnx", *tolerance)
    assert failed.status == 1
    assert "underflows in FP32, too: --cures pins,logs" in two_lines(failed.err)[1]
    found = ok("locate", "model.onnx", *tolerance, "--cures", "pins,logs")
    assert "computing it without underflow" in found.out
    assert "FP16 is accurate with 1 cure" in found.out
    ok("gate", "fp32_layers.yaml")
    ok("report", "fp32_layers.run.json")
    ok("convert", "-c", "fp32_layers.yaml", "--typed-onnx", "typed.onnx", "--no-engine")
    assert "LogSoftmax" not in [node.op_type for node in onnx.load("typed.onnx").graph.node]


def test_a_product_with_one_row_whose_terms_underflow_is_cured(tmp_path, monkeypatch):
    """A kernel for one row multiplies 1e-4 by 1e-4 in half, which is 0; with two rows it takes tensor cores."""
    monkeypatch.chdir(tmp_path)
    net = Net(0)
    x = net("MatMul", net.input("x", [1, 256]), np.full((256, 8), 1e-4, np.float32), name="product")
    onnx.save(net.model("row", [net("Mul", x, 6e4, name="scale")], [1, 8]), "model.onnx")
    np.savez("x.npz", x=np.full((1, 256), 1e-4, np.float32))
    tolerance = ("-i", "x.npz", "--atol", "0.005", "--rtol", "0")
    assert ok("locate", "model.onnx", *tolerance, "--json").json["fp32_layers"] == ["product"]
    found = ok("locate", "model.onnx", *tolerance, "--cures", "pins,rows", "--json").json
    assert (found["fp32_layers"], found["cures"][0]["rows"]) == ([], "product")
    ok("gate", "fp32_layers.yaml")
    ok("report", "fp32_layers.run.json")
    ok("convert", "-c", "fp32_layers.yaml", "--typed-onnx", "typed.onnx", "--no-engine")
    assert [node.op_type for node in onnx.load("typed.onnx").graph.node if node.op_type in ("Concat", "Slice")] != []
