"""What `bench` times and how it counts: statistics, the clock, memory, batches."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from support.cli_helpers import (
    clean,
    constant,
    model,
    node,
    ok,
    own_folder,
    refused,
    save_input,
    saved,
    value,
)

from trt_helper.bench import clock, measure
from trt_helper.bench.measure import Timing, batches
from trt_helper.bench.rows import percentile, times
from trt_helper.errors import InputError
from trt_helper.format.text import rate
from trt_helper.inputs.samples import load_samples
from trt_helper.onnx_model.graph import read_graph
from trt_helper.onnx_model.load import load
from trt_helper.values import Plan


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
