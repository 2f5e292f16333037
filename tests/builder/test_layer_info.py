"""The layer lists of TensorRT and TensorRT-RTX: the formats of each version, and names and types in them."""

from __future__ import annotations

import json

import pytest
from support.builder_models import built, needs_rtx, weights
from support.onnx_parts import model, node, value
from support.tensorrt_texts import INSPECTOR_10, INSPECTOR_11, RTX_14, RTX_17

from trt_helper.builder.layer_info import onnx_names, parse_layers, type_name


def summary(layer):
    """Name, kind and per operand group the types, for comparing whole layers."""
    groups = (layer.inputs, layer.constants, layer.outputs)
    return (layer.name, layer.kind, *([one.dtype for one in group] for group in groups))


def test_the_dump_of_rtx_17_is_read():
    conv, jump = parse_layers(RTX_17)
    assert summary(conv) == ("c0_myl0_1", "correlation", ["FP16"], ["FP16", "FP32"], ["FP16"])
    assert conv.onnx_layers == ("c0", "r0")
    assert conv.constants[0].shape == (64, 64, 3, 3)
    assert conv.tactic == "__myelin_CASK_STUB"
    assert summary(jump) == ("__mye17cbr_myl0_2", "cjmp", ["BOOL"], [], [])
    assert jump.onnx_layers == ("if0", "relu")


def test_the_dump_of_rtx_14_is_read():
    (layer,) = parse_layers(RTX_14)
    assert summary(layer) == ("__myl_CorrCast_myl0_1", "runtime_fusion", ["FP16"], [], ["FP32"])
    assert layer.onnx_layers == ("c0", "r0", "cast_mid_in")
    assert layer.inputs[0].shape == (1, 64, 16, 16)


def test_the_json_of_tensorrt_10_is_read():
    (layer,) = parse_layers(INSPECTOR_10)
    assert summary(layer) == ("conv1 + relu1", "CaskConvolution", ["FP16"], ["FP16", "FP16"], ["FP16"])
    assert layer.onnx_layers == ("conv1", "relu1")
    assert layer.tactic == "sm80_xmma_fprop_implicit_gemm_f16f16"
    assert layer.weights[0].shape == (216,)


def test_the_json_of_tensorrt_11_is_read():
    (layer,) = parse_layers(INSPECTOR_11)
    assert summary(layer) == ("conv_myl0_0", "correlation", ["FP16"], ["FP16", "FP16"], ["FP32"])


def test_json_with_raw_control_characters_names_alone_or_one_layer_is_read():
    raw = INSPECTOR_10.replace("\\u001e", "\x1e")
    assert parse_layers(raw)[0].onnx_layers == ("conv1", "relu1")
    assert [one.name for one in parse_layers('{"Layers": ["a", "b"]}')] == ["a", "b"]
    assert parse_layers(json.dumps(json.loads(INSPECTOR_11)["Layers"][0]))[0].name == "conv_myl0_0"


@pytest.mark.parametrize("text", ["", "Layer(Cask): conv1", '{"Layers": ['])
def test_text_that_is_no_layer_list_is_refused(text):
    with pytest.raises(ValueError, match=r"layer dump|EngineInspector"):
        parse_layers(text)


ODD_NAMES = ["a[0]", "a][b", "p, q", "n\nl", "{z}", "Name: k, LayerType: z", "/m/[ONNX Layer: x]", "Ünï"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_an_odd_onnx_name_survives_the_metadata(name):
    assert onnx_names(f"[ONNX Layer: {name}]\x1f[ONNX Layer: b]") == (name, "b")
    assert onnx_names(f"[ONNX Layer: b][ONNX Layer: {name}]") == ("b", name)


@needs_rtx
def test_odd_onnx_names_survive_a_real_build(tmp_path):
    nodes, current = [], "x"
    for index, name in enumerate(ODD_NAMES):
        nodes.append(node("MatMul", [current, "w"], [f"t{index}"], name))
        current = f"t{index}"
    nodes.append(node("Relu", [current], ["y"], "act"))
    made = model(nodes, [value("x", [4, 64])], [value("y", [4, 64])], [weights("w", (64, 64))])
    layers = built(tmp_path, made).layers
    assert [name for one in layers for name in one.onnx_layers if name != "act"] == ODD_NAMES
    assert all(one.kind == "gemm" and one.inputs[0].shape == (4, 64) for one in layers)


def test_type_words_of_every_version_are_known():
    words = {
        "Float": "FP32",
        "Half": "FP16",
        "BFloat16": "BF16",
        "Int64": "INT64",
        "Row major linear FP32": "FP32",
        "Thirty-two wide channel vectorized row major Int8 format.": "INT8",
        "N/A due to dynamic shapes": "",
    }
    assert {word: type_name(word) for word in words} == words
