"""`locate`: the smallest plan that passes on every sample."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import replace

from trt_helper.inputs.metric import Metric
from trt_helper.inputs.references import references as reference_outputs
from trt_helper.inputs.samples import Sample
from trt_helper.onnx_model.cost import estimate
from trt_helper.onnx_model.graph import Graph
from trt_helper.search.budget import UNLIMITED, Budget
from trt_helper.search.graph_search import Event, Listener, SearchTask, search_graph
from trt_helper.search.journal import Journal
from trt_helper.search.located import Located
from trt_helper.search.oracle import Criteria, OracleFactory
from trt_helper.search.saved import SavedSearch
from trt_helper.search.with_rewrites import search_with_rewrites
from trt_helper.system.array_store import ArrayStore
from trt_helper.values import Tensors, Tolerance, Trial

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
        rewrites: what may be done besides pins, of `values.REWRITE_KINDS`; without "pins" nothing is pinned.
        metric: decides instead of the tolerance.
        budget: where to stop with the best plan so far.
        saved: keeps that plan on disk, and a journal from which an interrupted search is resumed.
        every_layer: measure the errors of every layer also when none is pinned.
        references: the FP32 outputs of each sample, where they are known.
        oracle: makes what judges in place of the emulator (`runners.oracle`, `runners.ray_cluster`).
        runner: what that oracle computes with.
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
    started = time.monotonic()

    def listen(searched: Graph, event: Event) -> None:
        if saved and isinstance(event, Trial):
            saved.offer(searched, event)
        on_event(event)

    opened = saved.journal(graph, samples, tolerance, metric) if saved else nullcontext(Journal())
    with opened as journal:
        if journal.verdicts:
            on_warning(f"going on with an interrupted search: {journal.verdicts} trials are known")
        on_progress("FP32 reference", 0, 1)
        expected = reference_outputs(graph, samples, store) if references is None else references
        criteria = Criteria(samples, expected, tolerance, metric)
        listener = Listener(listen, on_warning, on_progress, on_note)
        task = SearchTask(criteria, journal, listener, oracle, runner, budget, every_layer, store, started)
        only_pins = set(rewrites) == ONLY_PINS
        located = search_graph(graph, task) if only_pins else search_with_rewrites(graph, task, rewrites)
        located = replace(
            located,
            inferences=located.inferences + (len(samples) if references is None else 0),
            seconds=time.monotonic() - started,
            estimate=estimate(located.graph, located.plan, located.shapes),
        )
        if saved:
            saved.finish(located, journal)
        return located
