"""`bench`: what is timed, how it is counted, and what is said of the ways that this machine cannot go."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import threading
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from cli_helpers import (
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
    run,
    save_input,
    save_overflowing,
    saved,
    two_lines,
    value,
)

from trt_helper.bench import clock, emulate_child, measure, ways
from trt_helper.bench.measure import Timing, batches
from trt_helper.bench.rows import Measured, NotRun, percentile, times
from trt_helper.errors import InputError, MachineError, RunError
from trt_helper.graph import read_graph
from trt_helper.kernels import Kernel
from trt_helper.model import load
from trt_helper.runners import RUNNERS, runner_here
from trt_helper.samples import load_samples
from trt_helper.text import rate
from trt_helper.values import Plan

SHARED = Path(__file__).resolve().parents[2] / "shared" / "models"
CPU = replace(RUNNERS["cuda"], provider="CPUExecutionProvider")  # runs typed models where no GPU is
FIELDS = set(Measured.__slots__)
HERE = find_spec("torch") is not None


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch):
    own_folder(tmp_path, monkeypatch)


def graph_of(path):
    return read_graph(load(path))


# ------------------------------------------------------------------------------------------- statistics


@pytest.mark.parametrize("count", [1, 2, 9, 10, 30, 101])
def test_the_statistics_are_those_of_numpy(count):
    """One stream: latencies drawn from a skewed distribution, a pause after each."""
    generator = np.random.default_rng(count)
    latencies, pauses = generator.exponential(0.01, count), generator.exponential(0.001, count)
    begins = np.cumsum(latencies + pauses) - latencies
    spans = list(zip(begins, begins + latencies, strict=True))
    generator.shuffle(spans)
    found = times(spans)
    assert found.median == pytest.approx(np.median(latencies))
    for share, given in ((0.9, found.p90), (0.99, found.p99)):
        assert given == pytest.approx(np.percentile(latencies, 100 * share, method="inverted_cdf"))
    assert found.throughput == pytest.approx(count / (latencies.sum() + pauses[1:].sum()))
    assert found.at_once == 1


def test_streams_are_counted_by_what_overlapped():
    """Three inferences of 4 s in two streams: 8 s in all, the last one alone."""
    found = times([(10.0, 14.0), (10.0, 14.0), (14.0, 18.0)])
    assert (found.median, found.p90, found.throughput, found.at_once) == (4, 4, 3 / 8, 2)
    assert times([(0.0, 2.0), (1.0, 3.0), (1.5, 1.75)]).at_once == 3


@pytest.mark.parametrize(("share", "expected"), [(0.5, 5.0), (0.9, 9.0), (0.99, 10.0), (0.0, 1.0)])
def test_percentiles_are_by_nearest_rank(share, expected):
    assert percentile([float(value) for value in range(1, 11)], share) == expected


@pytest.mark.parametrize(
    ("number", "shown"),
    [(0.0, "0"), (0.01234, "0.0123"), (12.34, "12.3"), (123.4, "123"), (2396.0, "2,400"), (9.876e6, "9,880,000")],
)
def test_a_rate_is_written_out(number, shown):
    assert rate(number) == shown


# -------------------------------------------------------------------------------------------- the clock


def test_streams_are_threads_that_run_at_the_same_time():
    """Each inference waits for those of the two other streams: one after the other they would wait for ever."""
    meeting, seen = threading.Barrier(3, timeout=30), []

    def stream(number):
        def infer():
            seen.append((number, threading.get_ident()))
            meeting.wait()

        return infer

    spans = clock.timed([stream(number) for number in range(3)], repeats=12, warm_up=0, send=lambda _event: None)
    assert len(spans) == 12
    assert times(spans).at_once == 3
    assert {number for number, _ in seen} == {0, 1, 2}
    assert len(set(seen)) == 3, "each stream has one thread"


def test_what_is_timed_was_warmed_up_and_progress_is_told():
    calls, told = [], []

    def infer():
        calls.append(time.perf_counter())
        time.sleep(0.06)

    spans = clock.timed([infer], repeats=8, warm_up=5, send=told.append)
    assert len(calls) == 13
    assert len(spans) == 8
    assert min(begin for begin, _ in spans) > calls[4], "none of the first five is timed"
    assert all(0.06 <= end - begin < 5 for begin, end in spans)
    assert told
    assert all(event["of"] == 8 and 0 < event["done"] <= 8 for event in told)


def test_an_inference_that_fails_ends_all_streams():
    def broken():
        raise ValueError("not this one")

    with pytest.raises(ValueError, match="not this one"):
        clock.timed([broken] * 4, repeats=8, warm_up=0, send=lambda _event: None)


def test_a_thread_that_cannot_be_started_is_not_waited_for(monkeypatch):
    start, started = threading.Thread.start, []

    def limited(thread):
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        clock.timed([lambda: None] * 3, repeats=6, warm_up=0, send=lambda _event: None)
    for thread in started:
        thread.join(10)
        assert not thread.is_alive()


def test_the_memory_of_a_process_is_in_bytes():
    held = np.ones(1 << 25, np.uint8)  # 32 MiB
    assert held.nbytes < clock.memory_before().host < 1 << 36


FAKE_DRIVER = """
#include <stddef.h>
static int known = 0;
int cuInit(unsigned flags) { return flags; }
int cuDeviceGet(int *device, int ordinal) { *device = 40 + ordinal; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = &known; return device != 40; }
int cuCtxSetCurrent(void *context) { return context != &known; }
int cuMemGetInfo_v2(size_t *free, size_t *total) { *free = (size_t)5 << 32; *total = (size_t)6 << 32; return BROKEN; }
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler here to make a driver library with")
def test_the_driver_is_asked_for_free_memory_as_its_header_says():
    """The calls of cuda.h, sizes beyond 32 bits included, against a library that only does as it would."""
    Path("driver.c").write_text(FAKE_DRIVER)
    for name, broken in (("good", 0), ("broken", 201)):
        words = ["cc", "-shared", "-fPIC", f"-DBROKEN={broken}", "-o", f"{name}.so", "driver.c"]
        subprocess.run(words, check=True)
    assert clock.device_free(str(Path("good.so").absolute())) == 5 << 32
    assert clock.device_free(str(Path("broken.so").absolute())) is None
    assert clock.device_free("no-such-library.so") is None
    assert clock.device_taken(None) is None


