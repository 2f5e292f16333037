"""`locate --ray`: trials on a Ray cluster of several processes give the answer of one process, whatever dies."""

from __future__ import annotations

import itertools
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from support.command_line import (
    MAIN,
    PINS,
    in_process,
    overflowing,
    own_folder,
    run,
    save_input,
    save_overflowing,
    saved,
    two_lines,
)
from support.model_cases import MODELS
from support.overflowing_models import CPU, overflowing_norm, overflowing_products, samples_of_products
from support.special_models import save_external

from trt_helper.builder.settings import BuildSettings
from trt_helper.emulator.emulator import Emulator
from trt_helper.errors import InputError, MachineError
from trt_helper.inputs.metric import Metric
from trt_helper.inputs.sample import Sample
from trt_helper.onnx_model.graph import read_graph
from trt_helper.onnx_model.load import load
from trt_helper.onnx_model.typed import render
from trt_helper.report.record import located_json
from trt_helper.runners.oracle import RunnerOracle
from trt_helper.search.locate import locate
from trt_helper.search.oracle import Criteria, EmulatedOracle
from trt_helper.search.strategy import no_plans
from trt_helper.values import Plan, Tolerance, Trial, Verdict

ROOT = Path(__file__).resolve().parents[2]
TOLERANCE = Tolerance(0.05, 0.0)
needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'trt-helper[ray]'")
if find_spec("ray") is not None:
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # read when Ray is imported: nobody else gets in
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray

    from trt_helper.runners.ray_cluster import RETRIES, Cluster, _packed, _unpacked

