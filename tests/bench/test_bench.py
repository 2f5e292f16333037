"""`bench` as a command, and the ways that this machine can and cannot go."""

from __future__ import annotations

import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from support.cli_helpers import (
    MAIN,
    PINS,
    clean,
    constant,
    in_process,
    misused,
    model,
    node,
    ok,
    own_folder,
    refused,
    save_overflowing,
    saved,
    two_lines,
    value,
)

from trt_helper.bench import backends, emulate_child, measure
from trt_helper.bench.measure import Timing, batches
from trt_helper.bench.rows import Measured, NotRun
from trt_helper.emulator.kernels import Kernel
from trt_helper.errors import MachineError, RunError
from trt_helper.inputs.samples import load_samples
from trt_helper.onnx_model.graph import read_graph
from trt_helper.onnx_model.load import load
from trt_helper.runners.run import RUNNERS, runner_here
from trt_helper.values import Plan

SHARED = Path(__file__).resolve().parents[3] / "shared" / "models"
CPU = replace(RUNNERS["cuda"], provider="CPUExecutionProvider")  # runs typed models where no GPU is
FIELDS = set(Measured.__slots__)


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch):
    own_folder(tmp_path, monkeypatch)


def graph_of(path):
    return read_graph(load(path))


# ------------------------------------------------------------------------------------------ the command


def test_bench_says_what_was_measured_what_not_and_what_is_estimated():
    path, samples = save_overflowing()
    result = ok("bench", path, "-i", samples, "--repeats", "4", "--streams", "2", "--gpu", "l4", "--json")
    assert result.err == "", "no terminal, no bar; and speed is not judged by values"
    found = result.json
    assert (found["schema"], found["command"], found["fp32_layers"], found["sample"]) == (1, "bench", [], "x.npz")
    assert [one["what"] for one in found["measured"]] == ["ONNX Runtime, CPU, FP32", "emulated FP16 with the plan"]
    for one in found["measured"]:
        assert set(one) == FIELDS
        assert 0 < one["median"] <= one["p90"] <= one["p99"]
        assert one["throughput"] > 0
        assert (one["runs"], one["warm_up"], one["streams"], one["batch"]) == (4, 3, 2, 1)
        assert 1 <= one["at_once"] <= 2
        assert 0 < one["host_bytes_before"] <= one["host_bytes"] < 1 << 34
        assert one["device_bytes"] is None
    (gpu,) = found["estimated"]
    assert (gpu["gpu"], gpu["batch"]) == ("L4", 1)
    assert min(gpu["fp32"], gpu["fp16"], gpu["plan"]) > 0


def test_bench_shows_three_tables():
    path, samples = save_overflowing()
    shown = " ".join(ok("bench", path, "-i", samples, "--repeats", "1", "--gpu", "T4", "--batch", "1,8").out.split())
    for title in ("Measured here", "Not run here", "Estimated, not run"):
        assert title in shown
    assert "PyTorch, FP32 no checkpoint was given" in shown


def test_a_larger_batch_costs_more_by_the_estimate():
    path, _ = save_overflowing()
    found = ok("bench", path, "--batch", "1,1000", "--repeats", "1", "--gpu", "A10", "--json").json["estimated"]
    assert [one["batch"] for one in found] == [1, 1000]
    assert found[1]["fp32"] > 10 * found[0]["fp32"]


def test_the_plan_is_that_of_the_config_and_no_other_models():
    path, samples = save_overflowing()
    ok("locate", path, "-i", samples, "-o", "plan.yaml")
    found = ok("bench", "-c", "plan.yaml", "-i", samples, "--repeats", "1", "--gpu", "T4", "--json").json
    assert found["fp32_layers"] == PINS
    Path("other.yaml").write_text(Path("plan.yaml").read_text().replace("sha256: ", "sha256: 0"))
    refused("bench", "-c", "other.yaml", "-i", samples, says="was made for another model")


def test_options_that_cannot_be_are_refused():
    path, _ = save_overflowing()
    misused("bench", path, "--gpu", "abacus", says="Invalid value: --gpu 'abacus' is not known; known are T4")
    misused("bench", path, "--model", "net.py:Net", says="Invalid value: --model, --model-arg and --trust-checkpoint")
    misused("bench", path, "--streams", "0", says="Invalid value for '--streams'")
    misused("bench", path, "--warm-up", "-1", says="Invalid value for '--warm-up'")
    misused("bench", says="Invalid value: give a model, or a --config that names one")
    refused("bench", "gone.onnx", says="gone.onnx does not exist")


