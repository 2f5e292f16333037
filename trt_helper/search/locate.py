"""`locate`: the smallest plan that passes on every sample."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import replace

from trt_helper.emulator.emulator import Emulator
from trt_helper.emulator.partial_sums import PartialSum, partial_sums
from trt_helper.inputs.metric import Metric
from trt_helper.inputs.references import references as reference_outputs
from trt_helper.inputs.sample import Sample
from trt_helper.onnx_model.cost import estimate
from trt_helper.onnx_model.graph import Graph, require_half
from trt_helper.onnx_model.sigmoids import counts_relatively
from trt_helper.search.budget import UNLIMITED, Budget
from trt_helper.search.graph_search import Event, Listener, SearchTask, search_graph
from trt_helper.search.journal import Journal
from trt_helper.search.located import Located
from trt_helper.search.oracle import Criteria, OracleFactory
from trt_helper.search.readings import by_readings
from trt_helper.search.saved import SavedSearch
from trt_helper.search.with_rewrites import search_with_rewrites
from trt_helper.system.array_store import ArrayStore
from trt_helper.values import READINGS, Plan, Reading, Tensors, Tolerance, Trial

ONLY_PINS = frozenset(("pins",))


def locate(
    graph: Graph,
    samples: Sequence[Sample],
    tolerance: Tolerance,
    *,
    rewrites: Collection[str] = ONLY_PINS,
    metric: Metric | None = None,
    budget: Budget = UNLIMITED,
    saved: SavedSearch | None = None,
    every_layer: bool = True,
    references: Sequence[Tensors] | None = None,
    oracle: OracleFactory | None = None,
    runner: str = "emulate",
    kernels: Reading = Reading.TYPICAL,
    robust: bool = False,
    margin: float = 1.0,
    store: ArrayStore | None = None,
    on_event: Callable[[Event], None] = lambda _event: None,
    on_warning: Callable[[str], None] = lambda _text: None,
    on_progress: Callable[[str, int, int], None] = lambda _what, _done, _total: None,
    on_note: Callable[[str], None] = lambda _text: None,
) -> Located:
    """Find the smallest plan that passes on every sample.

    With four or more samples a quarter is held out of the search. They judge only plans that pass on the others. As
    soon as they disagree, the search goes on with all samples.

    Args:
        graph: the model.
        samples: at least one; the worst decides.
        tolerance: the errors that are allowed.
        rewrites: what may be done besides pins, of `values.REWRITE_KINDS`; without "pins" and "bf16" nothing is pinned.
        metric: decides instead of the tolerance.
        budget: where to stop with the best plan so far.
        saved: keeps that plan on disk, and a journal from which an interrupted search is resumed.
        every_layer: measure the errors of every layer also when none is pinned.
        references: the FP32 outputs of each sample, where they are known.
        oracle: makes what judges in place of the emulator (`runners.oracle`, `runners.ray_cluster`).
        runner: what that oracle computes with.
        kernels: what kernels are taken to compute in half precision, where plans are emulated.
        robust: find a plan that passes by every reading of what kernels compute.
        margin: the part of the tolerance that the plan may use, above 0 and at most 1; not with a metric.
        store: where large arrays are kept.
        on_event: called with each decision (Try), each trial, and the end (Stop).
        on_warning: called with each warning when it is known; the result has all of them.
        on_progress: called with what is being done, how much of it is done, and out of how much.
        on_note: called once with what the search will take, where that is more than some seconds.

    Raises:
        ControlError: the model in FP32 does not pass, so precision is not the cause.
        SearchInterrupted: Ctrl-C, where the search is `saved`: the best plan is on disk.
        TrtHelperError: what an oracle, a metric or the disk raises.
    """
    require_half(graph)
    started = time.monotonic()
    allowed = tolerance if margin == 1 else tolerance.times(margin)

    def listen(searched: Graph, event: Event) -> None:
        if saved and isinstance(event, Trial):
            saved.offer(searched, event)
        on_event(event)

    opened = saved.journal(graph, samples, tolerance, metric) if saved else nullcontext(Journal())
    with opened as journal:
        if journal.verdicts:
            on_warning(f"going on with an interrupted search: {journal.verdicts} trials are known")
        if inexact := [node.name for node in graph.model.graph if counts_relatively(node)]:
            on_warning(
                f"the reference computes {inexact[0]!r} as exp(-softplus(-x)): ONNX Runtime's Sigmoid is wrong by "
                "1e-7, which counts where its logarithm is taken or something is divided by it"
            )
        on_progress("FP32 reference", 0, 1)
        expected = reference_outputs(graph, samples, store) if references is None else references
        criteria = Criteria(samples, expected, allowed, metric)
        listener = Listener(listen, on_warning, on_progress, on_note)
        readings = READINGS if robust else (kernels,)
        task = SearchTask(criteria, journal, listener, oracle, runner, readings, budget, every_layer, store, started)

        def search(task: SearchTask) -> Located:
            if set(rewrites) == ONLY_PINS:
                return search_graph(graph, task)
            return search_with_rewrites(graph, task, rewrites)

        whole = replace(criteria, tolerance=tolerance)
        passes = len(samples) if references is None else 0
        located = search(task)
        if margin < 1:
            located, judged = _by_the_whole_tolerance(located, task, whole, margin)
            passes += judged
        by_one = None
        if robust and not budget.spent_seconds(started):  # only to say what robustness costs: nothing of it is saved
            unheard = Listener(lambda _graph, _event: None, lambda _text: None, on_progress, lambda _text: None)
            alone = replace(task, journal=Journal(), listener=unheard, oracle=None, readings=(kernels,))
            by_one = search(replace(alone, every_layer=False))
            passes += by_one.inferences
        left = math.inf if budget.seconds is None else budget.seconds - (time.monotonic() - started)
        known = {kernels: located.after} if runner == "emulate" and not robust else {}
        by_reading, judged = by_readings(located.graph, located.after, whole, known, store, left, on_progress)
        complete = len(by_reading) == len(READINGS)
        located = replace(
            located,
            partial_sums=_sums(located, samples, store) if complete else (),
            inferences=located.inferences + passes + judged + (2 if complete else 0),
            seconds=time.monotonic() - started,
            estimate=estimate(located.graph, located.plan, located.shapes),
            by_reading=by_reading,
            pins_by_one=len(by_one.plan) if by_one and by_one.minimal else None,
        )
        if saved:
            saved.finish(located, journal)
        return located


def _sums(located: Located, samples: Sequence[Sample], store: ArrayStore | None) -> tuple[PartialSum, ...]:
    """The layers whose sums only kernels get right that accumulate in FP32, on the sample that decides."""
    emulator = Emulator(located.graph, store)
    return tuple(partial_sums(emulator, located.plan.kept, samples[located.after.sample].feed))


def _by_the_whole_tolerance(
    located: Located, task: SearchTask, criteria: Criteria, margin: float
) -> tuple[Located, int]:
    """The answer of a search within a part of the tolerance, judged by all of it; and the forward passes."""
    oracle, samples = task.make_oracle(located.graph, criteria), criteria.every_sample
    before, after = (oracle.judge(plan, samples) for plan in (Plan(), located.plan))

    judged = replace(
        located,
        tolerance=criteria.tolerance,
        margin=margin,
        before=before.trial,
        after=after.trial,
        per_sample={"before": before.per_sample, "after": after.per_sample},
        trials=tuple(replace(trial, error_ratio=margin * trial.error_ratio) for trial in located.trials),
        curve=tuple(
            replace(p, predicted=margin * p.predicted, measured=None if p.measured is None else margin * p.measured)
            for p in located.curve
        ),
    )
    return judged, before.inferences + after.inferences
