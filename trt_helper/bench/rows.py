"""When each inference began and ended goes in; latencies, throughput and what else a row of the table says come out."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

Span = tuple[float, float]  # when an inference began and ended, in seconds of one clock


@dataclass(frozen=True, slots=True)
class Measured:
    """One way to run the model, timed from arrays on the host to arrays on the host.

    Latencies in seconds. `throughput` is inferences a second over all streams, `samples_per_second` that times the
    batch. Memory in bytes; None where it cannot be known.
    """

    what: str
    runner: str  # pytorch, onnxruntime, emulate, cuda, tensorrt or tensorrt-rtx
    precision: str  # fp32, fp16 or plan
    batch: int | None  # None where no input has a dynamic first dimension
    streams: int
    at_once: int  # inferences that really ran at the same time, at most
    warm_up: int  # inferences of each stream that were not timed
    runs: int
    median: float
    p90: float
    p99: float
    throughput: float
    samples_per_second: float
    host_bytes: int | None  # largest resident memory of the process
    host_bytes_before: int | None  # its resident memory before the model was loaded
    device_bytes: int | None  # on the GPU, of this process


@dataclass(frozen=True, slots=True)
class NotRun:
    """A way that cannot be taken here: why, and how it could be."""

    what: str
    why: str
    how: str


@dataclass(frozen=True, slots=True)
class Estimated:
    """What the cost model says of one inference on a GPU, in seconds; nothing of it was run."""

    gpu: str
    batch: int | None
    fp32: float
    fp16: float
    plan: float


@dataclass(frozen=True, slots=True)
class Times:
    """Statistics of the inferences of all streams: latencies in seconds, inferences a second."""

    median: float
    p90: float
    p99: float
    throughput: float
    at_once: int


def times(spans: Sequence[Span]) -> Times:
    """Statistics of at least one inference. The rate is over the time from the first beginning to the last end."""
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
    """The smallest value that at least `share` of the values do not pass (nearest rank)."""
    rank = -(-len(ordered) * share // 1)
    return ordered[max(int(rank) - 1, 0)]


def _at_once(spans: Sequence[Span]) -> int:
    """How many spans overlap at most; where one ends as another begins, they do not."""
    events = sorted([(begin, 1) for begin, _ in spans] + [(end, -1) for _, end in spans])
    most = now = 0
    for _, change in events:
        now += change
        most = max(most, now)
    return most