# -------------------------------------------------------------------------------------------- the batch


def test_every_batch_is_really_fed(monkeypatch):
    """`clean` answers with as many rows as it was given."""
    graph, rows = graph_of(saved(clean())), []
    started = measure.run

    def watched(module, request, **how):
        found = started(module, request, **how)
        with np.load(Path(request["folder"]) / "out.npz") as out:
            rows.append((module.rpartition(".")[2], out["arr_0"].shape))
        return found

    monkeypatch.setattr(measure, "run", watched)
    samples = batches(graph, load_samples(graph, [])[0], [3, 1, 32])
    found = measure.measure(graph, Plan(), samples, Timing(repeats=2, warm_up=0))
    assert rows == [(child, (size, 4)) for child in ("ort_child", "emulate_child") for size in (3, 1, 32)]
    assert [one.batch for one in found.measured] == [3, 1, 32, 3, 1, 32]
    for one in found.measured:
        assert one.samples_per_second == pytest.approx(one.throughput * one.batch)


def test_the_batch_is_followed_by_its_name_and_keeps_the_values():
    path = saved(
        model(
            [node("Add", ["x", "s"], ["y"], "add")],
            [value("x", ["n", 2]), value("s", [1, "n", 2]), value("fixed", [5])],
            [value("y", [1, "n", 2])],
        )
    )
    graph = graph_of(path)
    real = save_input("x.npz", x=np.float32([[1, 2], [3, 4]]), s=np.zeros([1, 2, 2], np.float32), fixed=np.ones(5, "f"))
    (sample,) = load_samples(graph, [real])
    assert list(batches(graph, sample)) == [2]
    found = batches(graph, sample, [1, 5])
    assert [one.shapes for one in found.values()] == [
        {"x": (size, 2), "s": (1, size, 2), "fixed": (5,)} for size in (1, 5)
    ]
    np.testing.assert_array_equal(found[5].feed["x"], np.float32([[1, 2], [3, 4], [1, 2], [3, 4], [1, 2]]))


def test_a_model_of_one_batch_size_has_no_other():
    path = saved(clean(batch=2))
    refused("bench", path, "--batch", "2", says="first dimension is fixed (2 in 'x')", fix="--dynamic NAME:0=1..32")
    assert {one["batch"] for one in ok("bench", path, "--repeats", "1", "--json").json["measured"]} == {None}


@pytest.mark.parametrize("text", ["", "0", "1,,2", "1,two", "-1", "1.5", "99999999"])
def test_what_is_no_batch_size_is_a_usage_error(text):
    saved(clean())
    refused("bench", "model.onnx", "--batch", text, says=f"--batch {text!r} is no list", fix="--batch 1,8,32", status=2)


