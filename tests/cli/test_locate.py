"""`trt-helper locate` as a user types it: answers known by construction, JSON, options, Ctrl-C."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from onnx import TensorProto
from support.command_line import (
    MAIN,
    PINS,
    clean,
    everything,
    in_process,
    misused,
    ok,
    refused,
    run,
    save_input,
    save_overflowing,
    saved,
    two_lines,
)
from support.onnx_parts import constant, model, node, value

from trt_helper.config.plan_file import read_config
from trt_helper.search.oracle import EmulatedOracle, Judgement
from trt_helper.search.strategy import no_plans
from trt_helper.values import Trial, Verdict

pytestmark = pytest.mark.usefixtures("own_folder")


STATISTICS = {"max", "mean", "median", "non_finite"}
LAYER = {"name", "op", "accumulated", "isolated", "cause", "pinned"}
CONTRACT = {
    *("schema", "verdict", "runner", "model", "tolerance", "fp32_layers", "minimal", "trials", "inferences"),
    *("seconds", "before", "after", "layers"),
}


# ---------------------------------------------------------------------------------------------- answers


def test_a_model_that_fp16_computes_well_gets_an_empty_plan_after_at_most_three_trials():
    saved(clean())
    save_input("x.npz", x=np.float32([[1, -2, 3, 4]]))
    result = ok("locate", "model.onnx", "-i", "x.npz", "--json").json
    assert result["fp32_layers"] == []
    assert result["minimal"] is True
    assert 1 <= result["trials"] <= 3
    assert read_config(Path("fp32_layers.yaml")).fp32_layers == ()


def test_an_overflowing_norm_gets_exactly_the_pins_that_it_needs():
    path, samples = save_overflowing()
    result = ok("locate", path, "-i", samples, "--json").json
    assert result["fp32_layers"] == PINS
    assert result["minimal"] is True
    assert result["before"]["y"]["max"] == 1  # the square is inf: 300 / inf is 0, and 1 was right
    assert result["after"]["y"]["max"] <= result["tolerance"]["atol"]
    causes = {layer["name"]: layer["cause"] for layer in result["layers"]}
    assert {causes[name] for name in PINS} == {"overflow"}
    assert [layer["name"] for layer in result["layers"] if layer["pinned"]] == PINS


def test_the_plan_on_disk_is_the_answer_and_says_why():
    path, samples = save_overflowing()
    result = ok("locate", path, "-i", samples, "--atol", "2e-3", "--check-error-stat", "elemwise", "--json").json
    data = yaml.safe_load(Path("fp32_layers.yaml").read_text())
    assert data["FP32_LAYERS_FOR_FP16"] == result["fp32_layers"] == PINS
    assert data["model"] == {"path": "model.onnx", "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert (data["atol"], data["rtol"], data["check-error-stat"]) == (2e-3, 1e-3, "elemwise")
    assert set(data["evidence"]["layers"]) == set(PINS)
    assert data["evidence"]["samples"] == ["x.npz"]
    assert data["evidence"]["shapes"] == {"x": [[1, 8]] * 3}
    assert set(data) <= {"model", "FP32_LAYERS_FOR_FP16", "TRT_EXCLUDE_TACTIC", "atol", "rtol", "check-error-stat"} | {
        "evidence"
    }


def test_a_model_that_misses_the_tolerance_in_fp32_says_that_precision_is_not_the_cause():
    """BatchNorm is folded before anything is rounded: the last bits differ, and nothing may here."""
    draw = np.random.default_rng(0).standard_normal
    parts = {name: np.abs(draw(4)).astype(np.float32) for name in ("scale", "bias", "mean", "var")}
    layers = [node("Conv", ["x", "w"], ["h"], "conv"), node("BatchNormalization", ["h", *parts], ["y"], "norm")]
    weights = [constant("w", draw((4, 3, 3, 3)).astype(np.float32)), *(constant(n, a) for n, a in parts.items())]
    saved(model(layers, [value("x", [1, 3, 8, 8])], [value("y", [1, 4, 6, 6])], weights))
    refused(
        *("locate", "model.onnx", "--atol", "0", "--rtol", "0"),
        status=1,
        says="with every layer in FP32 the model already misses the tolerance: 'y' is off by max ",
        fix="precision is not the cause; loosen --atol",
    )


@pytest.mark.parametrize("first", ["abs", "draw"])
def test_a_model_that_draws_random_numbers_is_refused(first):
    """ONNX Runtime seeds a layer by its place in the file, so a lone layer may even meet the reference once."""
    draw, absolute = node("RandomNormalLike", ["x"], ["r"], "draw"), node("Abs", ["x"], ["a"], "abs")
    layers = [absolute, draw] if first == "abs" else [draw, absolute]
    saved(model([*layers, node("Add", ["a", "r"], ["y"], "add")], [value("x", [2, 8])], [value("y", [2, 8])]))
    result = run("locate", "model.onnx")
    assert result.status == 3
    assert (
        two_lines(result.err)[0]
        == "node 'draw' is RandomNormalLike: it draws random numbers, so no two runs can be compared"
    )
    assert not Path("fp32_layers.yaml").exists()


def test_a_model_that_fails_only_at_the_largest_shape_of_the_profile_is_found():
    """The sum of n squares of 30 passes 65504 from n = 73 on."""
    layers = [node("Mul", ["x", "x"], ["s"], "square"), node("ReduceSum", ["s"], ["t"], "sum", keepdims=0)]
    layers.append(node("Mul", ["t", "small"], ["y"], "scale"))
    held = [constant("small", np.float32(1e-5))]
    saved(model(layers, [value("x", ["n"])], [value("y", [])], held))
    save_input("small.npz", x=np.full(8, 30, np.float32))
    words = ("locate", "model.onnx", "-i", "small.npz", "--atol", "0.01", "--rtol", "0", "--json")
    assert ok(*words).json["fp32_layers"] == []
    result = ok(*words, "--shapes", "x:8,16,400").json
    assert result["fp32_layers"] == ["sum", "scale"]
    assert result["samples"] == ["small.npz", "small.npz at min", "small.npz at opt", "small.npz at max"]


def test_the_worst_sample_decides():
    path, samples = save_overflowing()
    save_input("harmless.npz", x=np.float32([[1, -1] * 4]))
    assert ok("locate", path, "-i", "harmless.npz", "--json").json["fp32_layers"] == []
    for order in (["harmless.npz", samples], [samples, "harmless.npz"]):
        result = ok("locate", path, *(word for name in order for word in ("-i", name)), "--json").json
        assert result["fp32_layers"] == PINS
        assert result["samples"] == [str(name) for name in order]


def test_a_quarter_of_four_samples_is_held_out_and_overrules_the_search():
    """The fourth sample alone overflows: the search does not see it, the final word is its own."""
    path, _ = save_overflowing()
    for index in range(4):
        save_input(f"inputs/{index}.npz", x=np.float32([[1, -1] * 4]) * (300 if index == 3 else 1))
    result = run("locate", path, "-i", "inputs", "--json")
    assert result.status == 0
    assert result.json["fp32_layers"] == PINS
    assert any("held-out samples disagreed" in line for line in result.warnings)


def test_a_model_that_cannot_be_computed_in_fp16_at_all_is_still_answered():
    """70 * 1000 is infinite in FP16, and no row of the table has that number."""
    layers = [
        node("Mul", ["x", "k"], ["m"], "mul"),
        node("Div", ["m", "k"], ["d"], "div"),
        node("Cast", ["d"], ["i"], "index", to=TensorProto.INT64),
        node("Gather", ["table", "i"], ["y"], "pick"),
    ]
    weights = [constant("k", np.float32(1000)), constant("table", np.arange(100, dtype=np.float32))]
    saved(model(layers, [value("x", [1])], [value("y", [1])], weights))
    save_input("x.npz", x=np.float32([70]))
    assert ok("locate", "model.onnx", "-i", "x.npz", "--json").json["fp32_layers"] == ["mul", "div"]


def test_a_control_without_a_verdict_is_shown_as_such(monkeypatch):
    """FP16 that cannot be computed has no errors to show: the table has dashes there."""
    judge = EmulatedOracle.judge

    def unresolved(self, plan, which, speculative=no_plans):
        unknown = Judgement(Trial(plan, Verdict.UNRESOLVED, why="cannot be computed"))
        return judge(self, plan, which, speculative) if plan.fp32 else unknown

    monkeypatch.setattr(EmulatedOracle, "judge", unresolved)
    path, samples = save_overflowing()
    shown = ok("locate", path, "-i", samples).out
    assert next(line.split() for line in shown.splitlines() if line.startswith("y "))[:4] == ["y", "-", "-", "0"]
    assert ok("locate", path, "-i", samples, "--json").json["before"] == {}


# ----------------------------------------------------------------------------------------------- output


def test_json_has_every_field_that_scripts_may_rely_on():
    path, samples = save_overflowing()
    run_result = run("locate", path, "-i", samples, "--json")
    result = run_result.json
    assert run_result.err == ""
    assert set(result) >= CONTRACT
    assert (result["schema"], result["verdict"], result["runner"]) == (1, "pass", "emulate")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert result["model"] == {"path": "model.onnx", "sha256": sha256, "layers": 5}
    assert result["tolerance"] == {"atol": 0.001, "rtol": 0.001, "check-error-stat": "max"}
    assert set(result["before"]) == set(result["after"]) == {"y"}
    assert set(result["before"]["y"]) >= STATISTICS
    assert result["inferences"] >= result["trials"] >= len(PINS) + 2
    assert result["seconds"] > 0
    assert [layer["name"] for layer in result["layers"]] == [*PINS, "/norm/Div"]
    for layer in result["layers"]:
        assert set(layer) >= LAYER
        assert set(layer["accumulated"]) >= STATISTICS
        assert set(layer["isolated"]) >= STATISTICS


def test_json_stays_strict_where_fp16_gives_infinities():
    saved(model([node("Exp", ["x"], ["y"], "exp")], [value("x", [4])], [value("y", [4])]))
    save_input("x.npz", x=np.float32([1, 2, 3, 80]))
    result = ok("locate", "model.onnx", "-i", "x.npz", "--json").json
    assert result["before"]["y"]["non_finite"] == 1
    assert result["fp32_layers"] == ["exp"]


def test_the_table_and_the_next_step_are_on_stdout_and_the_warning_on_stderr():
    path, samples = save_overflowing()
    result = ok("locate", path, "-i", samples, "-o", "new/plan.yaml")
    assert all(name in result.out for name in PINS)
    assert "4 of 5 layers stay in FP32" in result.out
    assert "trt-helper convert --config new/plan.yaml" in result.out
    assert result.err == ""
    random = ok("locate", path, "-o", "new/plan.yaml")
    assert len(random.warnings) == 1
    assert "no --inputs given" in random.warnings[0]
    assert "warning" not in random.out


def test_a_loader_script_prints_to_stderr_and_finds_its_neighbours():
    save_overflowing()
    Path("scripts").mkdir()
    Path("scripts/size.py").write_text("SIZE = 300")
    Path("scripts/feed.py").write_text(
        "import numpy as np\nfrom size import SIZE\nprint('loading')\n"
        "def samples():\n    print('feeding')\n    yield {'x': np.float64([[SIZE, -SIZE] * 4])}\n"
    )
    result = ok("locate", "model.onnx", "--data-loader-script", "scripts/feed.py:samples", "--json")
    assert result.json["fp32_layers"] == PINS
    assert result.err.split() == ["loading", "feeding"]


def test_shapes_size_the_random_inputs_and_inputs_of_the_same_symbol_follow():
    both = [value("x", ["b", 4]), value("z", ["b", 4])]
    saved(model([node("Add", ["x", "z"], ["y"], "add")], both, [value("y", ["b", 4])]))
    ok("locate", "model.onnx", "--shapes", "x:1x4,3x4,8x4", "--json")
    shapes = yaml.safe_load(Path("fp32_layers.yaml").read_text())["evidence"]["shapes"]
    assert shapes == {"x": [[1, 4], [3, 4], [8, 4]], "z": [[1, 4], [3, 4], [8, 4]]}


# ---------------------------------------------------------------------------------------------- options


def test_a_missing_model_or_an_unknown_option_is_a_usage_error():
    misused("locate", says="Missing argument 'MODEL.onnx'")
    misused("locate", "model.onnx", "--atoll", "1", says="No such option")
    misused("locate", "model.onnx", "another.onnx", says="Got unexpected extra argument")


@pytest.mark.parametrize(
    ("words", "says", "fix"),
    [
        (("--atol", "small"), "--atol 'small' is no tolerance", "such as --atol 1e-3 or --atol OUTPUT:1e-2"),
        (("--atol", "-1"), "--atol '-1' is no tolerance", "1e-3"),
        (("--rtol", "nan"), "--rtol 'nan' is no tolerance", "such as --rtol 1e-3"),
        (("--rtol", "inf"), "--rtol 'inf' is no tolerance", "such as --rtol 1e-3"),
        (("--atol", "z:1e-2"), "the model has no output 'z'", "its outputs: y"),
        (("--check-error-stat", "mode"), "--check-error-stat 'mode' is no statistic", "max, mean, median, elemwise"),
        (("--shapes", "x:1x5"), "--shapes x:1x5 does not fit x, which is [b, 4]", "the same"),
    ],
)
def test_an_option_that_cannot_be_meant_is_refused_with_its_value(words, says, fix):
    saved(clean())
    result = run("locate", "model.onnx", *words)
    assert result.status in (2, 3), result
    error, remedy = two_lines(result.err)
    assert says in error
    assert fix in remedy
    assert not Path("fp32_layers.yaml").exists()


def test_tolerances_per_output_are_kept_apart():
    layers = [node("Relu", ["x"], ["y"], "y"), node("Neg", ["x"], ["z"], "z")]
    saved(model(layers, [value("x", [4])], [value("y", [4]), value("z", [4])]))
    result = ok("locate", "model.onnx", "--atol", "0.5", "--atol", "z:0.25", "--rtol", "y:0.125", "--json").json
    assert result["tolerance"]["atol"] == 0.5
    assert result["tolerance"]["per-output"] == {
        "z": {"atol": 0.25, "rtol": 0.001},
        "y": {"atol": 0.5, "rtol": 0.125},
    }


def test_the_tolerance_of_a_config_holds_where_no_option_is_given():
    saved(clean())
    Path("strict.yaml").write_text("atol: {'': 0.5, y: 0.25}\nrtol: 0.125\ncheck-error-stat: mean\n")
    result = ok("locate", "model.onnx", "-c", "strict.yaml", "--rtol", "y:0.0625", "--json").json
    expected = {"atol": 0.5, "rtol": 0.125, "check-error-stat": "mean"}
    assert result["tolerance"] == {**expected, "per-output": {"y": {"atol": 0.25, "rtol": 0.0625}}}
    Path("strict.yaml").write_text("atol: {logits: 0.25}\n")
    refused("locate", "model.onnx", "-c", "strict.yaml", says="the model has no output 'logits'", fix="its outputs: y")


# ----------------------------------------------------------------------------------------------- Ctrl-C

# Stops in front of the trial for which WHEN holds, says so, and waits there for the signal.
STOP = """
import sys, time
from pathlib import Path
from trt_helper.search.oracle import EmulatedOracle
judge, trials = EmulatedOracle.judge, []
def stopping(self, plan, *rest):
    trials.append(plan)
    if {when}:
        print("here", flush=True)
        time.sleep(60)
    return judge(self, plan, *rest)
