"""`--reference`: a model that is typed already is judged against the FP32 model that it was made from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from support.command_line import ok, own_folder, refused, run, saved
from support.onnx_parts import constant, model, node, value

from trt_helper.system.files import sha256_of

CONFIG = "fp32_layers.yaml"
EXACT = ("--inputs", "x.npz", "--atol", "0.01", "--rtol", "0")


def model_of(weight):
    return model(
        [node("MatMul", ["x", "w"], ["h"], "tiny"), node("Mul", ["h", "back"], ["y"], "scale")],
        [value("x", ["b", 4])],
        [value("y", ["b", 4])],
        [constant("w", np.full((4, 4), weight, np.float32)), constant("back", np.float32(5e4))],
    )


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch):
    """`model.onnx` has a weight of 1e-9, which no half holds; `typed.onnx` is what another tool makes of it."""
    own_folder(tmp_path, monkeypatch)
    monkeypatch.setenv("TRT_HELPER_CACHE", str(tmp_path / "cache"))
    saved(model_of(1e-9))
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


def test_a_baseline_against_another_model_judges_no_error_against_the_model_itself():
    """The errors are 2 against `model.onnx` and 0 against the typed model itself."""
    Path(CONFIG).write_text("FP32_LAYERS_FOR_FP16: []\natol: 5.0\nrtol: 0.0\n")
    given = ("gate", "typed.onnx", CONFIG, "--inputs", "x.npz", "--json")
    against = (*given, "--reference", "model.onnx")
    ok(*given, "--update-baseline")
    done = run(*against)  # 0 then, 2 now
    assert (done.status, json.loads(done.out)["configs"][0]["baseline"]) == (0, None)
    assert "holds no baseline made with --reference" in done.err
    ok(*against, "--update-baseline")
    stored = json.loads(Path("fp32_layers.baseline.json").read_text())["baselines"].values()
    worst = {entry["reference"]: entry["outputs"]["y"]["max"] for entry in stored}
    assert worst == {None: 0.0, sha256_of(Path("model.onnx")): 2.0}
    for command, expected in ((given, 0.0), (against, 2.0)):
        done = run(*command)
        (result,) = json.loads(done.out)["configs"]
        assert (done.status, result["baseline"]["outputs"]["y"]["max"]) == (0, expected)
        assert "baseline" not in done.err
    saved(model_of(-1e-9), "copy.onnx")
    done = run(*given, "--reference", "copy.onnx")
    assert "the baseline is of emulate, against" in done.err
    assert done.status == 0  # 2 against both


def test_what_was_found_of_a_pin_is_remembered_for_its_reference_alone():
    """FP16 makes 1 of 1 + 2^-12, which is within 3e-4; from 1 + 2^-12 + 2^-13 that is too far, and 2^-13 is not."""

    def scaled(by):
        factor = constant("by", np.float32(by))
        return model([node("Mul", ["x", "by"], ["y"], "scale")], [value("x", [4])], [value("y", [4])], [factor])

    saved(scaled(1 + 2**-12))
    saved(scaled(1 + 2**-12 + 2**-13), "other.onnx")
    np.savez("x.npz", x=np.ones(4, np.float32))
    Path(CONFIG).write_text("FP32_LAYERS_FOR_FP16: [scale]\natol: 0.0003\nrtol: 0.0\n")
    given = ("gate", "model.onnx", CONFIG, "--inputs", "x.npz", "--check-pins")
    says = "pin 'scale' is no longer needed"
    for _ in range(2):  # what was found, and what was remembered
        assert says in run(*given).err
        done = run(*given, "--reference", "other.onnx")
        assert done.status == 0
        assert says not in done.err


def test_a_reference_that_computes_in_half_is_named():
    half = model(
        [
            node("Cast", ["x"], ["a"], "down", to=10),
            node("Relu", ["a"], ["b"], "act"),
            node("Cast", ["b"], ["y"], "up", to=1),
        ],
        [value("x", ["b", 4])],
        [value("y", ["b", 4])],
    )
    saved(half, "half.onnx")
    says = "computes in half precision itself"
    assert f"half.onnx {says}" in run("compare", "typed.onnx", *EXACT, "--reference", "half.onnx").err
    given = ("gate", "typed.onnx", CONFIG, "--inputs", "x.npz", "--reference")
    assert says in run(*given, "half.onnx").err
    assert says not in run(*given, "model.onnx").err
    stored = model(
        [
            node("Cast", ["x"], ["a"], "widen", to=1),
            node("Cast", ["w"], ["v"], "weight", to=1),
            node("Mul", ["a", "v"], ["z"], "scale"),
            node("Cast", ["z"], ["y"], "narrow", to=10),
        ],
        [value("x", ["b", 4], onnx.TensorProto.FLOAT16)],
        [value("y", ["b", 4], onnx.TensorProto.FLOAT16)],
        [constant("w", np.float16(2))],
    )
    saved(stored, "stored.onnx")  # input, output and weight are halves, and it computes in FP32
    done = run(*given, "stored.onnx")
    assert done.status in (0, 1), done.err  # judged
    assert says not in done.err


@pytest.mark.parametrize(
    ("inputs", "outputs", "says"),
    [
        (["b", 5], ["b", 5], "other.onnx has 'x' as float [b, 5], typed.onnx as float [b, 4]"),
        (["b", 4, 1], ["b", 4, 1], "other.onnx has 'x' as float [b, 4, 1], typed.onnx as float [b, 4]"),
        (["b", 4], ["b", 4], None),
        ([2, "c"], ["b", "c"], None),  # a fixed batch is a batch that the other one takes
    ],
)
def test_a_reference_of_other_shapes_is_refused(inputs, outputs, says):
    saved(model([node("Relu", ["x"], ["y"], "act")], [value("x", inputs)], [value("y", outputs)]), "other.onnx")
    given = ("compare", "typed.onnx", *EXACT, "--reference", "other.onnx")
    if says:
        refused(*given, says=says, fix="the FP32 model that")
    else:
        assert run(*given).status in (0, 1)


def test_a_reference_of_other_types_is_refused():
    nodes = [node("Cast", ["x"], ["y"], "widen", to=1)]
    saved(model(nodes, [value("x", ["b", 4], onnx.TensorProto.INT64)], [value("y", ["b", 4])]), "other.onnx")
    says = "other.onnx has 'x' as int64 [b, 4], typed.onnx as float [b, 4]"
    refused("compare", "typed.onnx", *EXACT, "--reference", "other.onnx", says=says)


def test_a_reference_of_another_model_is_refused():
    other = model([node("Relu", ["x"], ["z"], "act")], [value("x", ["b", 4])], [value("z", ["b", 4])])
    saved(other, "other.onnx")
    says = "other.onnx has the outputs 'z', typed.onnx has 'y'"
    refused("compare", "typed.onnx", *EXACT, "--reference", "missing.onnx", says="missing.onnx")
    refused("compare", "typed.onnx", *EXACT, "--reference", "other.onnx", says=says, fix="the FP32 model that")
    done = run("gate", "typed.onnx", CONFIG, "--inputs", "x.npz", "--reference", "other.onnx")
    assert done.status == 3
    assert says in done.err
