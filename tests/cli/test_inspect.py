"""`trt-helper inspect`: what is in a model, and the proof beside an engine."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from onnx import TensorProto
from support.command_line import clean, ok, refused, saved
from support.onnx_parts import model, node, value

from trt_helper.builder import engine_file

pytestmark = pytest.mark.usefixtures("own_folder")


def test_inspect_shows_inputs_outputs_and_layers_of_a_model():
    saved(clean())
    found = ok("inspect", "model.onnx", "--json").json
    assert found["schema"] == 1
    assert found["model"]["layers"] == 2
    assert found["opset"] == 17
    assert found["inputs"] == [{"name": "x", "type": "float", "shape": ["b", 4]}]
    assert found["outputs"] == [{"name": "y", "type": "float", "shape": ["b", 4]}]
    dense, act = found["layers"]
    assert (dense["name"], dense["op"], dense["role"], dense["children"]) == ("dense", "MatMul", "compute", ["act"])
    assert (act["name"], act["parents"]) == ("act", ["dense"])
    shown = ok("inspect", "model.onnx")
    assert "model.onnx: 2 layers, 2 of them may be pinned, opset 17" in shown.out
    assert "MatMul" in shown.out
    assert "dense" not in shown.out
    assert "dense" in ok("inspect", "model.onnx", "--layers").out


def test_inspect_tells_the_users_own_types_of_a_half_model():
    half = TensorProto.FLOAT16
    saved(model([node("Neg", ["x"], ["y"], "neg")], [value("x", [2], half)], [value("y", [2], half)]))
    found = ok("inspect", "model.onnx", "--json").json
    assert [found[side][0]["type"] for side in ("inputs", "outputs")] == ["float16", "float16"]


def save_engine(**changes):
    """Something that begins as an engine does, with its sidecar."""
    data = b"vtrt" + bytes(100)
    Path("m.trt").write_bytes(data)
    pin = {"layer": "/norm/Pow", "state": "fp32", "engine_layers": ["kernel"], "types": ["FP32"], "evidence": "reads"}
    layer = {"name": "kernel", "onnx": ["/norm/Pow"], "inputs": ["FP32"], "constants": [], "outputs": ["FP16"]}
    record = {
        "schema": 1,
        "engine": {"builder": "TensorRT-RTX 1.7", "sha256": hashlib.sha256(data).hexdigest()},
        "model": {"path": "model.onnx", "sha256": "00"},
        "pins": [pin],
        "layers": [layer],
        **changes,
    }
    Path("m.trt.json").write_text(json.dumps(record))
    return data


def test_inspect_of_an_engine_shows_the_proof_beside_it():
    data = save_engine()
    found = ok("inspect", "m.trt", "--json").json
    assert (found["schema"], found["product"], found["bytes"]) == (1, "TensorRT-RTX", len(data))
    assert found["sha256"] == hashlib.sha256(data).hexdigest()
    assert found["proof"]["pins"][0]["layer"] == "/norm/Pow"
    shown = ok("inspect", "m.trt").out
    assert "built by TensorRT-RTX 1.7 from model.onnx" in shown
    assert "/norm/Pow" in shown


def test_a_proof_of_another_engine_is_no_proof():
    save_engine(engine={"builder": "TensorRT-RTX 1.7", "sha256": "00"})
    assert ok("inspect", "m.trt", "--json").json["proof"] == {}
    assert "its layers can be read on a GPU only" in ok("inspect", "m.trt").out


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"engine": 5}'])
def test_a_proof_that_cannot_be_read_is_refused(text):
    save_engine()
    Path("m.trt.json").write_text(text)
    refused("inspect", "m.trt", says="m.trt.json cannot be read", fix="remove it, or convert the model again")


def test_a_short_or_missing_file_is_no_engine():
    assert not engine_file.is_engine(Path("missing.trt"))
    Path("short.trt").write_bytes(b"vt")
    assert not engine_file.is_engine(Path("short.trt"))
    refused("inspect", "short.trt", says="short.trt is not an ONNX model, or it is truncated (2 bytes)")
