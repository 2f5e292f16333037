"""A plan goes in, a trial judged on this machine's GPU comes out: the real thing in the place of `EmulatedOracle`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trt_helper.builder.convert import convert
from trt_helper.builder.engine import EngineBuild
from trt_helper.builder.layer_info import EngineLayer
from trt_helper.builder.settings import BuildSettings
from trt_helper.emulator.emulator import Emulator
from trt_helper.errors import BuildError, RunError, TrtHelperError
from trt_helper.inputs.metric import Metric
from trt_helper.inputs.samples import Sample
from trt_helper.inputs.shapes import Range
from trt_helper.onnx_model.graph import Graph
from trt_helper.runners.intermediate_errors import complaint, computed, intermediate_errors, to_hear
from trt_helper.runners.run import Runner, execute, listen, runner_here
from trt_helper.search.oracle import PerSample, judge_outputs
from trt_helper.values import (
    DISAGREE,
    Array,
    IntermediateError,
    LayerName,
    Plan,
    TensorName,
    Tensors,
    Tolerance,
    Trial,
    Verdict,
)

MARKED_ENGINES = 4  # neighbours of what is made an output in one of them can still be fused with others


@dataclass(eq=False)
class RunnerOracle:
    """Judges plans by what `convert` makes of them, run on every sample; the worst sample decides.

    Nothing is marked as output but the model's own outputs: marking changes what is fused. A plan whose engine cannot
    be built or run, or whose repeats do not agree, is UNRESOLVED, with the reason.
    """

    graph: Graph
    runner: Runner
    samples: Sequence[Sample]
    references: Sequence[Tensors]  # of the user's own model, in FP32
    tolerance: Tolerance
    profile: Mapping[str, Range]
    settings: BuildSettings
    metric: Metric | None = None  # decides instead of the tolerance
    repeats: int = 2
    guards: Sequence[LayerName] = ()  # what an earlier conversion had to guard, so that one build is enough
    inferences: int = field(default=0, init=False)
    per_sample: dict[Plan, PerSample] = field(default_factory=dict, init=False)  # the errors of every plan judged

    def judge(self, plan: Plan) -> Trial:
        """Build, run `repeats` times, and judge; raises only what no plan can change (MachineError and the like)."""
        try:
            return self.run(plan)[0]
        except (BuildError, RunError) as error:
            return Trial(plan, Verdict.UNRESOLVED, why=error.message)

    def run(self, plan: Plan) -> tuple[Trial, list[Tensors]]:
        """The verdict, and the outputs of the worst repeat on every sample. Raises also BuildError and RunError."""
        with tempfile.TemporaryDirectory(prefix="trt-helper-") as folder:
            runs = self._run(plan, Path(folder))
        self.inferences += self.repeats * len(self.samples)
        weighed = [judge_outputs(plan, found, self.references, self.tolerance, self.metric) for found in runs]
        worst = max(range(len(runs)), key=lambda index: weighed[index][0].error_ratio)
        self.per_sample[plan] = weighed[worst][1]
        return agreed([trial for trial, _ in weighed]), runs[worst]

    def on(self, indices: Sequence[int]) -> RunnerOracle:
        """The same oracle on some of the samples."""
        return replace(
            self, samples=[self.samples[i] for i in indices], references=[self.references[i] for i in indices]
        )

    def intermediate_errors(
        self, plan: Plan, emulator: Emulator, warn: Callable[[str], None]
    ) -> tuple[IntermediateError, ...]:
        """What the engine of `plan` computes between its kernels, on the first sample.

        It is evidence from an engine of its own, and never decides anything: where there is none, `warn` hears why.
        """
        if not self.runner.builds:
            return ()
        try:
            found = self._heard(plan, emulator, self.samples[0], warn)
        except TrtHelperError as error:
            warn(f"the inside of the engine was not looked at: {error.message}")
            return ()
        if not found:
            warn("nothing of what the engine computes between its kernels could be heard")
        elif said := complaint(found, excludable=self.settings.tensorrt):
            warn(said)
        return found

    def _heard(
        self, plan: Plan, emulator: Emulator, sample: Sample, warn: Callable[[str], None]
    ) -> tuple[IntermediateError, ...]:
        """From one engine where TensorRT has debug tensors, else from several with some tensors as outputs each."""
        tensors = to_hear(self.graph, plan)
        found: dict[TensorName, tuple[Array, EngineLayer]] = {}
        engines = min(MARKED_ENGINES, len(tensors))
        for which in range(engines):
            marks = tensors[which::MARKED_ENGINES]
            engine, heard = self._listened(plan, marks, sample)
            found |= computed(engine, self.graph, heard)
            if not engine.marked:
                break
            if not which:
                warn(
                    f"{engine.builder} has no debug tensors: the inside is that of {engines} engines, each with "
                    f"some {len(marks)} tensors as outputs, which changes what is fused"
                )
        return intermediate_errors(emulator, plan, sample.feed, found, self.tolerance)

    def _listened(self, plan: Plan, marks: Sequence[TensorName], sample: Sample) -> tuple[EngineBuild, Tensors]:
        with tempfile.TemporaryDirectory(prefix="trt-helper-") as folder:
            path = Path(folder) / "model.trt"
            settings = replace(self.settings, debug_tensors=tuple(marks))
            made = convert(
                self.graph,
                plan,
                engine=path,
                typed_onnx=None,
                profile=self.profile,
                settings=settings,
                guards=self.guards,
            )
            if made.engine is None:
                raise ValueError("a conversion to an engine has one")
            return made.engine, listen(self.runner, path, sample, self.graph.outputs, seconds=self.settings.time_limit)

    def _run(self, plan: Plan, folder: Path) -> list[list[Tensors]]:
        engine, typed = folder / "model.trt", folder / "typed.onnx"
        convert(
            self.graph,
            plan,
            engine=engine if self.runner.builds else None,
            typed_onnx=None if self.runner.builds else typed,
            profile=self.profile,
            settings=self.settings,
            guards=self.guards,
        )
        file = engine if self.runner.builds else typed
        return execute(
            self.runner,
            file,
            self.samples,
            self.graph.outputs,
            repeats=self.repeats,
            seconds=self.settings.time_limit,
        )


def runner_oracle(graph: Graph, *, runner: str, **how: Any) -> RunnerOracle:
    """An oracle of the runner of that name, `how` are the other fields. Raises MachineError where it cannot run."""
    return RunnerOracle(graph, runner_here(runner), **how)


def agreed(trials: Sequence[Trial]) -> Trial:
    """The worst of the repeats where all have the same verdict; else UNRESOLVED, with the range that was seen."""
    worst = max(trials, key=lambda trial: trial.error_ratio)
    if len({trial.verdict for trial in trials}) == 1:
        return worst
    best = min(trial.error_ratio for trial in trials)
    why = f"{DISAGREE}: {best:.3g} to {worst.error_ratio:.3g} times the tolerance in {len(trials)} runs"
    return replace(worst, verdict=Verdict.UNRESOLVED, why=why)
