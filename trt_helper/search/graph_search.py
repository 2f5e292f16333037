"""One search over one graph: the strategy's plans go to the judge until the strategy or the budget says stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count

from trt_helper.emulator.emulator import Emulator
from trt_helper.emulator.layer_errors import measure_layers
from trt_helper.onnx_model.graph import Graph
from trt_helper.onnx_model.rewrites import find
from trt_helper.search.budget import UNLIMITED, Budget
from trt_helper.search.diagnosis import SENTENCES, Kind, diagnose
from trt_helper.search.journal import Journal
from trt_helper.search.judge import PlanJudge
from trt_helper.search.located import CurvePoint, Located
from trt_helper.search.oracle import (
    Criteria,
    EmulatedOracle,
    Judgement,
    Oracle,
    OracleFactory,
    RobustOracle,
    control_error,
    emulated,
    median_warnings,
)
from trt_helper.search.predictor import ErrorPredictor
from trt_helper.search.strategy import Prediction, Stop, Strategy, Try, drive, smallest
from trt_helper.system.array_store import ArrayStore
from trt_helper.values import IntermediateError, LayerReport, Plan, Reading, Trial, Verdict

Event = Try | Trial | Stop
CURVE_STEPS = 64  # sizes of plans that the curve shows, besides those that were tried


@dataclass(frozen=True)
class Listener:
    """Callbacks for a caller that follows a search.

    Attributes:
        event: called with each decision, each trial and the end, and the graph that is searched.
        warning: called with each warning when it is known.
        progress: called with what is being done, how much of it is done, and out of how much.
        note: called with what the search will take, before it begins, where that is more than some seconds.
        warnings: the warnings so far.
    """

    event: Callable[[Graph, Event], None]
    warning: Callable[[str], None]
    progress: Callable[[str, int, int], None]
    note: Callable[[str], None]
    warnings: list[str] = field(default_factory=list)

    def warn(self, text: str) -> None:
        """Give a warning, and keep it for the result."""
        self.warnings.append(text)
        self.warning(text)


@dataclass(frozen=True, eq=False)
class SearchTask:
    """What is the same for each graph that is searched.

    Attributes:
        criteria: samples, references, tolerance and metric.
        journal: where verdicts are remembered.
        listener: who follows the search.
        oracle: makes the oracle of a graph; None for the emulator.
        runner: what the oracle computes with: 'emulate', or the name of a runner.
        readings: what kernels are taken to compute, where plans are emulated; a plan has to pass by each.
        budget: where to stop.
        every_layer: measure the errors of every layer also when none is pinned.
        store: where large arrays are kept; None for a new one.
        started: when the whole search began, on `time.monotonic`'s clock.
    """

    criteria: Criteria
    journal: Journal
    listener: Listener
    oracle: OracleFactory | None = None
    runner: str = "emulate"
    readings: Sequence[Reading] = (Reading.TYPICAL,)
    budget: Budget = UNLIMITED
    every_layer: bool = True
    store: ArrayStore | None = None
    started: float = field(default_factory=time.monotonic)

    def make_oracle(self, graph: Graph, criteria: Criteria) -> Oracle:
        """Make an oracle of its own for a graph."""
        return self.oracle(graph, criteria) if self.oracle else emulated(graph, criteria, readings=self.readings)


def search_graph(graph: Graph, task: SearchTask) -> Located:
    """Find the smallest plan for one graph.

    Raises:
        ControlError: the plan that pins every layer does not pass, so precision is not the cause.
        DisagreementError: repeats of that plan disagree.
    """
    criteria, listener = task.criteria, task.listener
    emulators = [Emulator(graph, task.store, reading) for reading in task.readings]
    oracles = [EmulatedOracle(one, criteria) for one in emulators]
    emulator, alone = emulators[-1], oracles[0]  # the last reading is the least exact: it predicts
    oracle: Oracle = alone if len(oracles) == 1 else RobustOracle(oracles)
    if task.oracle:
        oracle = task.oracle(graph, criteria)
    judge = PlanJudge(graph, oracle, criteria, task.journal, listener.warn, one_sample_first=task.runner == "emulate")
    predictor = ErrorPredictor(emulator, criteria, judge, listener.warn, partial(_progress, task), listener.note)
    stop = _run(smallest(graph.candidates, predictor.predict), graph, judge, task)
    if stop.best is None:
        control = next(reversed(judge.trials.values()))
        samples = [criteria.samples[index] for index in judge.searched]
        logs = [one for one in find(graph.model.graph, ["logs"]) if graph.nodes[one.name].op_type == "LogSoftmax"]
        raise control_error(control, samples, criteria.tolerance, logs)
    plan = stop.best
    if task.budget.pins is not None and len(plan) > task.budget.pins:
        stop, plan = _best_within(task.budget.pins, len(plan), judge, predictor.prediction)
    after = judge.on_every_sample(plan)
    before = judge.on_every_sample(Plan())
    failed_on_runner = task.runner != "emulate" and before.verdict is Verdict.FAIL
    _warn(judge, after, task)
    checked, diagnosis = 0, None
    if failed_on_runner:
        by_reading = _by_reading(graph, alone, task)
        checked = sum(judgement.inferences for judgement in by_reading.values())
        trials = {reading: judgement.trial for reading, judgement in by_reading.items()}
        diagnosis = diagnose(before, trials, criteria.tolerance)
        if diagnosis is not Kind.PRECISION:
            listener.warn(f"what FP16 gets wrong on {task.runner} is {SENTENCES[diagnosis]}")
    shapes = predictor.shapes()
    per_sample = {"before": judge.per_sample(Plan()), "after": judge.per_sample(plan)}
    layers = _layers(emulator, task) if plan.fp32 or task.every_layer else ()
    intermediate: tuple[IntermediateError, ...] = ()
    if failed_on_runner:
        intermediate = oracle.intermediate_errors(Plan(), before.sample, emulator, listener.warn)
    passes_of_layers = 3 * len(criteria.samples) if layers else 0  # reference, accumulated and isolated
    return Located(
        graph=graph,
        tolerance=criteria.tolerance,
        metric=criteria.metric,
        samples=tuple(sample.source for sample in criteria.samples),
        held_out=tuple(criteria.samples[index].source for index in judge.held_out),
        plan=plan,
        minimal=stop.minimal,
        because=stop.because,
        before=before,
        after=after,
        trials=tuple(judge.trials.values()),
        layers=layers,
        inferences=judge.inferences + predictor.inferences + passes_of_layers + checked,
        seconds=time.monotonic() - task.started,
        warnings=tuple(listener.warnings),
        curve=tuple(_curve(judge, predictor.prediction)),
        per_sample=per_sample,
        shapes=shapes,
        runner=task.runner,
        intermediate_errors=intermediate,
        diagnosis=diagnosis,
    )


def _run(strategy: Strategy, graph: Graph, judge: PlanJudge, task: SearchTask) -> Stop:
    """Drive a strategy until it stops or the budget is spent; at least the plan that pins everything is tried."""
    try:
        for event in drive(strategy, judge):
            task.listener.event(graph, event)
            if isinstance(event, Stop):
                return event
            best = judge.best
            if isinstance(event, Trial) and best and (spent := task.budget.spent(len(judge.trials), task.started)):
                return Stop(best.plan, minimal=False, because=spent)
    except _BudgetSpentError as error:
        if judge.best is None:
            raise AssertionError("roundings are measured after the plan that pins everything has passed") from error
        return Stop(judge.best.plan, minimal=False, because=str(error))
    raise AssertionError("a strategy ends with Stop")


class _BudgetSpentError(Exception):
    """The time limit was reached between two trials."""


def _best_within(pins: int, enough: int, judge: PlanJudge, prediction: Prediction | None) -> tuple[Stop, Plan]:
    """The plan of at most `pins` pins with the smallest error, of those tried and the predicted one."""
    if prediction is not None and judge.known(prediction.first(pins)) is None:
        judge.judge_searched(Try(prediction.first(pins), f"the first {pins} pins in the foreseen order"))
    small = (trial for trial in judge.trials.values() if len(trial.plan) <= pins)
    best = min(small, key=lambda trial: (trial.error_ratio, len(trial.plan))).plan
    because = f"the best of those tried with at most {pins} pins; {enough} pins are enough"
    return Stop(best, minimal=False, because=because), best


def _by_reading(graph: Graph, typical: EmulatedOracle, task: SearchTask) -> dict[Reading, Judgement]:
    """Everything in FP16 on the emulator: as kernels were read, and as they are at worst."""
    worst = EmulatedOracle(Emulator(graph, task.store, Reading.WORST), task.criteria)
    oracles = {Reading.TYPICAL: typical, Reading.WORST: worst}
    return {reading: oracle.judge(Plan(), task.criteria.every_sample) for reading, oracle in oracles.items()}


def _warn(judge: PlanJudge, after: Trial, task: SearchTask) -> None:
    """Say what makes the answer less certain than it looks."""
    if task.criteria.metric is None:
        for text in median_warnings(after, task.criteria.tolerance):
            task.listener.warn(text)
    if unjudged := [trial.why for trial in judge.trials.values() if trial.verdict is Verdict.UNRESOLVED]:
        of = f"{len(unjudged)} of {len(judge.trials)} plans"
        task.listener.warn(f"{of} could not be judged and count as failed, so fewer pins may do: {unjudged[-1]}")


def _layers(emulator: Emulator, task: SearchTask) -> tuple[LayerReport, ...]:
    """The errors of every layer when everything is FP16, over all samples; none where the time limit is reached."""
    samples, tolerance = task.criteria.samples, task.criteria.tolerance
    done, total = count(1), len(samples) * len(emulator.graph.layers)
    try:
        return measure_layers(
            emulator,
            Plan(),
            [sample.feed for sample in samples],
            tolerance,
            lambda: _progress(task, "every layer", next(done), total),
        )
    except _BudgetSpentError:
        task.listener.warn("the errors of single layers were not measured: the time limit was reached before")
        return ()


def _progress(task: SearchTask, what: str, done: int, total: int) -> None:
    """Show how much is done of what takes long between two trials, and end it where the time limit is reached."""
    task.listener.progress(what, done, total)
    if spent := task.budget.spent_seconds(task.started):
        raise _BudgetSpentError(spent)


def _curve(judge: PlanJudge, prediction: Prediction | None) -> Iterator[CurvePoint]:
    """From the number of pins to the error ratio, at up to 65 sizes and at those that were tried."""
    if prediction is None:
        return
    measured: dict[int, float] = {}
    for trial in judge.trials.values():
        size = len(trial.plan)
        measured[size] = min(measured.get(size, float("inf")), trial.error_ratio)
    errors = prediction.errors
    sizes = {round(step * (len(errors) - 1) / CURVE_STEPS) for step in range(CURVE_STEPS + 1)} | measured.keys()
    yield from (CurvePoint(k, errors[k], measured.get(k)) for k in sorted(sizes))
