"""A graph, a plan and samples go in; how fast this machine runs it, and how fast a GPU should, comes out."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from trt_helper.cost import Gpu, seconds
from trt_helper.emulate import Emulator
from trt_helper.graph import Graph
from trt_helper.reference import runner
from trt_helper.samples import Sample
from trt_helper.values import Plan

WARM_UP = 3  # inferences that are not counted


@dataclass(frozen=True, slots=True)
class Measured:
    """Latencies of one way to run the model, in seconds, and inferences a second over all streams."""

    what: str
    streams: int
    runs: int
    median: float
    p90: float
    p99: float
    throughput: float


@dataclass(frozen=True, slots=True)
class Estimated:
    """What the cost model says of one inference on a GPU, in seconds; nothing of it was run."""

    gpu: Gpu
    fp32: float
    fp16: float
    plan: float


def measure(
    graph: Graph,
    plan: Plan,
    sample: Sample,
    *,
    repeats: int,
    streams: int = 1,
    on_run: Callable[[int, int], None] = lambda _done, _total: None,
) -> list[Measured]:
    """Run the model on ONNX Runtime's CPU provider in FP32, and one trial of `plan` on the emulator."""
    fp32, emulator = runner(graph, optimised=True), Emulator(graph)
    ways: list[tuple[str, Callable[[], object]]] = [
        ("ONNX Runtime, CPU, FP32", lambda: fp32(sample)),
        ("emulated FP16 with the plan", lambda: emulator.run(plan, sample.feed)),
    ]
    found = []
    for index, (what, run) in enumerate(ways):
        found.append(_measured(what, run, repeats, streams))
        on_run(index + 1, len(ways))
    return found


def _measured(what: str, run: Callable[[], object], repeats: int, streams: int) -> Measured:
    for _ in range(WARM_UP):
        run()

    def timed(_index: int) -> float:
        started = time.perf_counter()
        run()
        return time.perf_counter() - started

    started = time.perf_counter()
    with ThreadPoolExecutor(streams) as pool:
        times = sorted(pool.map(timed, range(repeats)))
    throughput = repeats / (time.perf_counter() - started)
    return Measured(what, streams, repeats, statistics.median(times), _at(times, 0.9), _at(times, 0.99), throughput)


def _at(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not pass (nearest rank)."""
    rank = -(-len(ordered) * share // 1)
    return ordered[max(int(rank) - 1, 0)]


def estimate(graph: Graph, plan: Plan, sample: Sample, gpus: Iterable[Gpu]) -> list[Estimated]:
    """What `cost` says of the model on each GPU, with the sizes of `sample`."""
    shapes = Emulator(graph).shapes(sample.feed)
    plans = (graph.all_pinned(), Plan(), plan)
    return [Estimated(gpu, *(seconds(graph, one, shapes, gpu) for one in plans)) for gpu in gpus]