def test_a_batch_that_the_model_cannot_take_is_named():
    """The first dimension is dynamic by its name; a constant of three rows inside fixes it all the same."""
    saved(
        model(
            [node("Add", ["x", "c"], ["y"], "add")],
            [value("x", ["b", 4])],
            [value("y", ["b", 4])],
            [constant("c", np.ones([3, 4], np.float32))],
        )
    )
    graph = graph_of(Path("model.onnx"))
    samples = batches(graph, load_samples(graph, [])[0], [3, 2])
    with pytest.raises(InputError, match=r"does not run on random \(seed 0\) at batch 2"):
        measure.measure(graph, Plan(), samples, Timing(repeats=1))


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
    way = ways.Way("a way", "onnxruntime", "fp32", "dying", lambda _folder, _building: {}, asked=True)
    monkeypatch.setattr(measure, "ways", lambda *_: ([way], []))
    samples = batches(graph, load_samples(graph, [])[0], [8])
    with pytest.raises(RunError, match=r"a way, batch 8 ended its process \(SIGKILL\)"):
        measure.measure(graph, Plan(), samples, Timing(repeats=1))
    monkeypatch.setattr(measure, "ways", lambda *_: ([replace(way, asked=False)], []))
    (lost,) = measure.measure(graph, Plan(), samples, Timing(repeats=1)).not_run
    assert lost.what == "a way"


def test_an_interrupt_ends_the_child_too_with_two_lines(tmp_path):
    saved(clean())
    process = in_process(MAIN, "bench", "model.onnx", "--repeats", "100000000")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 30
    while not (found := children.read_text().split()) and time.monotonic() < deadline:
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
    monkeypatch.setattr(ways, "runner_here", lambda name: runners.get(name) or not_here(name))


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


@pytest.mark.skipif(ways.find_gpu().missing == "", reason="this machine has a GPU")
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


@pytest.mark.skipif(ways.find_gpu().missing == "", reason="this machine has a GPU")
def test_without_a_gpu_each_runner_is_listed_with_what_it_takes():
    path, _ = save_overflowing()
    said = {one["what"]: one for one in ok("bench", path, "--repeats", "1", "--json").json["not_run"]}
    assert set(said) == {"PyTorch, FP32", *ways.ENGINES.values()}
    for name in ways.ENGINES.values():
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


# --------------------------------------------------------------------------------------------- PyTorch

NET = """
from pathlib import Path
import torch

class Net(torch.nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.layer = torch.nn.Linear(4, width)
    def forward(self, x):
        with Path("seen").open("a") as file:
            print(tuple(x.shape), torch.is_grad_enabled(), self.training, file=file)
        return self.layer(x)

class Other(Net):
    def forward(self, x):
        return super().forward(x) + 1

class Broken(Net):
    def forward(self, x):
        return self.layer(x[:, :3])
"""
needs_torch = pytest.mark.skipif(not HERE, reason="PyTorch is not installed: pip install 'trt-helper[export]'")


def checkpoint():
    """A module, its weights and the model that they make."""
    import torch  # noqa: PLC0415 - optional

    Path("net.py").write_text(NET)
    weight, bias = np.arange(16, dtype=np.float32).reshape(4, 4), np.ones(4, np.float32)
    torch.save({"layer.weight": torch.from_numpy(weight), "layer.bias": torch.from_numpy(bias)}, "c.pt")
    saved(
        model(
            [node("Gemm", ["x", "w", "b"], ["y"], "layer", transB=1)],
            [value("x", ["n", 4])],
            [value("y", ["n", 4])],
            [constant("w", weight), constant("b", bias)],
        )
    )
    return ["bench", "model.onnx", "--checkpoint", "c.pt", "--repeats", "5", "--warm-up", "2"]


@needs_torch
@pytest.mark.export
def test_pytorch_is_timed_where_a_checkpoint_is_given():
    result = ok(*checkpoint(), "--model", "net.py:Net", "--batch", "2,3", "--json")
    assert result.err == ""
    rows = [one for one in result.json["measured"] if one["runner"] == "pytorch"]
    assert [(one["batch"], one["precision"], one["runs"]) for one in rows] == [(2, "fp32", 5), (3, "fp32", 5)]
    assert all(one["what"].startswith("PyTorch 2.") for one in rows)
    seen = Path("seen").read_text().splitlines()
    assert seen == [f"({size}, 4) False False" for size in (2, 3) for _ in range(1 + 2 + 5)]
    assert "PyTorch, FP32" not in {one["what"] for one in result.json["not_run"]}


@needs_torch
@pytest.mark.export
def test_another_network_than_the_model_is_told():
    result = ok(*checkpoint(), "--model", "net.py:Other")
    (warning,) = result.warnings
    assert "CPU, FP32 does not give the model's answers" in warning
    shape = ok(*checkpoint(), "--model", "net.py:Net", "--model-arg", "width=7", status=3)
    assert "7" in two_lines(shape.err)[0]


