"""A model and samples go in, the smallest plan that passes comes out. Knows the order of the stages."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from trt_helper.emulator.emulator import Emulator
from trt_helper.emulator.layer_errors import measure_layers
from trt_helper.inputs.metric import Metric
from trt_helper.inputs.references import references
from trt_helper.inputs.samples import Sample, hold_out
from trt_helper.onnx_model.cost import Shapes, prices
from trt_helper.onnx_model.graph import Graph
from trt_helper.search.error_model import Conflict, ErrorModel, RoundingEffect
from trt_helper.search.journal import Journal
from trt_helper.search.oracle import EmulatedOracle, PerSample, control_error, median_warnings
from trt_helper.search.rounding_effects import conflict, looked_at, rounding_effects
from trt_helper.search.strategy import HOPE, Prediction, Stop, Strategy, Try, drive, smallest
from trt_helper.system.array_store import ArrayStore
from trt_helper.values import (
    Feed,
    IntermediateError,
    LayerReport,
    Plan,
    Rewrite,
    Statistic,
    Tensors,
    Tolerance,
    Trial,
    Verdict,
)


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """The best plan of a size: error over tolerance as foreseen, and as measured where it was tried."""

    pins: int
    predicted: float
    measured: float | None


@dataclass(frozen=True, eq=False)
class Located:
    """The answer, and everything that was measured on the way to it."""

    graph: Graph
    tolerance: Tolerance
    metric: Metric | None  # decided instead of the tolerance
    samples: tuple[str, ...]
    held_out: tuple[str, ...]
    plan: Plan
    minimal: bool
    because: str
    before: Trial  # everything FP16
    after: Trial  # the plan, on all samples
    trials: tuple[Trial, ...]
    layers: tuple[LayerReport, ...]  # under the empty plan
    inferences: int
    seconds: float
    warnings: tuple[str, ...]
    curve: tuple[CurvePoint, ...]
    reasons: tuple[str, ...] = ()  # why each of the trials was made
    per_sample: Mapping[str, PerSample] = field(default_factory=dict)  # 'before' and 'after'; () if not computable
    without_rewrite: Mapping[Rewrite, Trial] = field(default_factory=dict)  # the plan without each cure of the graph
    shapes: Shapes = field(default_factory=dict)  # of every tensor, for the first sample
    runner: str = "emulate"  # what judged the trials
    intermediate_errors: tuple[
        IntermediateError, ...
    ] = ()  # what its engine of the empty plan computed between kernels: no verdict

    @property
    def pins(self) -> tuple[str, ...]:
        """The plan's layers, in FP32 and in BF16, in topological order."""
        return tuple(name for name in self.graph.candidates if name in self.plan.fp32 or name in self.plan.bf16)

    def without(self, name: str) -> Trial | None:
        """The trial of the final plan with this one pin taken out."""
        less = Plan(self.plan.fp32 - {name}, self.plan.bf16 - {name})
        return next((trial for trial in self.trials if trial.plan == less), None)


@dataclass(frozen=True, slots=True)
class Budget:
    """Where to stop although a smaller plan may exist. None is no limit; `seconds` are wall clock."""

    trials: int | None = None
    pins: int | None = None
    seconds: float | None = None


Event = Try | Trial | Stop
Progress = Callable[[str, int, int], None]  # what is being done, how much of it, out of how much


MOST_MISSED = 100.0  # times that a metric is missed; more tells nothing about the size of errors
METRIC_SHARE = 1e-3  # of an output's magnitude: errors below it move no metric
SURPRISE = 5.0  # times that a measured error passes the foreseen one before another explanation is sought
MOST_CONFLICTS = 12
SMALL, SMALL_SHARE = 16, 0.25  # more pins than this, in number and in share of the layers, are not a small set


def quiet(_what: str, _done: int, _total: int) -> None:
    """Report progress to nobody."""


