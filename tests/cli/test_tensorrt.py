"""`--runner`, `--builder` and `--emit` as a user types them, on a machine without a GPU."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import onnx
import pytest
import yaml
from support.builder_models import needs_rtx
from support.command_line import (
    PINS,
    misused,
    nothing_written,
    ok,
    own_folder,
    refused,
    run,
    save_input,
    save_overflowing,
)

from trt_helper.cli import common
from trt_helper.cli.locate import _status
from trt_helper.errors import MachineError
from trt_helper.inputs.samples import load_samples
from trt_helper.onnx_model.graph import read_graph
from trt_helper.onnx_model.load import load
from trt_helper.search.saved import SavedSearch
from trt_helper.system.machine import find_gpu
from trt_helper.values import DISAGREE, Plan, Tolerance, Trial, Verdict

no_gpu = pytest.mark.skipif(find_gpu().missing == "", reason="this machine has a GPU")
CONFIG = Path("plan.yaml")


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    own_folder(tmp_path, monkeypatch)
    save_overflowing()


def plan(**more):
    CONFIG.write_text(yaml.safe_dump({"model": {"path": "model.onnx"}, "FP32_LAYERS_FOR_FP16": PINS, **more}))


@no_gpu
@pytest.mark.parametrize("runner", ["cuda", "tensorrt", "tensorrt-rtx"])
def test_a_runner_that_cannot_run_here_is_refused_before_anything_is_written(runner):
    save_input("x.npz", x=[[300.0] * 8])
    with nothing_written():
        refused("locate", "model.onnx", "--inputs", "x.npz", "--runner", runner, says=f"the runner {runner!r} needs")


@no_gpu
def test_a_builder_that_cannot_build_here_is_refused():
    plan()
    with nothing_written():
        refused("convert", "--config", CONFIG, "--builder", "tensorrt", says="--builder tensorrt needs")


@pytest.mark.gpu
def test_an_engine_of_tensorrt_has_its_proof_beside_it():
    try:
        common.is_tensorrt("tensorrt")
    except MachineError as error:
        pytest.skip(error.message)
    plan()
    result = run("convert", "--config", CONFIG, "--builder", "tensorrt", "--shapes", "x:1x8")
    if result.status == 3 and "typing" in result.err:
        pytest.skip(result.err)  # 8.6 has no strong typing
    proof = json.loads(Path("model.trt.json").read_text())
    assert {pin["layer"] for pin in proof["pins"]} == set(PINS)
    assert not [pin for pin in proof["pins"] if pin["state"] == "demoted"]


@pytest.mark.parametrize(
    ("verdict", "why", "status"),
    [
        (Verdict.PASS, "", 0),
        (Verdict.FAIL, "", 1),
        (Verdict.UNRESOLVED, "the engine could not be built", 1),
        (Verdict.UNRESOLVED, f"{DISAGREE}: 0.5 to 3 times the tolerance in 2 runs", 5),
    ],
)
def test_an_answer_about_which_repeats_disagree_is_exit_5(verdict, why, status):
    assert _status(Trial(Plan(), verdict, why=why)) == status


def test_unknown_runners_builders_and_formats_are_misuse():
    plan()
    misused("locate", "model.onnx", "--runner", "gpu", says="Invalid value for '--runner'")
    misused("convert", "--config", CONFIG, "--builder", "trt", says="Invalid value for '--builder'")
    misused("convert", "--config", CONFIG, "--emit", "dot", says="Invalid value for '--emit'")


def test_emulated_is_the_answer_of_auto():
    save_input("x.npz", x=[[300.0] * 8])
    answers = [
        json.loads(run("locate", "model.onnx", "--inputs", "x.npz", "--json", "--runner", runner).out)["fp32_layers"]
        for runner in ("auto", "emulate")
    ]
    assert answers[0] == answers[1] != []


def test_tactics_are_refused_where_tensorrt_rtx_would_build():
    plan(TRT_EXCLUDE_TACTIC=[{"layer": "/norm/Pow", "tactic": "0x1"}])
    refused("convert", "--config", CONFIG, says="TRT_EXCLUDE_TACTIC cannot be applied by TensorRT-RTX")


def test_what_a_config_excludes_stays_excluded_in_the_new_plan():
    """And the engines that `--runner` judges are built without it, or refused by TensorRT-RTX."""
    excluded = [{"layer": "/norm/Pow", "tactic": "0x12", "gpu": "NVIDIA A100"}]
    plan(TRT_EXCLUDE_TACTIC=excluded, atol=2e-3, rtol=0.0)
    save_input("x.npz", x=[[300.0] * 8])
    ok("locate", "model.onnx", "--inputs", "x.npz", "--config", CONFIG, "-o", CONFIG)
    data = yaml.safe_load(CONFIG.read_text())
    assert (data["TRT_EXCLUDE_TACTIC"], data["atol"], data["rtol"]) == (excluded, 2e-3, 0.0)
    graph = read_graph(load(Path("model.onnx")))
    given = (graph, load_samples(graph, [Path("x.npz")]), tuple(excluded))
    made = {name: common._runner_oracle(name, 2, *given, check=False) for name in ("tensorrt", "tensorrt-rtx")}
    left_out = {name: one.keywords["settings"].exclude_tactics for name, one in made.items()}
    assert left_out == dict.fromkeys(("tensorrt", "tensorrt-rtx"), tuple(excluded))


def test_a_search_on_engines_begins_anew_where_other_tactics_are_excluded():
    """What a trial said of an engine holds for the engines without the same tactics alone; emulated, for any."""
    save_input("x.npz", x=[[300.0] * 8])
    graph = read_graph(load(Path("model.onnx")))
    samples = load_samples(graph, [Path("x.npz")])

    def keys(**provenance):
        saved = [SavedSearch(CONFIG, provenance, tactics) for tactics in ((), ({"layer": "a"},))]
        return [one.search_key(graph, samples, Tolerance(), None) for one in saved]

    first, second = keys(runner="tensorrt")
    assert first != second
    first, second = keys()
    assert first == second


def test_the_trtexec_commands_need_no_engine_and_name_files_that_are_there():
    plan()
    emit = [word for kind in ("trtexec", "netron", "netron") for word in ("--emit", kind)]  # twice is once
    said = ok("convert", "--config", CONFIG, "--no-engine", *emit, "--shapes", "x:1x8")
    assert "model.trtexec.sh" in said.err
    words = shlex.split(Path("model.trtexec.sh").read_text())
    typed = next(word for word in words if word.startswith("--onnx=")).removeprefix("--onnx=")
    onnx.checker.check_model(typed, full_check=True)
    assert "--minShapes=x:1x8" in words
    weak = shlex.split(Path("model.trtexec-weak.sh").read_text())
    assert "--layerPrecisions=" + ",".join(f"{name}:fp32" for name in PINS) in weak
    assert not Path("model.trt").exists()
    notes = {node.name: len(node.metadata_props) for node in onnx.load("model.noted.onnx").graph.node}
    assert all(notes[name] >= 2 for name in PINS)


@needs_rtx
def test_engine_explorers_file_lists_the_engines_layers():
    plan()
    ok("convert", "--config", CONFIG, "--emit", "explorer", "--shapes", "x:1x8")
    listed = json.loads(Path("model.layers.json").read_text())
    proof = json.loads(Path("model.trt.json").read_text())
    assert [layer["Name"] for layer in listed["Layers"]] == [layer["name"] for layer in proof["layers"]]
    assert listed["Bindings"]
