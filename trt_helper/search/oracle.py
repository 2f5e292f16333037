"""Oracles judge plans: they compute the outputs of a plan on samples and compare them with the FP32 reference.

An oracle knows no strategy and remembers no verdict. The one here runs plans on the emulator; `runners.oracle` runs
engines on a GPU, `runners.ray_cluster` asks the machines of a Ray cluster.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

from trt_helper.emulator.compare import compare_all, worst
from trt_helper.emulator.emulator import Emulator, Watch
from trt_helper.emulator.kernels import EmulationError
from trt_helper.errors import ControlError, DisagreementError, ModelError, TrtHelperError
from trt_helper.inputs.metric import Metric
from trt_helper.inputs.sample import Sample
from trt_helper.onnx_model.graph import Graph
from trt_helper.search.strategy import Speculative, no_plans
from trt_helper.values import (
    DISAGREE,
    IntermediateError,
    PerSample,
    Plan,
    Reading,
    Rewrite,
    TensorError,
    Tensors,
    Tolerance,
    Trial,
    Verdict,
)


@dataclass(frozen=True, eq=False)
class Criteria:
    """What plans are judged by; the same for every plan and every graph of a search.

    Attributes:
        samples: all samples.
        references: for each sample the outputs of the user's own model in FP32.
        tolerance: decides, unless there is a metric.
        metric: the user's own figure; decides instead of the tolerance.
    """

    samples: Sequence[Sample]
    references: Sequence[Tensors]
    tolerance: Tolerance
    metric: Metric | None = None

    @property
    def every_sample(self) -> tuple[int, ...]:
        """The indices of all samples."""
        return tuple(range(len(self.samples)))

    def judge(self, plan: Plan, outputs: Sequence[Tensors], samples: Sequence[int]) -> Judgement:
        """Judge the outputs that a plan gave.

        Args:
            plan: the plan.
            outputs: its outputs on each of `samples`.
            samples: indices of samples. The worst one decides; each output is reported on its own worst sample.
        """
        references = [self.references[index] for index in samples]
        errors = tuple(compare_all(*pair, self.tolerance) for pair in zip(outputs, references, strict=True))
        trial = judge_errors(plan, errors, self.tolerance)
        if self.metric is None:
            return Judgement(trial, errors)
        ratio = self.metric.error_ratio(references, outputs)
        verdict = Verdict.PASS if ratio <= 1 else Verdict.FAIL
        return Judgement(replace(trial, verdict=verdict, error_ratio=ratio), errors)


@dataclass(frozen=True, eq=False)
class Judgement:
    """The verdict on a plan and what it took.

    Attributes:
        trial: the verdict.
        per_sample: the errors of every output of every sample; empty where there are none or they are not known.
        inferences: forward passes of the whole model.
    """

    trial: Trial
    per_sample: PerSample = ()
    inferences: int = 0


class Oracle(Protocol):
    """Judges plans of one graph."""

    def judge(self, plan: Plan, samples: Sequence[int], speculative: Speculative = no_plans) -> Judgement:
        """Judge a plan on the samples with these indices.

        Args:
            plan: the plan.
            samples: indices of samples, at least one.
            speculative: plans that will probably be asked for next. An oracle that judges several plans side by side
                may begin with them.

        Raises:
            TrtHelperError: for what no other plan would change, such as a missing GPU. A plan that cannot be
                evaluated is UNRESOLVED instead.
        """

    def intermediate_errors(
        self, plan: Plan, sample: int, emulator: Emulator, on_warning: Callable[[str], None]
    ) -> tuple[IntermediateError, ...]:
        """The errors of tensors inside the engine of a plan; none for an oracle that runs no engine."""


class OracleFactory(Protocol):
    """Makes the oracle of a graph."""

    def __call__(self, graph: Graph, criteria: Criteria, /) -> Oracle: ...


class EmulatedOracle:
    """Judges plans on the emulator, several samples at a time.

    Args:
        emulator: of the graph whose plans are judged.
        criteria: samples, references, tolerance and metric.
        threads: the number of samples that run at a time; by default one per CPU.
    """

    def __init__(self, emulator: Emulator, criteria: Criteria, threads: int | None = None) -> None:
        self.emulator = emulator
        self._criteria = criteria
        self._threads = threads or os.cpu_count() or 1

    def judge(self, plan: Plan, samples: Sequence[int], _speculative: Speculative = no_plans) -> Judgement:
        """Run `plan` on the samples and judge its outputs; UNRESOLVED where it cannot be computed."""
        try:
            judgement = self._criteria.judge(plan, self.run(plan, samples), samples)
        except EmulationError as error:
            judgement = Judgement(Trial(plan, Verdict.UNRESOLVED, why=error.message))
        return replace(judgement, inferences=len(samples))

    def run(self, plan: Plan, samples: Sequence[int], watch: Callable[[int], Watch] | None = None) -> list[Tensors]:
        """The outputs on the samples with these indices.

        Args:
            plan: the plan.
            samples: indices of samples.
            watch: `watch(index)` is called with every rounding of that sample.

        Raises:
            EmulationError: a layer cannot be computed from what reaches it.
        """

        def one(index: int) -> Tensors:
            return self.emulator.run(plan, self._criteria.samples[index].feed, watch and watch(index))

        with ThreadPoolExecutor(min(len(samples), self._threads)) as pool:
            return list(pool.map(one, samples))

    def intermediate_errors(
        self, _plan: Plan, _sample: int, _emulator: Emulator, _on_warning: Callable[[str], None]
    ) -> tuple[IntermediateError, ...]:
        """None: every tensor is emulated, and no engine is built."""
        return ()


class RobustOracle:
    """Judges plans by several readings of what kernels compute: a plan passes if it passes by each of them.

    Args:
        oracles: one per reading, the cheapest first; the first one that a plan fails on decides.
    """

    def __init__(self, oracles: Sequence[EmulatedOracle]) -> None:
        self._oracles = oracles

    def judge(self, plan: Plan, samples: Sequence[int], _speculative: Speculative = no_plans) -> Judgement:
        """Run `plan` by each reading; the judgement with the largest error ratio, or the first that failed."""
        judgements = []
        for oracle in self._oracles:
            judgements.append(oracle.judge(plan, samples))
            if judgements[-1].trial.verdict is not Verdict.PASS:
                break
        decisive = judgements[-1]
        if decisive.trial.verdict is Verdict.PASS:
            decisive = max(judgements, key=lambda judgement: judgement.trial.error_ratio)
        return replace(decisive, inferences=sum(judgement.inferences for judgement in judgements))

    def intermediate_errors(
        self, _plan: Plan, _sample: int, _emulator: Emulator, _on_warning: Callable[[str], None]
    ) -> tuple[IntermediateError, ...]:
        """None: nothing runs here but the emulator."""
        return ()


def emulated(
    graph: Graph,
    criteria: Criteria,
    threads: int | None = None,
    readings: Sequence[Reading] = (Reading.TYPICAL,),
) -> EmulatedOracle | RobustOracle:
    """Make an oracle with emulators of its own, one per reading."""
    oracles = [EmulatedOracle(Emulator(graph, reading=reading), criteria, threads) for reading in readings]
    return oracles[0] if len(oracles) == 1 else RobustOracle(oracles)


def judge_errors(plan: Plan, per_sample: Sequence[Sequence[TensorError]], tolerance: Tolerance) -> Trial:
    """Judge errors by the tolerance: the worst sample decides, each output is reported on its own worst sample."""
    outputs = tuple(worst(errors, tolerance) for errors in zip(*per_sample, strict=True))
    passed = all(error.passes(tolerance) for error in outputs)
    ratios = [max((e.error_ratio(tolerance) for e in errors), default=0.0) for errors in per_sample]
    decisive = max(range(len(ratios)), key=lambda index: ratios[index])
    return Trial(plan, Verdict.PASS if passed else Verdict.FAIL, outputs, ratios[decisive], decisive)


def control_error(
    trial: Trial, samples: Sequence[Sample], tolerance: Tolerance, logs: Sequence[Rewrite] = ()
) -> TrtHelperError:
    """The error to raise when the plan that pins every layer does not pass.

    Args:
        trial: that plan's trial.
        samples: the samples that it was judged on.
        tolerance: what it was judged by.
        logs: logarithms that underflow in FP32, too, and that a rewrite can compute without.
    """
    if trial.why.startswith(DISAGREE):
        return DisagreementError(
            f"with every layer in FP32 {trial.why}",
            fix="the model or this machine is not deterministic: raise --repeats to see how far, or loosen --atol",
        )
    if trial.why:
        return ModelError(
            f"with every layer in FP32 nothing could be judged: {trial.why}",
            fix="precision is not the cause; try the model in ONNX Runtime, or export it with other operators",
        )
    error = max(trial.outputs, key=lambda output: output.error_ratio(tolerance))
    reason = (
        f"{error.name!r} is off by {tolerance.stat.value} {error.max:.3g} at {list(error.worst)}"
        f" on {samples[trial.sample].source}" + (f", {error.broken}" if error.broken else "")
    )
    fix = "precision is not the cause; loosen --atol, or check the model and its inputs in ONNX Runtime"
    if logs:
        fix = f"{logs[0].name!r} is computed as log(softmax), which underflows in FP32, too: --cures pins,logs"
    return ControlError(f"with every layer in FP32 the model already misses the tolerance: {reason}", fix=fix)


def median_warnings(after: Trial, tolerance: Tolerance) -> list[str]:
    """Warn of outputs that pass by their median or mean while the worst element is far off."""
    atol = tolerance.atol
    return [
        f"{error.name!r} passes by its {tolerance.stat.value}, but its worst element is off by {error.max:.3g}"
        for error in after.outputs
        if tolerance.stat.value in ("mean", "median") and error.max > max(10 * tolerance.of(error.name)[0], atol)
    ]
