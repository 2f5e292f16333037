"""The predictor of a search: measures rounding effects when they are first needed, and conflicts after surprises."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from trt_helper.emulator.emulator import Emulator
from trt_helper.onnx_model.cost import Shapes, pin_costs
from trt_helper.search import tuning
from trt_helper.search.error_model import Conflict, ErrorModel, RoundingEffect
from trt_helper.search.judge import PlanJudge
from trt_helper.search.oracle import Criteria
from trt_helper.search.rounding_effects import conflict, rounding_effects, samples_to_measure
from trt_helper.search.strategy import Prediction
from trt_helper.values import Feed, LayerName, Plan, Statistic, Tolerance, Trial, Verdict


class ErrorPredictor:
    """Predicts the errors of plans of one graph. It orders the search and decides nothing.

    Attributes:
        prediction: the current prediction; None before the first one, and when other samples are searched since.
        inferences: forward passes of the whole model so far.
    """

    def __init__(
        self,
        emulator: Emulator,
        criteria: Criteria,
        judge: PlanJudge,
        on_warning: Callable[[str], None],
        on_progress: Callable[[str, int, int], None],
    ) -> None:
        self.inferences = 0
        self._emulator = emulator
        self._criteria = criteria
        self._judge = judge
        self._on_warning = on_warning
        self._on_progress = on_progress
        self._prediction: Prediction | None = None
        self._measured_for: tuple[int, ...] = ()  # the searched samples when the effects were measured
        self._feeds: list[Feed] = []  # the samples that effects are measured on
        self._effects: list[RoundingEffect] = []
        self._conflicts: list[Conflict] = []
        self._costs: dict[LayerName, float] = {}
        self._shapes: Shapes = {}

    @property
    def prediction(self) -> Prediction | None:
        return self._prediction if self._measured_for == self._judge.searched else None

    def shapes(self) -> Shapes:
        """The shape of every tensor for the first sample."""
        if not self._shapes:
            self._shapes = self._emulator.shapes(self._criteria.samples[0].feed)
            self.inferences += 1
        return self._shapes

    def predict(self, trial: Trial) -> Prediction:
        """The prediction after a trial; a new one where the trial was a surprise.

        A trial is a surprise when its plan failed with an error far above the predicted one. A plan that could not be
        judged has no error, and is none.
        """
        prediction = self.prediction or self._first_prediction(trial)
        if trial.verdict is not Verdict.FAIL or self._criteria.metric is not None:
            return prediction
        expected = prediction.error(trial.plan)
        if trial.error_ratio <= tuning.SURPRISE * max(expected, 1.0) or len(self._conflicts) >= tuning.MOST_CONFLICTS:
            return prediction
        worst = self._feed(self._judge.searched[trial.sample])
        tolerance, on_progress = self._criteria.tolerance, partial(self._on_progress, "what roundings do together")
        found, passes = conflict(self._emulator, self._feeds, worst, tolerance, trial, expected, on_progress)
        self.inferences += passes
        if found is None:
            return prediction
        self._conflicts.append(found)
        self._prediction = self._predict()
        return self._prediction

    def _first_prediction(self, trial: Trial) -> Prediction:
        """Measure the rounding effects on the searched samples, the one that decided `trial` among them."""
        searched = self._judge.searched
        self._measured_for = searched
        self._conflicts = []
        self._feeds = [self._feed(searched[index]) for index in samples_to_measure(len(searched), trial.sample)]
        nothing = self._judge.on(searched, Plan())
        tolerance = self._criteria.tolerance if self._criteria.metric is None else _tolerance_of_metric(nothing)
        on_progress = partial(self._on_progress, "what each rounding does")
        self._effects, passes = rounding_effects(self._emulator, self._feeds, tolerance, on_progress)
        self.inferences += passes
        self._costs = pin_costs(self._emulator.graph, self.shapes())
        self._prediction = prediction = self._predict()
        self._warn_of_large_set(prediction, nothing)
        return prediction

    def _predict(self) -> Prediction:
        layers, stat = self._emulator.graph.candidates, self._criteria.tolerance.stat
        return ErrorModel(layers, self._effects, stat, self._conflicts, self._costs).prediction()

    def _feed(self, sample: int) -> Feed:
        return self._criteria.samples[sample].feed

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
