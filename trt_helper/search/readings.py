"""Judges the answer of a search by every reading of what kernels compute: whether it holds on other kernels."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from trt_helper.emulator.emulator import Emulator
from trt_helper.onnx_model.graph import Graph
from trt_helper.search.oracle import Criteria, EmulatedOracle
from trt_helper.system.array_store import ArrayStore
from trt_helper.values import READINGS, Reading, Trial

SLOWER = 40  # forward passes that one takes with products accumulated in half, at most (measured: 10 to 40)


def by_readings(
    graph: Graph,
    trial: Trial,
    criteria: Criteria,
    known: Mapping[Reading, Trial],
    store: ArrayStore | None,
    left: float,
    on_progress: Callable[[str, int, int], None],
) -> tuple[dict[Reading, Trial], int]:
    """Judge the plan of `trial` by each reading, on the sample that decided it; with a metric on all samples.

    Args:
        graph: the graph that the plan is for.
        trial: the answer.
        criteria: samples, references, tolerance and metric.
        known: trials of the same plan by a reading.
        store: where large arrays are kept.
        left: seconds that this may take; a reading for which they will not do is left out.
        on_progress: called with what is being done, how much of it is done, and out of how much.

    Returns:
        The trials by reading, and the number of forward passes.
    """
    samples = criteria.every_sample if criteria.metric else (trial.sample,)
    found: dict[Reading, Trial] = {}
    passes = 0
    slowest, started = 0.0, time.monotonic()
    for done, reading in enumerate(READINGS):
        if reading in known:
            found[reading] = known[reading]
            continue
        on_progress(f"kernels: {reading.value}", done, len(READINGS))
        expected = slowest * (SLOWER if reading is Reading.WORST else 1)
        if time.monotonic() - started + expected > left:
            break
        begun = time.monotonic()
        found[reading] = EmulatedOracle(Emulator(graph, store, reading), criteria).judge(trial.plan, samples).trial
        passes += len(samples)
        slowest = max(slowest, time.monotonic() - begun)
    return found, passes
