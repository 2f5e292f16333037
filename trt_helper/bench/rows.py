"""The rows of bench's table, and the statistics over the timed inferences."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

Span = tuple[float, float]  # start and end of an inference, in seconds of one clock


@dataclass(frozen=True, slots=True)
class Measured:
    """One backend, timed from arrays on the host to arrays on the host.

    Latencies (`median`, `p90`, `p99`) are in seconds. `throughput` is inferences per second over all streams,
    `samples_per_second` is that times the batch. Memory is in bytes; None if unknown.
    """

    what: str
    runner: str  # pytorch, onnxruntime, emulate, cuda, tensorrt or tensorrt-rtx
    precision: str  # fp32, fp16 or plan
    batch: int | None  # None where no input has a dynamic first dimension
    streams: int
    at_once: int  # largest number of inferences that actually ran at the same time
    warm_up: int  # untimed inferences per stream
    runs: int  # timed inferences
    median: float
    p90: float
    p99: float
    throughput: float
    samples_per_second: float
    host_bytes: int | None  # peak resident memory of the process
    host_bytes_before: int | None  # its resident memory before the model was loaded
    device_bytes: int | None  # on the GPU, of this process


@dataclass(frozen=True, slots=True)
class NotRun:
    """A backend that cannot run here: the reason, and how to get it."""

    what: str
    why: str
    how: str


@dataclass(frozen=True, slots=True)
class Estimated:
    """The cost model's estimate of one inference on a GPU, in seconds; nothing was run."""

    gpu: str
    batch: int | None
    fp32: float
    fp16: float
    plan: float


@dataclass(frozen=True, slots=True)
class Times:
    """Statistics over all streams: latencies in seconds, throughput in inferences per second."""

    median: float
    p90: float
    p99: float
    throughput: float
    at_once: int  # largest number of inferences that ran at the same time


def times(spans: Sequence[Span]) -> Times:
    """Return the statistics of at least one inference.

    The throughput is over the time from the first start to the last end.
    """
    ordered = sorted(end - begin for begin, end in spans)
    whole = max(end for _, end in spans) - min(begin for begin, _ in spans)
    return Times(
        statistics.median(ordered),
        percentile(ordered, 0.9),
        percentile(ordered, 0.99),
        len(ordered) / whole,
        _at_once(spans),
    )


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` of the sorted values do not exceed (nearest rank)."""
    rank = -(-len(ordered) * share // 1)
    return ordered[max(int(rank) - 1, 0)]


def _at_once(spans: Sequence[Span]) -> int:
    """Return the largest number of overlapping spans; a span that starts when another ends does not overlap it."""
    events = sorted([(begin, 1) for begin, _ in spans] + [(end, -1) for _, end in spans])
    most = now = 0
    for _, change in events:
        now += change
        most = max(most, now)
    return most
