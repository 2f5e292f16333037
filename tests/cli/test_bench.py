"""`trt-helper bench` as a user types it: its tables and JSON, its options, Ctrl-C, and real models."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import onnx
import pytest
from support.command_line import (
    MAIN,
    PINS,
    clean,
    in_process,
    misused,
    ok,
    refused,
    save_overflowing,
    saved,
    two_lines,
)

from trt_helper.bench import backends
from trt_helper.bench.rows import Measured

SHARED = Path(__file__).resolve().parents[3] / "shared" / "models"


FIELDS = set(Measured.__slots__)


pytestmark = pytest.mark.usefixtures("own_folder")


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


@pytest.mark.skipif(backends.find_gpu().missing == "", reason="this machine has a GPU")
def test_without_a_gpu_each_runner_is_listed_with_what_it_takes():
    path, _ = save_overflowing()
    said = {one["what"]: one for one in ok("bench", path, "--repeats", "1", "--json").json["not_run"]}
    assert set(said) == {"PyTorch, FP32", *backends.ENGINES.values()}
    for name in backends.ENGINES.values():
        assert "Python package" in said[name]["why"] or "GPU" in said[name]["why"]
        assert "pip install" in said[name]["how"] or said[name]["how"] == "run bench on such a machine"


def test_a_model_of_one_batch_size_has_no_other():
    path = saved(clean(batch=2))
    refused("bench", path, "--batch", "2", says="first dimension is fixed (2 in 'x')", fix="--dynamic NAME:0=1..32")
    assert {one["batch"] for one in ok("bench", path, "--repeats", "1", "--json").json["measured"]} == {None}


@pytest.mark.parametrize("text", ["", "0", "1,,2", "1,two", "-1", "1.5", "99999999"])
def test_what_is_no_batch_size_is_a_usage_error(text):
    saved(clean())
    refused("bench", "model.onnx", "--batch", text, says=f"--batch {text!r} is no list", fix="--batch 1,8,32", status=2)


def at_work(children):
    """The children that have loaded what they work with. One that is only being started ends by itself, a little later.

    Until it runs Python of its own (`-IB`), a child shows what its parent has loaded.
    """
    own = [
        one for one in children.read_text().split() if b"-IB" in Path(f"/proc/{one}/cmdline").read_bytes().split(b"\0")
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
