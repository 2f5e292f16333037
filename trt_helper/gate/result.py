"""The request to `gate` and its result: plain values, which the writers of CI formats read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trt_helper.gate import baseline as base
from trt_helper.gate.findings import Finding
from trt_helper.values import Tolerance

EMULATE = "emulate"


@dataclass(frozen=True, slots=True)
class Request:
    """One config to judge, with the options of the command line."""

    config: Path
    model: Path | None = None  # by default the one that the config names
    reference: Path | None = None  # the model that computes the FP32 outputs; by default the model itself
    runner: str = EMULATE  # or one of `runners.RUNNERS`
    repeats: int = 2  # runs of an engine, which must agree
    inputs: tuple[Path, ...] = ()
    script: str | None = None  # FILE.py[:function]
    metric: str | None = None  # FILE.py:function
    metric_threshold: float | None = None
    baseline: Path | None = None  # by default the one beside the config
    factor: float = 2.0  # by which an error may grow against the baseline
    check_pins: bool | None = None  # None: only if nothing proves that the pins are needed
    update: bool = False  # the baseline is not compared, but written


@dataclass(frozen=True)
class Gated:
    """The result for one config."""

    config: Path
    status: int  # exit status of the command, if this were its only config
    findings: tuple[Finding, ...]
    model: Path | None = None
    sha256: str = ""
    tolerance: Tolerance = field(default_factory=Tolerance)
    metric: tuple[str, float, float | None] | None = None  # name, threshold, figure
    samples: tuple[str, ...] = ()
    candidates: int = 0  # layers that could be pinned
    now: base.Baseline | None = None  # None if the plan could not be judged
    before: Mapping[str, Any] | None = None  # the baseline's entry
    baseline: Path = Path()  # of the baseline file
    seconds: float = field(default=0.0, compare=False)

    @property
    def verdict(self) -> str:
        return {0: "pass", 1: "fail"}.get(self.status, "error")