def locate(
    graph: Graph,
    samples: Sequence[Sample],
    tolerance: Tolerance,
    *,
    metric: Metric | None = None,
    budget: Budget = Budget(),
    journal: Journal | None = None,
    every_layer: bool = True,
    expected: Sequence[Tensors] | None = None,
    oracle: Callable[..., Any] | None = None,
    runner: str = "emulate",
    store: ArrayStore | None = None,
    on_event: Callable[[Event], None] = lambda _event: None,
    on_warning: Callable[[str], None] = lambda _text: None,
    on_progress: Progress = quiet,
) -> Located:
    """Find the smallest plan that passes on every sample.

    With four or more samples a quarter is held out of the search. It is asked only about plans that pass on
    the others, at last about the answer; as soon as it disagrees, the search goes on with all samples. A
    `metric` decides instead of the tolerance. When the `budget` is spent the best plan so far is the answer.
    An open `journal` lets an interrupted search go on. `every_layer` asks for the errors of every layer also
    when none needs FP32. `expected` are the FP32 outputs where they are known. `oracle` makes what judges in the
    emulator's place (`RunnerOracle`, `Cluster.oracle`), `runner` is whose figures those are. `store` holds what is
    kept for the whole search. Warnings come when they are known, and again in the result. Raises ControlError when
    the model in FP32 does not pass: then precision is not the cause.
    """
    listener = _Listener(on_event, on_warning, on_progress, [])
    search = _Search(graph, samples, tolerance, metric, budget, journal, listener, oracle, expected, store)
    stop, plan = search.run(smallest(graph.candidates, search.prediction))
    if budget.pins is not None and len(plan) > budget.pins:
        stop, plan = search.best_within(budget.pins, len(plan))
    after = search.judge_all(plan)
    for text in median_warnings(after, tolerance) if metric is None else ():
        listener.warn(text)
    if unjudged := [trial.why for trial in search.trials if trial.verdict is Verdict.UNRESOLVED]:
        of = f"{len(unjudged)} of {len(search.trials)} plans"
        listener.warn(f"{of} could not be judged and count as failed, so fewer pins may do: {unjudged[-1]}")
    before = search.judge_all(Plan())
    if runner != "emulate" and before.verdict is Verdict.FAIL and search.emulated(Plan()).verdict is Verdict.PASS:
        listener.warn("emulated FP16 is accurate: a fusion or a kernel is the cause, not precision; pins may not help")
    return Located(
        graph=graph,
        tolerance=tolerance,
        metric=metric,
        samples=tuple(sample.source for sample in samples),
        held_out=tuple(sample.source for sample in search.held_out),
        plan=plan,
        minimal=stop.minimal,
        because=stop.because,
        before=before,
        after=after,
        trials=tuple(search.trials),
        shapes=search.shapes(),
        per_sample={"before": search.per_sample(Plan()), "after": search.per_sample(plan)},
        layers=search.measure_layers() if plan.fp32 or every_layer else (),
        intermediate_errors=search.intermediate_errors(before)
        if runner != "emulate" and before.verdict is Verdict.FAIL
        else (),
        inferences=search.inferences,
        seconds=time.monotonic() - search.started,
        warnings=tuple(listener.warnings),
        curve=search.curve(),
        reasons=tuple(search.reasons),
        runner=runner,
    )


@dataclass(frozen=True, slots=True)
class _Listener:
    """Whoever wants to hear how the search goes on."""

    event: Callable[[Event], None]
    warning: Callable[[str], None]
    progress: Progress
    warnings: list[str]

    def warn(self, text: str) -> None:
        self.warnings.append(text)
        self.warning(text)


