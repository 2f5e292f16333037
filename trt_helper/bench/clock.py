"""Time inferences and measure memory in the child process of a backend.

Every `*_child` module builds one inference function per stream and calls `answer`. The request is that of
`measure._Bench`; the sample is in.npz in the request's folder, and the outputs are written to out.npz there.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from trt_helper.runners.exchange import NO_TYPES, read_feed
from trt_helper.system.array_store import proc_value
from trt_helper.values import Array

Infer = Callable[[], Sequence[Array]]
"""Runs one inference, from arrays on the host to arrays on the host."""
Send = Callable[[dict[str, Any]], None]
REPORT_EVERY = 0.2  # seconds between two progress events


def feed_of(request: Mapping[str, Any], types: Mapping[str, Any] = NO_TYPES) -> dict[str, Array]:
    """Read the request's sample; `types` as for `exchange.read_feed`."""
    return read_feed(Path(request["folder"]) / "in.npz", request["inputs"], types)


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory in bytes before the model was loaded: resident in this process, and free on the GPU if one is used."""

    host: int | None
    device: int | None


def memory_before(*, device: bool = False) -> Memory:
    """Measure the memory; call it when everything except the model has been loaded."""
    return Memory(proc_value("self/status", "VmRSS"), device_free() if device else None)


def answer(infers: Sequence[Infer], request: Mapping[str, Any], send: Send, before: Memory) -> dict[str, Any]:
    """Time the inference functions and write the outputs of the first one.

    Args:
        infers: One inference function per stream.
        request: The request of `measure`.
        send: Sends progress events.
        before: The memory before the model was loaded.

    Returns:
        `spans` (see `timed`), and in bytes `host_before`, `host` (peak resident memory of the process) and `device`
        (GPU memory in use since `before`); None if unknown.
    """
    np.savez(Path(request["folder"]) / "out.npz", *infers[0]())
    spans = timed(infers, request["repeats"], request["warm_up"], send)
    return {
        "spans": spans,
        "host_before": before.host,
        "host": proc_value("self/status", "VmHWM"),
        "device": device_taken(before.device),
    }


def timed(infers: Sequence[Infer], repeats: int, warm_up: int, send: Send) -> list[tuple[float, float]]:
    """Run `repeats` inferences in one thread per inference function.

    All threads start together, and each starts the next inference when its last one has ended.

    Args:
        infers: One inference function per thread.
        repeats: Number of timed inferences, over all threads.
        warm_up: Untimed inferences per function, before any is timed.
        send: Sends progress events.

    Returns:
        Start and end of each inference in seconds of one clock, in order of their ends.
    """
    for infer in infers:
        for _ in range(warm_up):
            infer()
    together, lock = threading.Barrier(len(infers)), threading.Lock()
    spans: list[tuple[float, float]] = []
    begun, reported = 0, perf_counter()

    def work(infer: Infer) -> None:
        nonlocal begun, reported
        together.wait()
        while True:
            with lock:
                if begun == repeats:
                    return
                begun += 1
            begin = perf_counter()
            infer()
            end = perf_counter()
            with lock:
                spans.append((begin, end))
                if end - reported > REPORT_EVERY:
                    reported = end
                    send({"event": "timed", "done": len(spans), "of": repeats})

    with ThreadPoolExecutor(len(infers)) as pool:
        try:
            list(pool.map(work, infers))
        except BaseException:
            together.abort()  # otherwise the others would wait for a thread that could not be started
            raise
    return spans


def device_free(library: str = "libcuda.so.1") -> int | None:
    """Return the free bytes of the first GPU, with this process's CUDA context on it.

    None if the driver does not say.
    """
    try:
        cuda = ctypes.CDLL(library)
    except OSError:
        return None
    device, context, free, total = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_size_t()
    calls: tuple[tuple[str, tuple[Any, ...]], ...] = (
        ("cuInit", (0,)),
        ("cuDeviceGet", (ctypes.byref(device), 0)),
        ("cuDevicePrimaryCtxRetain", (ctypes.byref(context), device)),  # the context that all libraries share
        ("cuCtxSetCurrent", (context,)),
        ("cuMemGetInfo_v2", (ctypes.byref(free), ctypes.byref(total))),
    )
    return None if any(getattr(cuda, name)(*words) for name, words in calls) else free.value


def device_taken(free: int | None) -> int | None:
    """Return the bytes of the first GPU in use since `free`, a result of `device_free`; None if unknown."""
    now = None if free is None else device_free()
    return None if free is None or now is None else max(free - now, 0)
