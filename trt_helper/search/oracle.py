"""A plan goes in, a judged trial comes out. Knows no strategy."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from trt_helper.emulator.compare import compare_all, worst
from trt_helper.emulator.emulator import Emulator, Watch
from trt_helper.emulator.kernels import EmulationError
from trt_helper.errors import ControlError, DisagreementError, TrtHelperError
from trt_helper.inputs.metric import Metric
from trt_helper.inputs.samples import Sample
from trt_helper.onnx_model.graph import Graph
from trt_helper.values import DISAGREE, Plan, TensorError, Tensors, Tolerance, Trial, Verdict

PerSample = tuple[tuple[TensorError, ...], ...]  # of each sample, each output


@dataclass(eq=False)
class EmulatedOracle:
    """Judges plans on the emulator, on every sample; the worst one decides."""

    emulator: Emulator
    samples: Sequence[Sample]
    references: Sequence[Tensors]  # of the user's own model, in FP32
    tolerance: Tolerance
    metric: Metric | None = None  # decides instead of the tolerance
    threads: int = field(default_factory=lambda: os.cpu_count() or 1)  # samples at a time
    inferences: int = field(default=0, init=False)
    per_sample: dict[Plan, PerSample] = field(default_factory=dict, init=False)  # the errors of every plan judged

    def judge(self, plan: Plan) -> Trial:
        """Run `plan` on all samples; the metric decides, else the worst sample against the tolerance."""
        try:
            return self.judge_outputs(plan, self.run(plan))
        except EmulationError as error:
            return Trial(plan, Verdict.UNRESOLVED, why=error.message)

    def run(self, plan: Plan, watch: Callable[[int], Watch] | None = None) -> list[Tensors]:
        """The outputs on all samples; `watch(i)` sees the roundings of sample i. Raises EmulationError."""

        def one(index: int) -> Tensors:
            return self.emulator.run(plan, self.samples[index].feed, watch and watch(index))

        self.inferences += len(self.samples)
        with ThreadPoolExecutor(min(len(self.samples), self.threads)) as pool:
            return list(pool.map(one, range(len(self.samples))))

    def judge_outputs(self, plan: Plan, found: Sequence[Tensors]) -> Trial:
        """Judge outputs that `run` gave."""
        trial, self.per_sample[plan] = judge_outputs(plan, found, self.references, self.tolerance, self.metric)
        return trial

    def on(self, indices: Sequence[int]) -> EmulatedOracle:
        """The same oracle on some of the samples."""
        return replace(
            self, samples=[self.samples[i] for i in indices], references=[self.references[i] for i in indices]
        )


def emulated(graph: Graph, **how: Any) -> EmulatedOracle:
    """An oracle on an emulator of its own; `how` are the other fields."""
    return EmulatedOracle(Emulator(graph), **how)


def judge_outputs(
    plan: Plan, found: Sequence[Tensors], references: Sequence[Tensors], tolerance: Tolerance, metric: Metric | None
) -> tuple[Trial, PerSample]:
    """Judge the outputs of all samples: the metric decides where there is one. And the errors of each sample."""
    errors = tuple(compare_all(*pair, tolerance) for pair in zip(found, references, strict=True))
    trial = judge(plan, errors, tolerance)
    if metric is None:
        return trial, errors
    error_ratio = metric.error_ratio(references, found)
    return replace(trial, verdict=Verdict.PASS if error_ratio <= 1 else Verdict.FAIL, error_ratio=error_ratio), errors


def judge(plan: Plan, per_sample: Sequence[Sequence[TensorError]], tolerance: Tolerance) -> Trial:
    """The worst sample decides; each output is reported on its own worst sample."""
    outputs = tuple(worst(errors, tolerance) for errors in zip(*per_sample, strict=True))
    passed = all(error.passes(tolerance) for error in outputs)
    error_ratio = [max((e.error_ratio(tolerance) for e in errors), default=0.0) for errors in per_sample]
    decisive = max(range(len(error_ratio)), key=lambda index: error_ratio[index])
    return Trial(
        plan,
        Verdict.PASS if passed else Verdict.FAIL,
        outputs,
        error_ratio[decisive],
        decisive,
    )


def control_error(trial: Trial, samples: Sequence[Sample], tolerance: Tolerance) -> TrtHelperError:
    """What to say when the plan with every layer in FP32, judged on `samples`, does not pass."""
    if trial.why.startswith(DISAGREE):
        return DisagreementError(
            f"with every layer in FP32 {trial.why}",
            fix="the model or this machine is not deterministic: raise --repeats to see how far, or loosen --atol",
        )
    if trial.why:
        reason = trial.why
    else:
        error = max(trial.outputs, key=lambda output: output.error_ratio(tolerance))
        reason = (
            f"{error.name!r} is off by {tolerance.stat.value} {error.max:.3g} at {list(error.worst)}"
            f" on {samples[trial.sample].source}" + (f", {error.non_finite} not finite" if error.non_finite else "")
        )
    return ControlError(
        f"with every layer in FP32 the model already misses the tolerance: {reason}",
        fix="precision is not the cause; loosen --atol, or check the model and its inputs in ONNX Runtime",
    )


def median_warnings(after: Trial, tolerance: Tolerance) -> list[str]:
    """A median or mean that passes says little where the worst element is far off."""
    atol = tolerance.atol
    return [
        f"{error.name!r} passes by its {tolerance.stat.value}, but its worst element is off by {error.max:.3g}"
        for error in after.outputs
        if tolerance.stat.value in ("mean", "median") and error.max > max(10 * tolerance.of(error.name)[0], atol)
    ]
