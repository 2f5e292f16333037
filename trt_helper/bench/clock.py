"""The child's side of `bench`: an inference goes in, when each run of it began and ended comes out, with memory."""

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
"""One inference, from arrays on the host to arrays on the host."""
Send = Callable[[dict[str, Any]], None]
TELL_EVERY = 0.2  # seconds between two reports of progress


def feed_of(request: Mapping[str, Any], types: Mapping[str, Any] = NO_TYPES) -> dict[str, Array]:
    """The sample that is to be run: `exchange.read_feed`."""
    return read_feed(Path(request["folder"]) / "in.npz", request["inputs"], types)


@dataclass(frozen=True, slots=True)
class Memory:
    """What there was before the model was loaded: resident in this process, free on the GPU where one is used."""

    host: int | None
    device: int | None


def memory_before(*, device: bool = False) -> Memory:
    """To be called when everything but the model has been loaded."""
    return Memory(proc_value("self/status", "VmRSS"), device_free() if device else None)


def answer(infers: Sequence[Infer], request: Mapping[str, Any], send: Send, before: Memory) -> dict[str, Any]:
    """Time `infers`, one for each stream, and leave the outputs of the first one in the request's folder."""
    np.savez(Path(request["folder"]) / "out.npz", *infers[0]())
    spans = timed(infers, request["repeats"], request["warm_up"], send)
    return {
        "spans": spans,
        "host_before": before.host,
        "host": proc_value("self/status", "VmHWM"),
        "device": device_taken(before.device),
    }


def timed(infers: Sequence[Infer], repeats: int, warm_up: int, send: Send) -> list[tuple[float, float]]:
    """Run `repeats` inferences in as many threads as there are `infers`: when each began and ended, in seconds.

    Each of `infers` belongs to one thread, and has run `warm_up` times before any is timed. All threads begin
    together, and each takes the next inference as soon as it is free.
    """
    for infer in infers:
        for _ in range(warm_up):
            infer()
    together, lock = threading.Barrier(len(infers)), threading.Lock()
    spans: list[tuple[float, float]] = []
    begun, told = 0, perf_counter()

    def work(infer: Infer) -> None:
        nonlocal begun, told
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
                if end - told > TELL_EVERY:
                    told = end
                    send({"event": "timed", "done": len(spans), "of": repeats})

    with ThreadPoolExecutor(len(infers)) as pool:
        try:
            list(pool.map(work, infers))
        except BaseException:
            together.abort()  # a thread that could not be started would be waited for
            raise
    return spans


def device_free(library: str = "libcuda.so.1") -> int | None:
    """Bytes that the first GPU has free, with this process' context on it; None where the driver does not say."""
    try:
        cuda = ctypes.CDLL(library)
    except OSError:
        return None
    device, context, free, total = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_size_t()
    calls: tuple[tuple[str, tuple[Any, ...]], ...] = (
        ("cuInit", (0,)),
        ("cuDeviceGet", (ctypes.byref(device), 0)),
        ("cuDevicePrimaryCtxRetain", (ctypes.byref(context), device)),  # the one that all libraries share
        ("cuCtxSetCurrent", (context,)),
        ("cuMemGetInfo_v2", (ctypes.byref(free), ctypes.byref(total))),
    )
    return None if any(getattr(cuda, name)(*words) for name, words in calls) else free.value


def device_taken(free: int | None) -> int | None:
    """Bytes of the first GPU that are in use and were not when `free` was what `device_free` said."""
    now = None if free is None else device_free()
    return None if free is None or now is None else max(free - now, 0)
