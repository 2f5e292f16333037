"""`trt-helper gate`: which plans fail, what is a warning, and which code is never run."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from support.command_line import misused, nothing_written, ok, run, save_input
from support.gate_models import CONFIG, NORM, SQUARE, edit, entry, gate, rules, subjects, write_model

pytestmark = pytest.mark.usefixtures("gate_project")


# ------------------------------------------------------------------------------------ accurate or not


def test_a_plan_that_is_right_passes_on_the_recorded_inputs_and_writes_nothing():
    with nothing_written():
        found = gate()
    assert found["samples"] == ["samples/0.npz", "samples/1.npz", "samples/2.npz"]
    assert found["fp32_layers"] == sorted(NORM)
    assert 0 < found["outputs"]["y"]["max"] < 0.02
    assert [finding["rule"] for finding in found["findings"]] == ["baseline"]  # there is none: a note


def test_paths_of_a_config_are_relative_to_it(tmp_path, monkeypatch):
    config = CONFIG.absolute()
    monkeypatch.chdir(tmp_path)
    assert ok("gate", config, "--json").json["configs"][0]["verdict"] == "pass"


def test_an_output_out_of_tolerance_fails_with_its_worst_element_and_the_way_to_a_new_plan():
    edit(CONFIG, lambda data: data["FP32_LAYERS_FOR_FP16"].remove(SQUARE))
    result = run("gate", CONFIG)
    assert result.status == 1
    assert "error: output 'y': max error 2.2" in result.err
    assert "allowed 0.02" in result.err
    command = "trt-helper locate models/net.onnx --config configs/net.yaml --inputs samples -o configs/net.yaml"
    assert f"fix: find the plan again: {command}" in result.err
    assert f"no longer in it: '{SQUARE}'" in result.err
    assert "FAIL" in result.out


def test_the_command_that_repairs_a_plan_repairs_it():
    edit(CONFIG, lambda data: data["FP32_LAYERS_FOR_FP16"].remove(SQUARE))
    (fix,) = [f["fix"] for f in gate(status=1)["findings"] if f["rule"] == "tolerance"]
    ok(*fix.partition("trt-helper ")[2].split())
    assert gate()["fp32_layers"] == sorted(NORM)


def test_what_explains_a_failure_is_said_too():
    edit(CONFIG, lambda data: data["FP32_LAYERS_FOR_FP16"].remove(SQUARE))
    found = gate(status=1)
    assert found["overflow"] == {SQUARE: found["overflow"][SQUARE]}, "others see infinities, this one makes them"
    assert subjects(found, "overflow") == [SQUARE]
    assert not any("baseline" in f["message"] for f in found["findings"] if f["rule"] == "overflow"), "there is none"


def test_a_tolerance_for_an_output_that_the_model_lacks_is_an_error():
    edit(CONFIG, lambda data: data.update(atol={"": 0.02, "z": 1}))
    assert "'z', which is no output" in gate(status=3)["findings"][0]["message"]


def test_rewrites_of_a_config_are_applied():
    """Four layers in BF16, which has the range of FP32 and 8 bits: what they compute is off by about 2^-8."""
    edit(CONFIG, lambda data: data.update(cures=[{"bf16": name} for name in data.pop("FP32_LAYERS_FOR_FP16")]))
    edit(CONFIG, lambda data: data.update(atol=0.1))
    found = gate()
    assert (found["fp32_layers"], found["bf16_layers"]) == ([], sorted(NORM))
    assert 0.003 < found["outputs"]["y"]["max"] < 0.1
    assert subjects(found, "pin") == [], "each was tried, and each is needed"
    edit(CONFIG, lambda data: data["cures"].pop(0))
    found = gate(status=1)
    assert "--cures pins,bf16 " in found["findings"][0]["fix"]
    edit(CONFIG, lambda data: data["cures"].append({"bf16": "gone"}))
    assert subjects(gate(status=3), "layer") == ["gone"]


# ------------------------------------------------------------------------------------- a changed model


def test_a_retrained_model_is_judged_as_it_is_now():
    gate("--update-baseline")
    write_model(retrained=0.01)
    found = gate()
    assert "model" in rules(found, "note")
    assert found["outputs"]["y"]["max"] != entry()["outputs"]["y"]["max"]


def test_a_renamed_layer_is_named_with_its_line_and_the_nearest_name():
    write_model(square="/norm/Power")
    (finding,) = gate(status=3)["findings"]
    assert finding["rule"] == "layer"
    assert finding["subject"] == SQUARE
    assert CONFIG.read_text().splitlines()[finding["line"] - 1] == f"- {SQUARE}"
    assert finding["fix"].startswith("did you mean '/norm/Power'?")
    assert "trt-helper locate models/net.onnx" in finding["fix"]


def test_of_many_missing_layers_some_are_named():
    edit(CONFIG, lambda data: data["FP32_LAYERS_FOR_FP16"].extend(f"gone/{i}" for i in range(30)))
    messages = [finding["message"] for finding in gate(status=3)["findings"]]
    assert messages[0] == "the model has no layer named 'gone/0'"
    assert messages[-1].startswith("10 more: ")
    assert len(messages) == 21


def test_a_pin_that_is_no_longer_needed_is_a_warning():
    write_model(gain=3.0)  # 3 squared is no number that FP16 lacks
    found = gate()
    assert rules(found, "error") == []
    assert subjects(found, "pin") == list(NORM)
    assert [CONFIG.read_text().splitlines()[f["line"] - 1] for f in found["findings"] if f["rule"] == "pin"] == [
        f"- {name}" for name in NORM
    ]


def test_a_pin_added_by_hand_is_found_out():
    edit(CONFIG, lambda data: data["FP32_LAYERS_FOR_FP16"].append("dense"))
    assert subjects(gate(), "pin") == ["dense"]
    assert subjects(gate(), "pin") == ["dense"], "remembered"
    assert subjects(gate("--no-check-pins"), "pin") == []


def test_a_pin_that_convert_added_for_the_engine_is_not_called_needless():
    def add(data):
        data["FP32_LAYERS_FOR_FP16"].append("dense")
        data["evidence"]["engine"] = {"added": {"dense": NORM[0]}}

    edit(CONFIG, add)
    assert subjects(gate("--check-pins"), "pin") == []


def test_a_looser_tolerance_makes_pins_unneeded():
    edit(CONFIG, lambda data: data.update(atol=100))
    assert subjects(gate(), "pin") == list(NORM)


def test_pins_that_locate_proved_are_tried_only_when_requested(monkeypatch):
    tried = []
    monkeypatch.setattr(
        "trt_helper.gate.plan_run.EmulatedPlanRun.passes_without", lambda _run, name, _metric: tried.append(name)
    )
    gate()
    assert tried == []
    gate("--check-pins")
    assert sorted(tried) == sorted(NORM)


# --------------------------------------------------------------- nothing runs that nobody named


def test_a_data_loader_that_only_the_config_names_is_not_run():
    Path("loader.py").write_text("from pathlib import Path\nPath('canary').touch()\n")
    edit(CONFIG, lambda data: data["evidence"].update({"data-loader-script": "loader.py", "inputs": None}))
    assert "loader.py" in gate(status=3)["findings"][0]["message"]
    assert not Path("canary").exists()


def test_a_metric_decides_when_it_is_named_and_is_requested_when_not():
    Path("metric.py").write_text(
        "from pathlib import Path\nPath('canary').touch()\n"
        "def same(reference, found):\n"
        "    return sum((r['y'].argmax(-1) == f['y'].argmax(-1)).mean() for r, f in zip(reference, found)) / 3\n"
    )
    edit(CONFIG, lambda data: data["evidence"].update(metric={"function": "metric.py:same", "threshold": 0.9}))
    assert "--metric" in gate(status=3)["findings"][0]["fix"]
    assert not Path("canary").exists()
    found = gate("--metric", "metric.py:same")
    assert found["metric"] == {"function": "metric.py:same", "threshold": 0.9, "figure": 1.0}
    edit(CONFIG, lambda data: data["FP32_LAYERS_FOR_FP16"].clear())
    found = gate("--metric", "metric.py:same", status=1)
    assert rules(found, "error") == ["metric"]
    assert found["metric"]["figure"] < 0.9
    gate("--metric", "metric.py:same", "--metric-threshold", "0")


# ------------------------------------------------------------------------------------------------ inputs


def test_inputs_that_are_not_there_are_an_error():
    shutil.rmtree("samples")
    message = gate(status=3)["findings"][0]["message"]
    assert message == "configs/net.yaml was made with the inputs configs/../samples, which are not there"


def test_other_inputs_can_be_given():
    save_input("other.npz", x=np.zeros((1, 16), np.float32))
    gate("--update-baseline")
    found = gate("--inputs", "other.npz")
    assert found["samples"] == ["other.npz"]
    (note,) = [f["message"] for f in found["findings"] if f["rule"] == "baseline"]
    assert note == "the baseline is of other inputs; they were compared all the same"


@pytest.mark.parametrize("inputs", [[], ["--inputs", "samples"]])
def test_samples_at_the_ends_of_a_given_range_are_made_again(inputs):
    ok("locate", "models/net.onnx", *inputs, "--shapes", "x:1x16,2x16,5x16", "--atol", "9", "-o", CONFIG)
    samples = gate()["samples"]
    assert samples == yaml.safe_load(CONFIG.read_text())["evidence"]["samples"]
    assert samples[-1].endswith(" at max")


def test_a_hand_written_config_is_judged_by_random_values_and_says_so():
    CONFIG.write_text(yaml.safe_dump({"model": "../models/net.onnx", "FP32_LAYERS_FOR_FP16": list(NORM), "atol": 0.02}))
    found = gate()
    assert "random" in rules(found, "warning")
    assert subjects(found, "pin") == [], "each was tried, and each is needed"


# ---------------------------------------------------------------------------------------- several configs


def test_several_configs_are_judged_in_one_call_and_the_worst_decides():
    write_model("broken", square="/norm/Power")
    for name, change in {
        "a_fails": lambda data: data["FP32_LAYERS_FOR_FP16"].clear(),
        "b_gone": lambda data: data["model"].update(path="../models/gone.onnx"),
        "c_broken": lambda data: data["model"].update(path="../models/broken.onnx"),
    }.items():
        shutil.copy(CONFIG, f"configs/{name}.yaml")
        edit(Path(f"configs/{name}.yaml"), change)
    configs = sorted(Path("configs").glob("*.yaml"))
    result = run("gate", *configs, "--json")
    assert result.status == 3
    assert [(Path(c["config"]).stem, c["status"]) for c in result.json["configs"]] == [
        ("a_fails", 1),
        ("b_gone", 3),
        ("c_broken", 3),
        ("net", 0),
    ]
    assert "error: configs/b_gone.yaml: configs/../models/gone.onnx does not exist" in result.err
    assert run("gate", configs[0], configs[3]).status == 1


def test_a_process_that_dies_takes_no_answer_of_others_and_shows_no_traceback():
    Path("loader.py").write_text("import os, signal\ndef load_data():\n    os.kill(os.getpid(), signal.SIGKILL)\n")
    shutil.copy(CONFIG, "configs/other.yaml")
    result = run("gate", CONFIG, "configs/other.yaml", "--data-loader-script", "loader.py")
    assert result.status == 3
    assert result.err.count("error: ") == 2
    assert "it was not judged" in result.err
    assert "Traceback" not in result.err


def test_an_interrupt_ends_all_processes_with_two_lines():
    Path("loader.py").write_text(
        "import os, time\nfrom pathlib import Path\ndef load_data():\n"
        "    Path(f'{os.getpid()}.pid').touch()\n    time.sleep(60)\n"
    )
    shutil.copy(CONFIG, "configs/other.yaml")
    words = ["gate", CONFIG, "configs/other.yaml", "--data-loader-script", "loader.py"]
    command = [sys.executable, "-m", "trt_helper", *map(str, words)]
    process = subprocess.Popen(command, stdout=-1, stderr=-1, text=True, start_new_session=True)
    while not (started := list(Path().glob("*.pid"))):
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err.splitlines()[-2:] == ["error: interrupted", "  fix: run the same command again"]
    assert not any(Path(f"/proc/{file.stem}").exists() for file in started)


def test_the_same_call_prints_the_same_bytes():
    write_model(gain=3.0)
    assert run("gate", CONFIG, "--json") == run("gate", CONFIG, "--json")


def test_a_model_can_stand_in_for_the_one_that_the_config_names():
    write_model("other", retrained=0.01)
    assert gate("models/other.onnx")["model"]["path"] == "models/other.onnx"
    assert gate("--config", CONFIG)["model"]["path"] == "models/net.onnx"


def test_misuse_is_a_usage_error():
    misused("gate", says="Invalid value: give a config")
    misused("gate", "models/net.onnx", says="Invalid value: give a config")
    misused("gate", CONFIG, "a.onnx", "b.onnx", says="Invalid value: b.onnx: one model at most")
    misused("gate", CONFIG, "b.yaml", "a.onnx", says="Invalid value: a model goes with one config")
    misused("gate", CONFIG, "b.yaml", "--baseline", "x.json", says="Invalid value: --baseline goes with one config")
    misused("gate", CONFIG, "b.yaml", "--reference", "x.onnx", says="Invalid value: --reference goes with one config")
    misused("gate", CONFIG, "--junit", "a", "--sarif", "./a", says="Invalid value: two of the files")
    for factor in ("0.5x", "x", "nan", "inf"):
        misused("gate", CONFIG, "--max-regression", factor, says="Invalid value: --max-regression")


def test_a_config_is_not_overwritten():
    result = run("gate", CONFIG, "--summary", CONFIG)
    assert result.status == 3
    assert "is what the result is made from" in result.err
