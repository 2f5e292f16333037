"""Small models that showed a fault, with the right answer for each; they are not part of this repository."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support.command_line import needs_rtx, ok, refused

CASES = Path(__file__).resolve().parents[3] / "shared" / "cases"
pytestmark = [
    pytest.mark.skipif(not CASES.is_dir(), reason="the folder of cases is not beside this repository"),
    pytest.mark.usefixtures("own_folder"),
]


def case(name: str) -> tuple[Path, ...]:
    """The words of a command that name the model and its inputs."""
    folder = CASES / name
    return (folder,) if name.endswith(".onnx") else (folder / "model.onnx", "--inputs", folder / "inputs")


def located(name: str, *words: object) -> dict:
    found: dict = ok("locate", *case(name), "--rtol", "0", *words, "-o", "p.yaml", "--json").json
    return found


@pytest.mark.parametrize(
    ("name", "atol", "pins"),
    [
        ("normalize_zero_rows", 0.02, {"norm/Clip", "norm/Div"}),
        ("half_output", 0.05, {"Exp", "Add", "Log"}),
        ("half_table", 0.05, {"Exp", "Add", "Log"}),
        ("init_output", 0.05, {"Exp", "Add", "Log"}),
        ("old_export_ir3", 0.05, {"Exp_6", "Add_7", "Log_8"}),
        ("groupnorm21_no_value_info", 0.02, set()),
        ("nms_tail", 0.02, {"nms/Add_1"}),
        ("neg_dim.onnx", 0.02, set()),
    ],
)
def test_the_pins_are(name, atol, pins):
    assert set(located(name, "--atol", str(atol))["fp32_layers"]) == pins


def test_logsoftmax_needs_help_at_any_tolerance():
    assert "ctc/LogSoftmax" in located("logsoftmax_head", "--atol", "100")["fp32_layers"]


def test_positions_beyond_2048_are_needed_by_the_cast_of_them_too():
    """The inputs that are there end at 1904, up to which FP16 has every integer: the cast is exact on them."""
    model, _, inputs = case("rope_positions")
    three = {"rope/MatMul", "rope/Cos", "rope/Sin"}
    assert set(located("rope_positions", "--atol", "0.02")["fp32_layers"]) == three
    known = np.load(next(inputs.iterdir()))
    np.savez("far.npz", x=known["x"], position_ids=np.arange(4048, 4096).reshape(1, 48))
    ok("locate", model, "-i", "far.npz", "--atol", "0.02", "--rtol", "0", "-o", "far.yaml")
    record = json.loads(Path("far.run.json").read_text())
    assert set(record["fp32_layers"]) == {*three, "rope/Cast"}
    causes = {layer["name"]: layer["cause"] for layer in record["layers"]}
    assert causes["rope/Cast"] == "integer"


def test_what_underflows_under_a_division_is_told_so_and_bf16_helps():
    found = located("normalize_zero_rows", "--atol", "0.02")
    causes = {layer["name"]: layer["cause"] for layer in found["layers"] if layer["pinned"]}
    assert causes == {"norm/Clip": "epsilon", "norm/Div": "division"}
    found = located("normalize_zero_rows", "--atol", "0.02", "--cures", "bf16")
    assert (found["fp32_layers"], set(found["bf16_layers"])) == ([], {"norm/Clip", "norm/Div"})


def test_an_empty_past_is_judged_and_so_is_each_layer_of_a_branch():
    found = located("zero_length_past", "--atol", "0.01")
    assert any(name.startswith(("then/", "else/")) for name in found["fp32_layers"])
    assert found["judged"]["not"] == {}


def test_sizes_that_work_are_found():
    found = located("dynamic_hw_no_inputs", "--atol", "0.05")
    model, *_ = case("dynamic_hw_no_inputs")
    alone = ok("locate", model, "--atol", "0.05", "--rtol", "0", "-o", "alone.yaml", "--json").json
    assert set(found["fp32_layers"]) == set(alone["fp32_layers"]) == {"a/Exp", "a/Add", "a/Log"}


def test_all_arithmetic_in_an_if_is_judged():
    found = located("all_in_if.onnx", "--atol", "0.01")
    assert found["judged"] == {"layers": 4, "not": {}}
    assert found["before"]["y"]["max"] > 1


def test_a_bfloat16_model_is_read_and_judged():
    found = located("bf16_block", "--atol", "0.02")
    assert {"mlp/Mul", "down/MatMul", "res/Add"} <= set(found["fp32_layers"])
    assert "FP32 by casts in the file" in found["judged"]["not"]


def test_what_lies_before_a_plugin_is_judged():
    found = located("plugin_tail", "--atol", "0.5")
    assert set(found["before"]) == {"head/Mul_out", "head/Sigmoid_out"}
    assert found["judged"]["not"] == {"behind EfficientNMS_TRT, a custom operator": 1}


@needs_rtx
@pytest.mark.parametrize(
    ("name", "says"),
    [("nms_tail", "no runners that implement it"), ("uint8_inside.onnx", "does not support UINT8")],
)
def test_what_the_builder_lacks_is_said_before_the_search(name, says):
    result = ok("locate", *case(name), "--atol", "0.02", "-o", "p.yaml")
    assert f"will refuse {'nms/NonMaxSuppression' if name == 'nms_tail' else 'to_uint8'!r}" in result.err
    assert says in result.err


@needs_rtx
@pytest.mark.parametrize("name", ["mvn_operator", "half_table", "old_export_ir3", "all_in_if.onnx", "bf16_block"])
def test_an_engine_with_halves_and_its_pins_is_built(name):
    located(name, "--atol", "0.2")
    result = ok("convert", "-c", "p.yaml", "-o", "m.trt", "--json").json
    assert result["engine"]["half_share"] > 0
    assert {pin["state"] for pin in result["pins"]} <= {"honoured", "fused"}


@needs_rtx
def test_bf16_is_used_where_the_operators_version_has_it():
    found = located("bf16_opset.onnx", "--atol", "0.01", "--cures", "bf16")
    assert (found["fp32_layers"], found["bf16_layers"]) == (["big"], ["small"])
    ok("convert", "-c", "p.yaml", "-o", "m.trt")


@pytest.mark.parametrize(
    ("name", "says", "fix"),
    [
        ("string_input", "the input 'text' is a tensor of strings", "export the model without it"),
        ("zipmap.onnx", "the output 'prob' is a sequence of maps", "zipmap=False"),
        ("unchecked_fp32.onnx", "tensor name: w", "export the model again"),
    ],
)
def test_what_nobody_can_judge_is_refused_for_what_it_is(name, says, fix):
    for command in ("locate", "inspect", "convert"):
        refused(command, case(name)[0], says=says, fix=fix)


def test_a_time_limit_holds_and_leaves_a_plan():
    found = located("time_limit.onnx", "--atol", "1e-6", "--time-limit", "2")
    assert found["seconds"] < 8  # on a machine that does other things beside
    assert Path("p.yaml").is_file()
