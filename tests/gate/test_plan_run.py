"""`gate --runner`: the plan as it runs on a GPU, and what stands in its place where there is none.

ONNX Runtime's CPU provider runs the typed model in FP32: its halves are the weights alone, and no pin is needed there.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.builder_models import needs_rtx
from support.command_line import ok, run, two_lines
from support.gate_models import BASELINE, CONFIG, NORM, edit

from trt_helper.builder.convert import convert
from trt_helper.builder.settings import BuildSettings
from trt_helper.errors import MachineError
from trt_helper.runners.run import RUNNERS, Runner, runner_here
from trt_helper.system.machine import find_gpu

pytestmark = pytest.mark.usefixtures("gate_project")
CPU = replace(RUNNERS["cuda"], provider="CPUExecutionProvider")
BUILT = Runner("tensorrt-rtx", "tensorrt_rtx", "trt-helper[rtx]", module="support.stand_in_engine_child")


@pytest.fixture
def runner(monkeypatch):
    """Let any runner be this one."""
    return lambda other: monkeypatch.setattr("trt_helper.gate.gate.runner_here", lambda _name: other)


def changed(**keys):
    edit(CONFIG, lambda data: data.update(keys))


def pinned(*names):
    changed(FP32_LAYERS_FOR_FP16=list(names))


def found(*words, status=0):
    result = run("gate", CONFIG, "--runner", "cuda", "--json", *words)
    assert result.status == status, result.err
    said = json.loads(result.out)
    assert said["runner"] == "cuda"
    (one,) = said["configs"]
    return one


def test_the_runner_judges_and_not_the_emulator(runner):
    """No pin: 90000 is beyond FP16, and not on the CPU; its weights are halves, which a tolerance of 1e-7 shows."""
    runner(CPU)
    pinned()
    assert ok("gate", CONFIG, "--json", status=1).json["verdict"] == "fail"
    assert found()["verdict"] == "pass"
    changed(atol=1e-7)
    one = found(status=1)
    assert [finding["rule"] for finding in one["findings"] if finding["level"] == "error"] == ["tolerance"]
    assert 1e-5 < one["outputs"]["y"]["max"] < 1e-2
    assert "--runner cuda" in next(finding["fix"] for finding in one["findings"] if finding["level"] == "error")


def test_a_runner_has_a_baseline_of_its_own_which_knows_nothing_of_overflow(runner):
    runner(CPU)
    ok("gate", CONFIG, "--update-baseline")
    assert found()["baseline"] is None
    found("--update-baseline")
    entries = json.loads(BASELINE.read_text())["baselines"]
    ours = {entry["runner"]: entry for entry in entries.values()}
    assert ours.keys() == {"cuda", "emulate"}
    assert (ours["cuda"]["overflow"], ours["emulate"]["overflow"]) == (None, {})
    assert ours["cuda"]["gpu"] == (find_gpu().name or None)
    assert found()["baseline"] == ours["cuda"]
    assert found()["overflow"] is None
    ours["cuda"]["outputs"]["y"].update(max=1e-9, max_rel=1e-9)
    BASELINE.write_text(json.dumps({"schema": 1, "baselines": {"cuda": ours["cuda"]}}))
    rules = {finding["rule"] for finding in found("--junit", "j.xml", status=1)["findings"]}
    assert "regression" in rules
    assert "overflow" not in rules
    assert "no new FP16 overflow" not in Path("j.xml").read_text()


def test_what_the_plan_had_to_be_guarded_with_is_guarded_again_and_the_runners_package_is_named(runner, monkeypatch):
    """The package stands in the baseline with its version; here that of NumPy, which is surely another."""
    runner(replace(CPU, package="numpy"))
    seen = []

    def spied(*args, **how):
        seen.append(how["guards"])
        return convert(*args, **how)

    monkeypatch.setattr("trt_helper.runners.oracle.convert", spied)
    edit(CONFIG, lambda data: data["evidence"].update(engine={"guards": ["head", "gone"]}))
    found("--update-baseline")
    assert seen == [("head",)]
    (entry,) = json.loads(BASELINE.read_text())["baselines"].values()
    assert entry["versions"]["numpy"] == np.__version__


def test_configs_are_judged_one_after_the_other_on_the_one_gpu(runner):
    """In this process: another one would not know of the stand-in."""
    runner(CPU)
    shutil.copy(CONFIG, "configs/again.yaml")
    assert ok("gate", CONFIG, "configs/again.yaml", "--runner", "cuda", "--json").json["verdict"] == "pass"


def test_pins_are_taken_out_only_where_that_is_requested(runner):
    runner(CPU)
    pinned(*NORM, "head")
    assert "pin" not in {finding["rule"] for finding in found()["findings"]}
    one = found("--check-pins")
    assert {finding["subject"] for finding in one["findings"] if finding["rule"] == "pin"} == {*NORM, "head"}


def test_a_metric_judges_what_the_runner_gave(runner):
    runner(CPU)
    Path("metric.py").write_text("def largest(_reference, found):\n    return float(abs(found[0]['y']).max())\n")
    words = ("--metric", "metric.py:largest", "--metric-threshold", "0.1")
    figure = found(*words)["metric"]["figure"]
    assert 0.1 <= figure < 10
    assert found(*words[:3], str(2 * figure), status=1)["verdict"] == "fail"
    assert "pin" in {finding["rule"] for finding in found(*words, "--check-pins")["findings"]}


def test_repeats_that_disagree_are_no_verdict(runner):
    runner(replace(CPU, module="support.disagreeing_child"))
    changed(atol=5.0)  # y is between -2 and 2, and what runs says 1, 2, ... 8
    result = run("gate", CONFIG, "--runner", "cuda", "--repeats", "8")
    assert result.status == 5
    assert "repeats disagree" in two_lines(result.err)[0]
    assert found("--repeats", "1", status=1)["verdict"] == "fail"


@needs_rtx
def test_a_plan_that_cannot_be_built_has_the_status_of_a_build(runner, monkeypatch):
    runner(BUILT)
    monkeypatch.setattr("trt_helper.gate.gate.BuildSettings", lambda **how: BuildSettings(**how, time_limit=0.01))
    result = run("gate", CONFIG, "--runner", "tensorrt-rtx")
    assert result.status == 4
    assert "passed the time limit" in two_lines(result.err)[0]


@needs_rtx
def test_a_tactic_that_cannot_be_excluded_is_an_error(runner):
    runner(BUILT)
    changed(TRT_EXCLUDE_TACTIC=[{"layer": "head", "tactic": 1}])
    result = run("gate", CONFIG, "--runner", "tensorrt-rtx")
    assert result.status == 3
    assert "TRT_EXCLUDE_TACTIC cannot be applied by TensorRT-RTX" in two_lines(result.err)[0]


@pytest.mark.skipif(find_gpu().missing == "", reason="this machine has a GPU")
@pytest.mark.parametrize("name", RUNNERS)
def test_without_a_gpu_a_runner_is_refused(name):
    result = run("gate", CONFIG, "--runner", name)
    assert result.status == 3
    assert f"the runner {name!r} needs" in two_lines(result.err)[0]


@pytest.mark.gpu
@pytest.mark.parametrize("name", RUNNERS)
def test_on_a_gpu_the_plan_passes(name):
    try:
        runner_here(name)
    except MachineError as missing:
        pytest.skip(missing.message)
    assert run("gate", CONFIG, "--runner", name).status == 0