HEAD = """
import sys, ray
context = ray.init(num_cpus=2, num_gpus=1, include_dashboard=False, object_store_memory=10**8, logging_level="ERROR",
                   log_to_driver=False, _temp_dir=sys.argv[1])
print(context.address_info["address"], flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def address():
    """A cluster of one machine with two CPUs and what it believes to be a GPU; it lives as long as its stdin."""
    if find_spec("ray") is None:
        pytest.skip("Ray is not installed: pip install 'trt-helper[ray]'")
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:
        head = subprocess.Popen(
            [sys.executable, "-c", HEAD, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"},
        )
        try:
            yield head.stdout.readline().strip()
        finally:
            head.communicate()


@pytest.fixture(autouse=True)
def _not_connected():
    yield
    if find_spec("ray") is not None:
        ray.shutdown()


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """Three pins, and five samples, one of which is held out."""
    path = tmp_path_factory.mktemp("ray") / "model.onnx"
    overflowing_norm(path, width=32, depth=6)
    random = np.random.default_rng(1)
    return read_graph(load(path)), [
        Sample(f"{index}", {"x": random.standard_normal((64, 32)).astype(np.float32)}) for index in range(5)
    ]


def as_bytes(graph, plan):
    model = render(graph, plan).model
    for value in model.graph.initializers.values():
        value.const_value = ir.Tensor(value.const_value.numpy().copy(), name=value.name)
    return ir.to_proto(model).SerializeToString(deterministic=True)


def record_of(located):
    """All that a run says, but how long it took."""
    return {name: value for name, value in located_json(located).items() if name != "seconds"}


@needs_ray
@pytest.mark.parametrize("count", [1, 5])
def test_the_answer_is_the_one_of_a_single_process(address, task, count):
    graph, samples = task[0], task[1][:count]
    alone = locate(graph, samples, TOLERANCE)
    with Cluster(address) as cluster:
        found = locate(graph, samples, TOLERANCE, oracle=cluster.oracle)
    assert found.pins == ("square", "mean", "root")
    assert record_of(found) == record_of(alone)
    assert found.trials == alone.trials
    assert found.per_sample == alone.per_sample


@needs_ray
def test_a_metric_and_rewrites_travel_too(address, task):
    graph, samples = task[0], task[1][:2]

    def share(reference, found):
        near = [np.abs(f["m5"] - r["m5"]) < 0.01 for r, f in zip(reference, found, strict=True)]
        return float(np.mean(near))

    how = {"metric": Metric(share, 0.9, "share"), "rewrites": {"pins", "norms", "bf16"}}
    alone = locate(graph, samples, TOLERANCE, **how)
    with Cluster(address) as cluster:
        found = locate(graph, samples, TOLERANCE, **how, oracle=cluster.oracle)
    assert alone.plan.bf16
    assert record_of(found) == record_of(alone)


@needs_ray
@pytest.mark.parametrize("name", [*MODELS, "external"])
def test_a_graph_is_the_same_after_the_way_to_a_worker(model_case, tmp_path, name):
    path = save_external(tmp_path, files=("w.bin", "v.bin")) if name == "external" else model_case(name).path
    graph = read_graph(load(path))
    again = _unpacked(_packed(graph))
    assert again.layers == graph.layers
    for plan in (Plan(), Plan.of(graph.candidates[::2]), graph.all_pinned()):
        assert as_bytes(again, plan) == as_bytes(graph, plan)


def marked(folder, first, then=lambda: None):
    """What makes oracles that leave a file for each trial of the search for a plan; then `then` happens.

    The first of them on this machine ends as `first` says.
    """

    class Marked(EmulatedOracle):
        def judge(self, plan, which, speculative=no_plans):
            judgement = super().judge(plan, which, speculative)
            if 0 < len(plan) < 5:
                begun = len(list(folder.iterdir()))
                (folder / f"{begun}-{os.getpid()}").touch()
                (first if begun == 0 else then)()
            return judgement

    def make(graph, criteria):
        return Marked(Emulator(graph), criteria)

    return make


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


@needs_ray
def test_a_worker_that_is_killed_in_the_middle_costs_a_retry(address, task, tmp_path):
    alone = locate(*task, TOLERANCE)
    with Cluster(address, marked(tmp_path, lambda: os.kill(os.getpid(), signal.SIGKILL))) as cluster:
        found = locate(*task, TOLERANCE, oracle=cluster.oracle)
    workers = [path.name.partition("-")[2] for path in sorted(tmp_path.iterdir())]
    assert len(workers) > 2
    assert workers[0] not in workers[1:]
    assert record_of(found) == record_of(alone)


@needs_ray
def test_a_plan_that_ends_every_worker_counts_as_not_judged(address, task):
    graph, samples = task
    criteria = Criteria(samples[:1], [{}], TOLERANCE)

    def make(_graph, _criteria):
        os.kill(os.getpid(), signal.SIGKILL)

    with Cluster(address, make) as cluster:
        trial = cluster.oracle(graph, criteria).judge(Plan(), [0]).trial
    assert trial == Trial(Plan(), Verdict.UNRESOLVED, why=f"it ended its worker {RETRIES + 1} times")


@needs_ray
def test_trials_run_side_by_side_and_those_not_requested_leave_no_trace(address, task, tmp_path):
    """Two slots: while a plan without one pin is judged, the next one is."""
    graph, samples = task[0], task[1][:1]
    alone = locate(graph, samples, TOLERANCE)
    nap = partial(time.sleep, 0.5)
    with Cluster(address, marked(tmp_path, nap, nap)) as cluster:
        found = locate(graph, samples, TOLERANCE, oracle=cluster.oracle)
    assert record_of(found) == record_of(alone)
    begun = sorted(path.stat().st_mtime for path in tmp_path.iterdir())
    gaps = [after - before for before, after in itertools.pairwise(begun)]
    assert min(gaps) < 0.4, "two naps of half a second overlap"
    assert len({path.name.partition("-")[2] for path in tmp_path.iterdir()}) == 2


@needs_ray
def test_a_runner_gets_a_gpu_for_each_trial(address, tmp_path):
    """ONNX Runtime's CPU provider in the place of CUDA; the GPU is one that Ray only believes in."""
    graph, samples = overflowing_products(tmp_path), samples_of_products(2, 3)
    seen = tmp_path / "seen"
    seen.mkdir()

    def make(graph, criteria):
        return RunnerOracle(graph, CPU, criteria, {}, BuildSettings())

    def noting(graph, criteria):
        (seen / os.environ["CUDA_VISIBLE_DEVICES"]).touch()
        return make(graph, criteria)

    tolerance = Tolerance(1e-2, 0)
    alone = locate(graph, samples, tolerance, oracle=make, runner="cuda")
    with Cluster(address, noting, gpus=1) as cluster:
        found = locate(graph, samples, tolerance, oracle=cluster.oracle, runner="cuda")
    assert record_of(found) == record_of(alone)
    assert [path.name for path in seen.iterdir()] == ["0"]