@needs_torch
@pytest.mark.export
@pytest.mark.parametrize(
    ("words", "says", "status"),
    [
        ([], "c.pt holds weights and no network", 2),
        (["--model", "net.py:Nett"], "net.py has no 'Nett'", 3),
        (["--model", "net.py:Broken"], "the module raises RuntimeError", 3),
        (["--model", "net.py:Net", "--model-arg", "width"], "--model-arg 'width' is not NAME=VALUE", 2),
    ],
)
def test_a_module_that_cannot_be_run_is_an_error_in_two_lines(words, says, status):
    result = run(*checkpoint(), *words)
    assert (result.status, result.out) == (status, "")
    assert says in two_lines(result.err)[0]


@pytest.mark.skipif(HERE, reason="PyTorch is installed")
def test_without_pytorch_a_checkpoint_says_what_to_install():
    saved(clean())
    Path("c.pt").touch()
    refused("bench", "model.onnx", "--checkpoint", "c.pt", says="needs PyTorch", fix="pip install 'trt-helper[export]'")


# ---------------------------------------------------------------------------------------------- report


@pytest.fixture(scope="module")
def located(tmp_path_factory):
    """A plan, its record, and what bench said of it, in one folder."""
    folder = tmp_path_factory.mktemp("located")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        path, samples = save_overflowing()
        ok("locate", path, "-i", samples)
        Path("said.json").write_text(ok("bench", "-c", "fp32_layers.yaml", "--repeats", "2", "--json").out)
    return folder


@pytest.fixture
def beside(located):
    """The same, with the bench file under the name that report looks for."""
    for file in ("fp32_layers.run.json", "said.json"):
        shutil.copy(located / file, file)
    Path("said.json").rename("fp32_layers.bench.json")
    return json.loads(Path("fp32_layers.bench.json").read_text())


def test_the_report_shows_what_bench_said_beside_the_record(beside):
    result = ok("report", "fp32_layers.run.json")
    page = Path("fp32_layers.run.html").read_text()
    assert "Speed, measured by bench" in result.out
    assert "ONNX Runtime, CPU, FP32" in result.out
    assert (
        page.count('<table id="speed">')
        == page.count('<table id="not-run">')
        == page.count('<table id="estimated">')
        == 1
    )
    table = page[page.index('<table id="speed">') : page.index('<table id="not-run">')]
    for row in beside["measured"]:
        assert row["what"] in table
        assert f"{1000 * row['median']:.3g}" in table
        assert rate(row["samples_per_second"]) in table
    Path("fp32_layers.bench.json").unlink()
    assert "Speed" not in ok("report", "fp32_layers.run.json").out
    assert '<table id="speed">' not in Path("fp32_layers.run.html").read_text()


def test_a_bench_file_can_be_named_and_must_belong_to_the_record(beside):
    Path("fp32_layers.bench.json").rename("kept.json")
    assert "Speed, measured" in ok("report", "fp32_layers.run.json", "--bench", "kept.json").out
    for change, says in (
        ({"fp32_layers": PINS[:2]}, "kept.json belongs to another model or plan"),
        ({"model": {"sha256": "0" * 64}}, "kept.json belongs to another model or plan"),
        ({"measured": [{}]}, "kept.json is not what bench says"),
        ({"measured": [{**beside["measured"][0], "median": "fast"}]}, "kept.json is not what bench says"),
    ):
        Path("kept.json").write_text(json.dumps({**beside, **change}))
        refused("report", "fp32_layers.run.json", "--bench", "kept.json", says=says)
    refused(
        "report", "fp32_layers.run.json", "--bench", "kept.json", "-o", "kept.json", says="is what the result is made"
    )
    Path("kept.json").rename("broken.bench.json")
    assert "Speed" not in ok("report", "fp32_layers.run.json").out


def test_pins_that_convert_added_are_no_other_plan(beside):
    more = {**beside, "fp32_layers": [*PINS, "/norm/Div"], "added": ["/norm/Div"]}
    Path("fp32_layers.bench.json").write_text(json.dumps(more))
    assert "Speed, measured" in ok("report", "fp32_layers.run.json").out


def test_names_in_a_bench_file_are_text(beside):
    hostile = "<script>alert(1)</script>\x1b[31m[bold]"
    beside["measured"][0]["what"] = beside["not_run"][0]["why"] = beside["platform"] = hostile
    beside["estimated"][0]["gpu"] = hostile
    Path("fp32_layers.bench.json").write_text(json.dumps(beside))
    out = ok("report", "fp32_layers.run.json").out
    page = Path("fp32_layers.run.html").read_text()
    assert "<script>alert" not in page
    assert "\x1b" not in out + page
    assert "[bold]" in out