def test_layers_of_one_name_are_no_obstacle():
    """ONNX Runtime refuses them; trt-helper gives them other names."""
    names = ("same",) * 5
    path, _ = save_overflowing(names=names)
    assert {layer.name for layer in onnx.load(path).graph.node} == {"same"}
    assert len(ok("bench", path, "--repeats", "1", "--json").json["measured"]) == 2


def test_streams_of_onnx_runtime_run_at_the_same_time():
    """A product of some ten milliseconds: the second thread begins long before the first is done."""
    saved(
        model(
            [node("MatMul", ["x", "w"], ["h"], "a"), node("MatMul", ["h", "w"], ["y"], "b")],
            [value("x", [900, 900])],
            [value("y", [900, 900])],
            [constant("w", np.eye(900, dtype=np.float32))],
        )
    )
    graph = graph_of(Path("model.onnx"))
    samples = batches(graph, load_samples(graph, [])[0])
    found = measure.measure(graph, Plan(), samples, Timing(repeats=6, warm_up=1, streams=2)).measured[0]
    assert (found.runner, found.streams, found.at_once) == ("onnxruntime", 2, 2)


def test_a_trial_is_computed_whole_each_time(monkeypatch):
    """On the same feed the emulator goes on from the last trial; that would time nothing."""
    path, samples = save_overflowing()
    layers, kernels = 5, []
    compute = Kernel.run
    monkeypatch.setattr(Kernel, "run", lambda self, feeds: kernels.append(self) or compute(self, feeds))
    with np.load(samples) as archive:
        np.savez("in.npz", archive["x"])
    request = {
        "file": str(path),
        "folder": ".",
        "inputs": ["x"],
        "cures": [],
        "fp32": PINS,
        "bf16": [],
        "repeats": 7,
        "warm_up": 2,
        "streams": 1,
    }
    emulate_child.run(request, lambda _event: None)
    assert len(kernels) == layers * (1 + 2 + 7)


