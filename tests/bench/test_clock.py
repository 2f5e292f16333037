"""The clock of `bench`: streams, warm-up, progress, and the memory of a process and of a GPU."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from trt_helper.bench import clock
from trt_helper.bench.rows import times

pytestmark = pytest.mark.usefixtures("own_folder")


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


def test_what_is_timed_was_warmed_up_and_progress_is_sent():
    calls, events = [], []

    def infer():
        calls.append(time.perf_counter())
        time.sleep(0.06)

    spans = clock.timed([infer], repeats=8, warm_up=5, send=events.append)
    assert len(calls) == 13
    assert len(spans) == 8
    assert min(begin for begin, _ in spans) > calls[4], "none of the first five is timed"
    assert all(0.06 <= end - begin < 5 for begin, end in spans)
    assert events
    assert all(event["of"] == 8 and 0 < event["done"] <= 8 for event in events)


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