@needs_ray
def test_more_gpus_than_the_cluster_has_are_not_waited_for(address):
    with pytest.raises(MachineError, match="has 1 GPUs, and a trial needs 2") as caught, Cluster(address, gpus=2):
        raise AssertionError("entered")
    assert "--num-gpus" in caught.value.fix
    assert not ray.is_initialized()


@needs_ray
def test_what_a_trial_raises_is_raised_as_itself(address, task):
    def wrong(_reference, _found):
        raise ZeroDivisionError("mine")

    with Cluster(address) as cluster, pytest.raises(InputError, match="the metric wrong failed: ZeroDivisionError"):
        locate(*task, TOLERANCE, metric=Metric(wrong, 0.5, "wrong"), oracle=cluster.oracle)


@needs_ray
def test_a_worker_with_other_versions_is_refused(address, task, monkeypatch):
    monkeypatch.setattr("trt_helper.runners.ray_cluster.versions", lambda: {"trt-helper": "9.9", "onnxruntime": "9.9"})
    with Cluster(address) as cluster, pytest.raises(MachineError, match=r"has other versions: trt-helper .* not 9\.9"):
        locate(*task, TOLERANCE, oracle=cluster.oracle)


@needs_ray
def test_the_command_gives_the_same_record_with_ray(address, tmp_path, monkeypatch):
    own_folder(tmp_path, monkeypatch)
    monkeypatch.setenv("RAY_ADDRESS", address)
    model, x = save_overflowing()
    alone = run("locate", model, "--inputs", x, "--json")
    found = run("locate", model, "--inputs", x, "--json", "--ray", "auto")
    assert (found.status, found.err) == (0, alone.err)
    assert {**found.json, "seconds": 0} == {**alone.json, "seconds": 0}
    assert not ray.is_initialized()


@needs_ray
def test_ctrl_c_leaves_nothing_running(address, tmp_path, monkeypatch):
    own_folder(tmp_path, monkeypatch)
    model, x = save_overflowing()
    Path("slow.py").write_text(
        "import os, pathlib, time\n"
        "def slow(reference, found):\n"
        f"    pathlib.Path({str(tmp_path)!r}, 'worker').write_text(str(os.getpid()))\n"
        "    time.sleep(100)\n"
    )
    words = ["--metric", "slow.py:slow", "--metric-threshold", "1", "--ray", address]
    process = in_process(MAIN, "locate", model, "--inputs", x, *words)
    worker = tmp_path / "worker"
    wait_for(lambda: worker.exists() and worker.read_text(), seconds=120)  # Ray starts workers, which takes its time
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    two_lines(err)
    wait_for(lambda: not alive(int(worker.read_text())))


def wait_for(done, seconds=30):
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.05)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@needs_ray
@pytest.mark.parametrize("port", ["9", "65536", "9" * 30])
def test_an_address_where_nobody_answers_is_an_error_at_once(port, tmp_path, monkeypatch):
    own_folder(tmp_path, monkeypatch)
    model, x = save_overflowing()
    begun = time.monotonic()
    result = run("locate", model, "--inputs", x, "--ray", f"127.0.0.1:{port}")
    assert time.monotonic() - begun < 10
    assert result.status == 3
    assert two_lines(result.err)[0].startswith(f"no Ray cluster answers at '127.0.0.1:{port}'")


@needs_ray
def test_the_readme_locates_several_models_side_by_side(address, tmp_path, monkeypatch):
    own_folder(tmp_path, monkeypatch)
    Path("models").mkdir()
    for name in ("a", "b"):
        save_input(f"models/{name}.npz", x=np.tile(np.float32([300, -300] * 4), (1, 1)))
        saved(overflowing(), f"models/{name}.onnx")
    (code,) = re.findall(r"```python\n(import ray\n.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    ray.init(address=address, log_to_driver=False)
    names = {}
    exec(code, names)  # noqa: S102 - our own text
    assert {path.name: set(pins) for path, pins in names["found"].items()} == {"a.onnx": {*PINS}, "b.onnx": {*PINS}}


def test_without_ray_the_extra_is_named(tmp_path, monkeypatch):
    own_folder(tmp_path, monkeypatch)
    model, x = save_overflowing()
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "trt_helper.runners.ray_cluster", raising=False)
    result = run("locate", model, "--inputs", x, "--ray", "auto")
    assert result.status == 3
    assert two_lines(result.err)[1] == "pip install 'trt-helper[ray]'"