def test_a_process_that_dies_is_an_error_with_the_way_it_died(monkeypatch, tmp_path):
    (tmp_path / "dying.py").write_text(
        "import os, signal\ndef run(request, send):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    graph = graph_of(saved(clean()))
    backend = backends.Backend("a way", "onnxruntime", "fp32", "dying", lambda _folder, _building: {}, asked=True)
    monkeypatch.setattr(measure, "ways", lambda *_: ([backend], []))
    samples = batches(graph, load_samples(graph, [])[0], [8])
    with pytest.raises(RunError, match=r"a way, batch 8 ended its process \(SIGKILL\)"):
        measure.measure(graph, Plan(), samples, Timing(repeats=1))
    monkeypatch.setattr(measure, "ways", lambda *_: ([replace(backend, asked=False)], []))
    (lost,) = measure.measure(graph, Plan(), samples, Timing(repeats=1)).not_run
    assert lost.what == "a way"


def at_work(children):
    """The children that have loaded what they work with. One that is only being started ends by itself, a little later.

    Until it runs Python of its own (`-I`), a child shows what its parent has loaded.
    """
    own = [
        one for one in children.read_text().split() if b"-I" in Path(f"/proc/{one}/cmdline").read_bytes().split(b"\0")
    ]
    return [one for one in own if "onnxruntime" in Path(f"/proc/{one}/maps").read_text()]


def test_an_interrupt_ends_the_child_too_with_two_lines(tmp_path):
    saved(clean())
    process = in_process(MAIN, "bench", "model.onnx", "--repeats", "100000000")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 30
    while not (found := at_work(children)) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert two_lines(err) == ("interrupted", "run the same command again")
    assert found
    assert not any(Path(f"/proc/{child}").exists() for child in found)
    assert list((tmp_path / "temporary").iterdir()) == []


# ----------------------------------------------------------------------------------------------- models


@pytest.mark.parametrize(("name", "batch"), [("mnist", None), ("yunet_n_dynamic", 2)])
def test_a_real_model_is_timed(name, batch):
    path = SHARED / name / "model.onnx"
    if not path.is_file():
        pytest.skip(f"the real models are not here: {path} does not exist")
    inputs = sorted((SHARED / name / "inputs").glob("*.npz"))[:1]
    words = [word for file in inputs for word in ("-i", file)] + (["--batch", batch] if batch else [])
    found = ok("bench", path, *words, "--repeats", "3", "--warm-up", "1", "--gpu", "L4", "--json").json
    assert [one["batch"] for one in found["measured"]] == [batch, batch]
    assert found["estimated"][0]["fp16"] < found["estimated"][0]["fp32"]


# --------------------------------------------------------------------------------------------- engines


def not_here(name):
    raise MachineError(f"no {name}", fix="buy one")


def with_runners(monkeypatch, **runners):
    monkeypatch.setattr(backends, "runner_here", lambda name: runners.get(name) or not_here(name))


def benched(*plans):
    path, samples = save_overflowing()
    graph = graph_of(path)
    plan = graph.plan(*plans)
    given = batches(graph, load_samples(graph, [samples])[0], [1, 2])
    return measure.measure(graph, plan, given, Timing(repeats=2, warm_up=1))


def test_typed_models_are_timed_in_fp32_in_fp16_and_with_the_plan(monkeypatch):
    """ONNX Runtime's CPU provider in the place of CUDA."""
    with_runners(monkeypatch, cuda=CPU)
    found = [one for one in benched(PINS).measured if one.runner == "cuda"]
    assert [(one.precision, one.batch) for one in found] == [
        (precision, batch) for precision in ("fp32", "fp16", "plan") for batch in (1, 2)
    ]
    assert [one.what for one in found[::2]] == [
        f"ONNX Runtime, CUDA, {precision}" for precision in ("FP32", "FP16", "FP16 with the plan")
    ]
    without = [one.precision for one in benched([]).measured if one.runner == "cuda"]
    assert without == ["fp32", "fp32", "fp16", "fp16"], "an empty plan is FP16 once more"


@pytest.mark.skipif(backends.find_gpu().missing == "", reason="this machine has a GPU")
def test_a_runner_that_fails_is_listed_with_what_it_said(monkeypatch):
    """ONNX Runtime without CUDA, and an engine that is really built and cannot be loaded without a GPU."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'trt-helper[rtx]'")
    pytest.importorskip("polygraphy", reason="pip install polygraphy")
    with_runners(monkeypatch, **{name: RUNNERS[name] for name in ("cuda", "tensorrt-rtx")})
    found = benched([])
    assert {one.runner for one in found.measured} == {"onnxruntime", "emulate"}
    said = {one.what: one for one in found.not_run}
    for precision in ("FP32", "FP16"):
        assert "has no CUDAExecutionProvider that works here" in said[f"ONNX Runtime, CUDA, {precision}"].why
        assert "the engine cannot be run" in said[f"TensorRT-RTX engine, {precision}"].why
    assert said["TensorRT engine"] == NotRun("TensorRT engine", "no tensorrt", "run bench on such a machine")


@pytest.mark.skipif(backends.find_gpu().missing == "", reason="this machine has a GPU")
def test_without_a_gpu_each_runner_is_listed_with_what_it_takes():
    path, _ = save_overflowing()
    said = {one["what"]: one for one in ok("bench", path, "--repeats", "1", "--json").json["not_run"]}
    assert set(said) == {"PyTorch, FP32", *backends.ENGINES.values()}
    for name in backends.ENGINES.values():
        assert "Python package" in said[name]["why"] or "GPU" in said[name]["why"]
        assert "pip install" in said[name]["how"] or said[name]["how"] == "run bench on such a machine"


@pytest.mark.gpu
@pytest.mark.parametrize("name", RUNNERS)
def test_on_a_gpu_each_precision_is_timed_with_the_memory_of_the_device(name, monkeypatch):
    try:
        runner = runner_here(name)
    except MachineError as error:
        pytest.skip(error.message)
    with_runners(monkeypatch, **{name: runner})
    found = [one for one in benched(PINS).measured if one.runner == name]
    assert [one.precision for one in found[::2]] == ["fp32", "fp16", "plan"]
    assert all(one.device_bytes is not None for one in found)
