"""Which backends can run a model here, and what each of them times: typed models, engines, each precision."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.command_line import PINS, save_overflowing

from trt_helper.bench import backends, measure
from trt_helper.bench.measure import Timing, batches
from trt_helper.bench.rows import NotRun
from trt_helper.errors import MachineError
from trt_helper.inputs.samples import load_samples
from trt_helper.onnx_model.graph import read_graph
from trt_helper.onnx_model.load import load
from trt_helper.runners.run import RUNNERS, runner_here

CPU = replace(RUNNERS["cuda"], provider="CPUExecutionProvider")  # runs typed models where no GPU is


pytestmark = pytest.mark.usefixtures("own_folder")


def graph_of(path):
    return read_graph(load(path))


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
