"""The oracle that judges plans on this machine's GPU: each plan is converted as `convert` does it, and run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trt_helper.builder.convert import convert
from trt_helper.builder.engine import EngineBuild
from trt_helper.builder.layer_info import EngineLayer
from trt_helper.builder.settings import BuildSettings
from trt_helper.emulator.emulator import Emulator
from trt_helper.errors import BuildError, RunError, TrtHelperError
from trt_helper.inputs.sample import Sample
from trt_helper.inputs.shapes import Range
from trt_helper.onnx_model.graph import Graph
from trt_helper.runners.intermediate_errors import (
    complaint,
    computed_tensors,
    intermediate_errors,
    intermediate_tensors,
)
from trt_helper.runners.run import Runner, execute, run_for_intermediates, runner_here
from trt_helper.search.oracle import Criteria, Judgement
from trt_helper.search.strategy import Speculative, no_plans
from trt_helper.values import (
    DISAGREE,
    Array,
    IntermediateError,
    LayerName,
    Plan,
    TensorName,
    Tensors,
    Trial,
    Verdict,
)

MARKED_ENGINES = 4  # neighbours of a tensor that is made an output in one of them can still be fused with others


@dataclass(frozen=True, eq=False)
class RunnerOracle:
    """Judges plans by the engines that `convert` makes of them, run on the samples; the worst sample decides.

    Only the model's own outputs are outputs of the engine, because marking more changes the fusion. A plan whose
    engine cannot be built or run, or whose repeats disagree, is UNRESOLVED, with the reason.

    Attributes:
        graph: the model.
        runner: what runs it.
        criteria: samples, references, tolerance and metric.
        profile: the optimization profile of the dynamic inputs.
        settings: the settings of the builder.
        repeats: how often each engine is run.
        guards: layers that an earlier conversion had to guard, so that one build is enough.
    """

    graph: Graph
    runner: Runner
    criteria: Criteria
    profile: Mapping[str, Range]
    settings: BuildSettings
    repeats: int = 2
    guards: Sequence[LayerName] = ()

    def judge(self, plan: Plan, samples: Sequence[int], _speculative: Speculative = no_plans) -> Judgement:
        """Build, run `repeats` times, and judge.

        Raises:
            TrtHelperError: for what no other plan would change: MachineError and the like.
        """
        try:
            return self.run(plan, samples)[0]
        except (BuildError, RunError) as error:
            return Judgement(Trial(plan, Verdict.UNRESOLVED, why=error.message))

    def run(self, plan: Plan, samples: Sequence[int]) -> tuple[Judgement, list[Tensors]]:
        """Build and run a plan.

        Returns:
            The judgement, and the outputs of the worst repeat on each of the samples.

        Raises:
            BuildError: the engine cannot be built.
            RunError: it cannot be run.
            TrtHelperError: as for `judge`.
        """
        with tempfile.TemporaryDirectory(prefix="trt-helper-") as folder:
            runs = self._run(plan, samples, Path(folder))
        judgements = [self.criteria.judge(plan, outputs, samples) for outputs in runs]
        worst = max(range(len(runs)), key=lambda index: judgements[index].trial.error_ratio)
        trial = agreed([judgement.trial for judgement in judgements])
        inferences = self.repeats * len(samples)
        return replace(judgements[worst], trial=trial, inferences=inferences), runs[worst]

    def intermediate_errors(
        self, plan: Plan, sample: int, emulator: Emulator, on_warning: Callable[[str], None]
    ) -> tuple[IntermediateError, ...]:
        """The errors of the tensors between the kernels of a plan's engine, on one sample.

        They come from an engine of its own and never decide anything; `on_warning` is called where there are none.
        """
        if not self.runner.builds:
            return ()
        try:
            found = self._intermediate(plan, emulator, self.criteria.samples[sample], on_warning)
        except TrtHelperError as error:
            on_warning(f"the tensors inside the engine were not measured: {error.message}")
            return ()
        if not found:
            on_warning("no tensor between the kernels of the engine could be read")
        elif text := complaint(found, excludable=self.settings.tensorrt):
            on_warning(text)
        return found

    def _intermediate(
        self, plan: Plan, emulator: Emulator, sample: Sample, on_warning: Callable[[str], None]
    ) -> tuple[IntermediateError, ...]:
        """From one engine where TensorRT has debug tensors, else from several that have some tensors as outputs."""
        tensors = intermediate_tensors(self.graph, plan)
        found: dict[TensorName, tuple[Array, EngineLayer]] = {}
        engines = min(MARKED_ENGINES, len(tensors))
        for index in range(engines):
            marks = tensors[index::MARKED_ENGINES]
            engine, intermediate = self._run_marked(plan, marks, sample)
            found |= computed_tensors(engine, self.graph, intermediate)
            if not engine.marked:
                break
            if not index:
                on_warning(
                    f"{engine.builder} has no debug tensors: the inside is that of {engines} engines, each with "
                    f"some {len(marks)} tensors as outputs, which changes what is fused"
                )
        return intermediate_errors(emulator, plan, sample.feed, found, self.criteria.tolerance)

    def _run_marked(self, plan: Plan, marks: Sequence[TensorName], sample: Sample) -> tuple[EngineBuild, Tensors]:
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
            seconds, outputs = self.settings.time_limit, self.graph.outputs
            return made.engine, run_for_intermediates(self.runner, path, sample, outputs, seconds=seconds)

    def _run(self, plan: Plan, samples: Sequence[int], folder: Path) -> list[list[Tensors]]:
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
        return execute(
            self.runner,
            engine if self.runner.builds else typed,
            [self.criteria.samples[index] for index in samples],
            self.graph.outputs,
            repeats=self.repeats,
            seconds=self.settings.time_limit,
        )


def runner_oracle(
    graph: Graph,
    criteria: Criteria,
    *,
    runner: str,
    profile: Mapping[str, Range],
    settings: BuildSettings,
    repeats: int,
) -> RunnerOracle:
    """Make the oracle of the runner with this name.

    Raises:
        MachineError: the runner cannot run here.
    """
    return RunnerOracle(graph, runner_here(runner), criteria, profile, settings, repeats)


def agreed(trials: Sequence[Trial]) -> Trial:
    """The worst of the repeats where all have the same verdict; else UNRESOLVED, with the range that was seen."""
    worst = max(trials, key=lambda trial: trial.error_ratio)
    if len({trial.verdict for trial in trials}) == 1:
        return worst
    best = min(trial.error_ratio for trial in trials)
    why = f"{DISAGREE}: {best:.3g} to {worst.error_ratio:.3g} times the tolerance in {len(trials)} runs"
    return replace(worst, verdict=Verdict.UNRESOLVED, why=why)
