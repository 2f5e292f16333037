"""The predictor of a search: measures rounding effects when they are first needed, and conflicts after surprises."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from trt_helper.emulator.emulator import Emulator
from trt_helper.emulator.kernels import EmulationError
from trt_helper.onnx_model.cost import Shapes, pin_costs
from trt_helper.search import tuning
from trt_helper.search.conflicts import Roundings, conflict
from trt_helper.search.error_model import Conflict, ErrorModel, RoundingEffect
from trt_helper.search.judge import PlanJudge
from trt_helper.search.oracle import Criteria
from trt_helper.search.probe import Probe
from trt_helper.search.rounding_effects import rounding_effects
from trt_helper.search.strategy import Prediction
from trt_helper.values import Array, LayerName, Plan, Statistic, Tolerance, Trial, Verdict


@dataclass(eq=False, slots=True)
class _Sample:
    """A sample that was looked at: its rounding effects, one for each rounded value, and the errors of conflicts."""

    probe: Probe
    effects: Sequence[RoundingEffect]
    conflicts: dict[Roundings, Array] = field(default_factory=dict)

    def errors(self, found: Roundings) -> Array:
        """The errors when these round together, shape (watched figures + 1,)."""
        if found not in self.conflicts:
            self.conflicts[found] = self.probe.errors(found.places)
        return self.conflicts[found]


class ErrorPredictor:
    """Predicts the errors of plans of one graph. It orders the search and decides nothing.

    Attributes:
        prediction: the current prediction; None before the first one.
    """

    def __init__(
        self,
        emulator: Emulator,
        criteria: Criteria,
        judge: PlanJudge,
        on_warning: Callable[[str], None],
        on_progress: Callable[[str, int, int], None],
        on_note: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self.prediction: Prediction | None = None
        self._emulator = emulator
        self._criteria = criteria
        self._judge = judge
        self._on_warning = on_warning
        self._on_progress = on_progress
        self._on_note = on_note
        self._tolerance = criteria.tolerance
        self._looked_at: dict[int, _Sample] = {}  # by index of the sample, in the order in which they were measured
        self._conflicts: list[Roundings] = []
        self._costs: dict[LayerName, float] = {}
        self._shapes: Shapes = {}

    @property
    def inferences(self) -> int:
        """Forward passes of the whole model so far."""
        return math.ceil(self._passes) + bool(self._shapes)

    @property
    def _passes(self) -> float:
        return sum(sample.probe.passes for sample in self._looked_at.values())

    def shapes(self) -> Shapes:
        """The shape of every tensor for the first sample."""
        if not self._shapes:
            self._shapes = self._emulator.shapes(self._criteria.samples[0].feed)
        return self._shapes

    def predict(self, trial: Trial) -> Prediction:
        """The prediction after a trial; a new one where the trial was a surprise.

        A trial is a surprise when its plan failed with an error far above the predicted one. A plan that could not be
        judged has no error, and is none.
        """
        if self.prediction is None:
            self.prediction = self._first_prediction(trial)
        if trial.verdict is not Verdict.FAIL or self._criteria.metric is not None:
            return self.prediction
        trial = replace(trial, error_ratio=min(trial.error_ratio, tuning.ERROR_CAP))
        expected = self.prediction.error(trial.plan)
        if trial.error_ratio > max(expected, 1.0) and self._explain(trial, expected):
            self.prediction = self._predict()
        return self.prediction

    def _first_prediction(self, trial: Trial) -> Prediction:
        """Measure the rounding effects on the sample that decided `trial`."""
        nothing = self._judge.on(self._judge.searched, Plan())
        if self._criteria.metric is not None:
            self._tolerance = _tolerance_of_metric(nothing)
        self._look_at(self._judge.searched[trial.sample])
        self._costs = pin_costs(self._emulator.graph, self.shapes())
        prediction = self._predict()
        self._warn_of_large_set(prediction, nothing)
        return prediction

    def _look_at(self, index: int) -> None:
        """Measure the rounding effects on one more sample."""
        feed = self._criteria.samples[index].feed
        try:
            found = self._emulator.run(Plan(), feed)
        except EmulationError:
            found = {}  # as wrong as can be
        watched, most = tuning.WATCHED, tuning.MOST_PASSES
        if self._looked_at:
            watched, most = tuning.WATCHED_LATER, tuning.MOST_PASSES_LATER
        started = time.monotonic()
        probe = Probe(self._emulator, feed, found, self._tolerance, watched)
        probe.passes += 1  # the plan that failed
        if not self._looked_at:
            self._say_what_it_takes(time.monotonic() - started)
        on_progress = partial(self._on_progress, "what each rounding does")
        suspects = {
            effect.value
            for sample in self._looked_at.values()
            for effect in sample.effects
            if effect.for_all_consumers[-1] > 1
        }
        effects = rounding_effects(self._emulator, probe, most, suspects, on_progress)
        self._looked_at[index] = _Sample(probe, effects)

    def _say_what_it_takes(self, seconds: float) -> None:
        """Say what the search will take, if one forward pass takes so many seconds and that is worth a word."""
        first = seconds * tuning.USUAL_PASSES
        if first < tuning.WORTH_A_NOTE:
            return
        layers, samples = len(self._emulator.graph.candidates), len(self._criteria.samples)
        self._on_note(
            f"{layers} layers, {samples} samples, {seconds:.1f} s for a forward pass: some {first:.0f} s until the "
            f"first plan is tried, and up to {samples * seconds:.1f} s for each trial; Ctrl-C leaves the best plan"
        )

    def _explain(self, trial: Trial, expected: float) -> bool:
        """Learn why a plan was worse than predicted; False where there is nothing to learn within the passes left."""
        most = tuning.MOST_PASSES_OF_A_SEARCH * (1 if len(self._criteria.samples) == 1 else 2)
        left = most - self._passes
        index = self._judge.searched[trial.sample]
        if index not in self._looked_at:
            if left < tuning.MOST_PASSES_LATER:
                return False
            self._look_at(index)
            return True
        surprise = trial.error_ratio > tuning.SURPRISE * max(expected, 1.0)
        if not surprise or len(self._conflicts) >= tuning.MOST_CONFLICTS or left <= 0:
            return False
        on_progress = partial(self._on_progress, "what roundings do together")
        probe, at_most = self._looked_at[index].probe, min(left, tuning.MOST_PASSES_OF_A_CONFLICT)
        found = conflict(self._emulator, probe, trial, expected, at_most, on_progress)
        if found is None or found in self._conflicts:
            return False
        self._conflicts.append(found)
        return True

    def _predict(self) -> Prediction:
        layers, stat = self._emulator.graph.candidates, self._criteria.tolerance.stat
        samples = self._looked_at.values()
        conflicts = [
            Conflict(found.parties, np.concatenate([sample.errors(found) for sample in samples]))
            for found in self._conflicts
        ]
        effects = [_joined(same) for same in zip(*(sample.effects for sample in samples), strict=True)]
        return ErrorModel(layers, effects, stat, conflicts, self._costs).prediction()

    def _warn_of_large_set(self, prediction: Prediction, nothing: Trial) -> None:
        """Say early that no small set exists, how far off FP16 is, and what it would need."""
        count = len(prediction.order)
        enough = next(k for k, error in enumerate(prediction.errors) if error <= tuning.HOPEFUL or k == count)
        if enough <= max(tuning.SMALL_SET, tuning.SMALL_SET_SHARE * count) or nothing.error_ratio == float("inf"):
            return
        tenth = prediction.errors[round(count / 10)]
        self._on_warning(
            f"rounding is spread over the model: some {enough} of {count} layers would have to stay in FP32. "
            f"FP16 alone is {nothing.error_ratio:.2g} times the tolerance off, with a tenth of the layers in FP32 "
            f"about {tenth:.2g} times; loosen the tolerance that much, or set --max-pins"
        )


def _tolerance_of_metric(nothing: Trial) -> Tolerance:
    """A tolerance that FP16 (the trial `nothing`) misses by as much as it misses the metric."""
    missed = min(max(nothing.error_ratio, 1.0), tuning.MOST_MISSED)
    finite = {e.name: e.max if not e.non_finite else 0.0 for e in nothing.outputs}
    allowed = {e.name: max(finite[e.name] / missed, e.reference_max * tuning.METRIC_SHARE) for e in nothing.outputs}
    return Tolerance(0.0, 0.0, Statistic.MAX, {name: (atol or 1.0, 0.0) for name, atol in allowed.items()})


def _joined(same: Sequence[RoundingEffect]) -> RoundingEffect:
    """The effects of one rounding on several samples as one."""
    first = same[0]
    if len(same) == 1:
        return first
    alone: tuple[Array, ...] = ()
    if any(effect.per_consumer for effect in same):
        shared = [effect.per_consumer or (effect.for_all_consumers,) * len(first.consumers) for effect in same]
        alone = tuple(np.concatenate(parts) for parts in zip(*shared, strict=True))
    return replace(first, for_all_consumers=np.concatenate([e.for_all_consumers for e in same]), per_consumer=alone)