EmulatedOracle.judge = stopping
"""


def interrupted(code, *words):
    """Run until the process says where it is, press Ctrl-C, and return what it left behind."""
    process = in_process(code + MAIN, *words)
    assert process.stdout.readline() == "here\n", process.stderr.read()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err


def test_ctrl_c_before_any_plan_passed_leaves_no_plan():
    path, samples = save_overflowing()
    before = everything("..")
    status, out, err = interrupted(STOP.format(when="len(trials) == 2"), "locate", path, "-i", samples)
    assert (status, out) == (130, "")
    assert two_lines(err)[0].startswith("interrupted before any")
    assert set(everything("..")) - set(before) <= {"../work/fp32_layers.yaml.journal"}


def test_ctrl_c_in_the_search_leaves_the_best_plan_whole_and_names_it():
    path, samples = save_overflowing()
    before = everything("..")
    code = STOP.format(when="Path('plan.yaml').exists()")
    status, out, err = interrupted(code, "locate", path, "-i", samples, "-o", "plan.yaml")
    assert (status, out) == (130, "")
    plan = read_config(Path("plan.yaml"))
    assert two_lines(err)[0] == f"interrupted; the best plan so far ({len(plan.fp32_layers)} pins) is in plan.yaml"
    assert set(plan.fp32_layers) >= set(PINS)
    assert plan.evidence["minimal"] is False
    assert set(everything("..")) - set(before) <= {"../work/plan.yaml", "../work/plan.yaml.journal"}
    assert ok("compare", "-c", "plan.yaml", "-i", samples, "--json").json["verdict"] == "pass"


def test_a_search_that_was_interrupted_again_and_again_ends_with_the_same_answer():
    """Ctrl-C is no crash: the trial that it fell into is as good as any other."""
    path, samples = save_overflowing()
    for _ in range(3):
        interrupted(STOP.format(when="plan.fp32 == frozenset()"), "locate", path, "-i", samples)
    result = ok("locate", path, "-i", samples, "--json").json
    assert result["fp32_layers"] == PINS
    assert result["before"]["y"]["max"] == 1
    assert sorted(everything()) == ["fp32_layers.run.json", "fp32_layers.yaml", "model.onnx", "x.npz"]


@pytest.mark.parametrize("delay", [0.0, 0.1])
def test_ctrl_c_while_the_model_is_read_leaves_nothing(delay):
    """The loader script is the first thing that can say that the work has begun."""
    path, _ = save_overflowing()
    Path("feed.py").write_text("import time\ndef load_data():\n    print('here', flush=True)\n    time.sleep(60)\n")
    before = everything("..")
    process = in_process(MAIN, "locate", path, "--data-loader-script", "feed.py")
    assert process.stderr.readline() == "here\n"
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert two_lines(err)[0] == "interrupted"
    assert everything("..") == before


def test_a_killed_search_leaves_a_plan_that_can_be_read():
    """SIGKILL leaves no time to tidy up: the plan must be whole at every moment."""
    path, samples = save_overflowing()
    process = in_process(
        STOP.format(when="Path('plan.yaml').exists()") + MAIN, "locate", path, "-i", samples, "-o", "plan.yaml"
    )
    assert process.stdout.readline() == "here\n"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    assert set(read_config(Path("plan.yaml")).fp32_layers) >= set(PINS)


def test_the_json_of_a_run_does_not_depend_on_the_folder_or_the_moment():
    path, samples = save_overflowing()
    first, second = (ok("locate", path, "-i", samples, "--json").json for _ in range(2))
    for result in (first, second):
        result.pop("seconds")
    assert json.dumps(first) == json.dumps(second)
