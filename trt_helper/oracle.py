"""A plan goes in, a judged trial comes out. Knows no strategy."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from trt_helper.compare import compare_all, worst
from trt_helper.emulate import Emulator, Values
from trt_helper.kernels import EmulationError
from trt_helper.samples import Sample
from trt_helper.values import Plan, TensorError, Tolerance, Trial, Verdict


@dataclass(eq=False)
class EmulatedOracle:
    """Judges plans on the emulator, on every sample; the worst one decides."""

    emulator: Emulator
    samples: Sequence[Sample]
    references: Sequence[Values]  # of the user's own model, in FP32
    tolerance: Tolerance
    inferences: int = field(default=0, init=False)

    def judge(self, plan: Plan) -> Trial:
        """Run `plan` on all samples and hold the worst against the tolerance."""
        try:
            per_sample = self.errors(plan)
        except EmulationError as error:
            return Trial(plan, Verdict.UNRESOLVED, why=error.message)
        return judge(plan, per_sample, self.tolerance)

    def errors(self, plan: Plan) -> list[tuple[TensorError, ...]]:
        """The error of every output, sample by sample."""
        self.inferences += len(self.samples)
        with ThreadPoolExecutor(min(len(self.samples), os.cpu_count() or 1)) as pool:
            outputs = pool.map(lambda sample: self.emulator.run(plan, sample.feed), self.samples)
            return [
                compare_all(found, reference, self.tolerance)
                for found, reference in zip(outputs, self.references, strict=True)
            ]

    def on(self, indices: Sequence[int]) -> EmulatedOracle:
        """The same oracle on some of the samples."""
        return replace(
            self, samples=[self.samples[i] for i in indices], references=[self.references[i] for i in indices]
        )


def judge(plan: Plan, per_sample: Sequence[Sequence[TensorError]], tolerance: Tolerance) -> Trial:
    """The worst sample decides; each output is reported on its own worst sample."""
    outputs = tuple(worst(errors, tolerance) for errors in zip(*per_sample, strict=True))
    passed = all(error.passes(tolerance) for error in outputs)
    excess = [max((e.excess(tolerance) for e in errors), default=0.0) for errors in per_sample]
    decisive = max(range(len(excess)), key=lambda index: excess[index])
    return Trial(
        plan,
        Verdict.PASS if passed else Verdict.FAIL,
        outputs,
        excess[decisive],
        decisive,
    )