class _Search:
    """Owns the emulator and counts what it is asked."""

    def __init__(
        self,
        graph: Graph,
        samples: Sequence[Sample],
        tolerance: Tolerance,
        metric: Metric | None,
        budget: Budget,
        journal: Journal | None,
        listener: _Listener,
        oracle: Callable[..., Any] | None,
        expected: Sequence[Tensors] | None,
        store: ArrayStore | None,
    ) -> None:
        self.started = time.monotonic()
        self.graph = graph
        self.samples = samples
        self.tolerance = tolerance
        self.metric = metric
        self.budget = budget
        self.journal = journal
        self.listener = listener
        listener.progress("FP32 reference", 0, 1)
        self.expected = references(graph, samples, store) if expected is None else expected
        self.emulator = Emulator(graph, store)
        how: Any = {"samples": samples, "references": self.expected, "tolerance": tolerance, "metric": metric}
        self._emulated = EmulatedOracle(self.emulator, **how)
        self._oracle: Any = oracle(graph, **how) if oracle else self._emulated
        self.searched, self.held_out = hold_out(samples)
        self.evidence: Prediction | None = None
        self.trials: list[Trial] = []
        self.reasons: list[str] = []
        self.inferences = len(samples) if expected is None else 0
        self._feeds: list[Feed] = []  # what the evidence is taken from
        self._rounding_effects: list[RoundingEffect] = []
        self._conflicts: list[Conflict] = []
        self._prices: dict[str, float] = {}
        self._shapes: Shapes = {}
        self._speculative: Callable[[], Iterable[Plan]] = tuple
        self._judged: dict[tuple[tuple[int, ...], Plan], Trial] = {}
        self._per_sample: dict[Plan, PerSample] = {}

    def run(self, strategy: Strategy) -> tuple[Stop, Plan]:
        """Search with the samples that are not held out. Raises ControlError when even FP32 does not pass on them."""
        best: Plan | None = None  # until everything pinned has passed, there is nothing to stop with
        for event in drive(strategy, self._try):
            self.listener.event(event)
            if isinstance(event, Try):
                self.reasons.append(event.because)
                self._speculative = event.speculative
            if isinstance(event, Trial):
                self.trials.append(event)
                if event.verdict is Verdict.PASS and (best is None or len(event.plan) < len(best)):
                    best = event.plan
                if best is not None and (spent := self._spent()):
                    return Stop(best, minimal=False, because=spent), best
            if isinstance(event, Stop):
                if event.best is None:
                    raise control_error(self.trials[-1], self.searched, self.tolerance)
                return event, event.best
        raise AssertionError("a strategy ends with Stop")

    def _try(self, plan: Plan) -> Trial:
        """Judge a plan for the search. It passes when the held-out samples agree; else they are held out no longer."""
        trial = self._judge(plan, self.searched, self._speculative)
        if trial.verdict is not Verdict.PASS or not self.held_out:
            return trial
        everywhere = self.judge_all(plan)
        if everywhere.verdict is not Verdict.PASS:
            self.listener.warn(
                "the held-out samples disagreed: the search goes on with all samples, none is held out now"
            )
            self.searched, self.held_out = list(self.samples), []
            self.evidence, self._conflicts = None, []
        return everywhere

    def _spent(self) -> str:
        """What part of the budget is used up, in words; empty while there is some left."""
        if self.budget.trials is not None and len(self.trials) >= self.budget.trials:
            return f"the best plan after {len(self.trials)} trials, as many as were allowed"
        if self.budget.seconds is not None and time.monotonic() - self.started >= self.budget.seconds:
            return f"the best plan after {self.budget.seconds:g} s, as long as was allowed"
        return ""

    def best_within(self, pins: int, enough: int) -> tuple[Stop, Plan]:
        """The plan of at most `pins` pins with the smallest error, of those tried and the foreseen one."""
        if self.evidence is not None:
            plan = Plan.of(self.evidence.order[:pins])
            if all(trial.plan != plan for trial in self.trials):
                self.reasons.append(f"the first {pins} pins in the foreseen order")
                self.trials.append(self._judge(plan, self.searched))
        best = min((t for t in self.trials if len(t.plan) <= pins), key=lambda t: (t.error_ratio, len(t.plan))).plan
        because = f"the best of those tried with at most {pins} pins; {enough} pins are enough"
        return Stop(best, minimal=False, because=because), best

    def curve(self) -> tuple[CurvePoint, ...]:
        """From the number of pins to the error, at up to 65 sizes."""
        if self.evidence is None:
            return ()
        measured: dict[int, float] = {}
        for trial in self.trials:
            size = len(trial.plan)
            measured[size] = min(measured.get(size, float("inf")), trial.error_ratio)
        errors = self.evidence.errors
        sizes = {round(step * (len(errors) - 1) / 64) for step in range(65)} | measured.keys()
        return tuple(CurvePoint(k, errors[k], measured.get(k)) for k in sorted(sizes))

    def measure_layers(self) -> tuple[LayerReport, ...]:
        """What FP16 does to every layer, over all samples."""
        done, total = count(1), len(self.samples) * len(self.graph.layers)
        self.inferences += 3 * len(self.samples)  # reference, accumulated and isolated
        feeds = [sample.feed for sample in self.samples]
        told = self.listener.progress
        return measure_layers(
            self.emulator, Plan(), feeds, self.tolerance, lambda: told("every layer", next(done), total)
        )

    def judge_all(self, plan: Plan) -> Trial:
        """Judge a plan on every sample, held out or not."""
        return self._judge(plan, self.samples)

    def emulated(self, plan: Plan) -> Trial:
        """What the emulator says of a plan on every sample, whatever else judges."""
        self.inferences += len(self.samples)
        return self._emulated.judge(plan)

    def intermediate_errors(self, failed: Trial) -> tuple[IntermediateError, ...]:
        """What the engine of a plan that failed computed between its kernels, if that can be seen here."""
        look = getattr(self._oracle.on([failed.sample]), "inside", None)
        return look(failed.plan, self.emulator, self.listener.warn) if look else ()

    def _judge(self, plan: Plan, samples: Sequence[Sample], speculative: Callable[[], Iterable[Plan]] = tuple) -> Trial:
        """Judge a plan on `samples`; what was judged before is remembered. `ahead` is what may be asked next."""
        which = [index for index, sample in enumerate(self.samples) if sample in samples]
        key = (tuple(which), plan)
        if key not in self._judged:
            oracle = self._oracle.on(which)
            if hasattr(oracle, "ahead"):  # it judges several plans side by side
                oracle.speculative = speculative
            judge = self.journal.remember(oracle.judge, label(self.graph, which)) if self.journal else oracle.judge
            self._judged[key] = judge(plan)
            self.inferences += oracle.inferences
            if len(which) == len(self.samples):
                self._per_sample.update(oracle.per_sample)
        return self._judged[key]

    def shapes(self) -> Shapes:
        """The shape of every tensor for the first sample."""
        if not self._shapes:
            self._shapes = self.emulator.shapes(self.samples[0].feed)
            self.inferences += 1
        return self._shapes

    def per_sample(self, plan: Plan) -> PerSample:
        """The errors of a plan on every sample; measured once more where the journal knew only the worst."""
        if plan not in self._per_sample and not self.judge_all(plan).why:
            oracle = self._oracle.on(range(len(self.samples)))
            oracle.judge(plan)
            self.inferences += oracle.inferences
            self._per_sample.update(oracle.per_sample)
        return self._per_sample.get(plan, ())

    def prediction(self, trial: Trial) -> Prediction:
        """What the evidence says after `trial`: what each rounding does, and what those do that surprised."""
        if self.evidence is None:
            self._feeds = [self.searched[i].feed for i in looked_at(len(self.searched), trial.sample)]
            self._rounding_effects, passes = rounding_effects(
                self.emulator,
                self._feeds,
                self._watched_tolerance(),
                lambda done, total: self.listener.progress("what each rounding does", done, total),
            )
            self.inferences += passes
            self._prices = prices(self.graph, self.shapes())
            self.evidence = self._predict()
            self._warn_when_spread(self.evidence, self._judge(Plan(), self.searched))
        if trial.verdict is Verdict.PASS or self.metric is not None:
            return self.evidence
        expected = self.evidence.error(trial.plan)
        if trial.error_ratio > SURPRISE * max(expected, 1.0) and len(self._conflicts) < MOST_CONFLICTS:
            worst = self.searched[trial.sample].feed
            found, passes = conflict(self.emulator, self._feeds, worst, self.tolerance, trial, expected)
            self.inferences += passes
            if found is not None:
                self._conflicts.append(found)
                self.evidence = self._predict()
        return self.evidence

    def _predict(self) -> Prediction:
        layers, stat = self.graph.candidates, self.tolerance.stat
        return ErrorModel(layers, self._rounding_effects, stat, self._conflicts, self._prices).prediction()

    def _watched_tolerance(self) -> Tolerance:
        """The tolerance that the roundings are held against; for a metric, one that FP16 misses as far."""
        if self.metric is None:
            return self.tolerance
        nothing = self._judge(Plan(), self.searched)
        missed = min(max(nothing.error_ratio, 1.0), MOST_MISSED)
        finite = {e.name: e.max if not e.non_finite else 0.0 for e in nothing.outputs}
        allowed = {e.name: max(finite[e.name] / missed, e.reference_max * METRIC_SHARE) for e in nothing.outputs}
        return Tolerance(0.0, 0.0, Statistic.MAX, {name: (atol or 1.0, 0.0) for name, atol in allowed.items()})

    def _warn_when_spread(self, evidence: Prediction, nothing: Trial) -> None:
        """Say early that no small set exists, what FP16 reaches, and what it would need."""
        count = len(evidence.order)
        enough = next(k for k, error in enumerate(evidence.errors) if error <= HOPE or k == count)
        if enough <= max(SMALL, SMALL_SHARE * count) or nothing.error_ratio == float("inf"):
            return
        tenth = evidence.errors[round(count / 10)]
        self.listener.warn(
            f"rounding is spread over the model: some {enough} of {count} layers would have to stay in FP32. "
            f"FP16 alone is {nothing.error_ratio:.2g} times the tolerance off, with a tenth of the layers in FP32 "
            f"about {tenth:.2g} times; loosen the tolerance that much, or set --max-pins"
        )


def label(graph: Graph, samples: Sequence[int]) -> str:
    """What a trial in the journal was judged on: samples by their number, and the cures of the graph."""
    return ",".join(map(str, samples)) + "".join(f" {rewrite.kind}:{rewrite.name}" for rewrite in graph.rewrites)
