"""What `gate` is asked to judge, and what it found: plain values, which the CI writers read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trt_helper.gate import baseline as base
from trt_helper.gate.findings import (
    Finding,
)
from trt_helper.values import Tolerance

EMULATE = "emulate"


@dataclass(frozen=True, slots=True)
class Request:
    """One config to judge, and what the command line said about how."""

    config: Path
    model: Path | None = None
    reference: Path | None = None  # the model that FP32 outputs come from, else the model itself
    runner: str = EMULATE  # or one of `runners.RUNNERS`
    repeats: int = 2  # runs of an engine, which have to agree
    inputs: tuple[Path, ...] = ()
    script: str | None = None
    metric: str | None = None
    metric_threshold: float | None = None
    baseline: Path | None = None  # else the one beside the config
    factor: float = 2.0
    check_pins: bool | None = None  # None: when nothing proves that they are needed
    update: bool = False  # nothing is held against the baseline, which is to be written


@dataclass(frozen=True)
class Gated:
    """What came of one config."""

    config: Path
    status: int  # as the command's own
    findings: tuple[Finding, ...]
    model: Path | None = None
    sha256: str = ""
    tolerance: Tolerance = field(default_factory=Tolerance)
    metric: tuple[str, float, float | None] | None = None  # name, threshold, figure
    samples: tuple[str, ...] = ()
    candidates: int = 0  # layers that could be pinned
    now: base.Baseline | None = None  # None where nothing could be judged
    before: Mapping[str, Any] | None = None  # the baseline's entry
    baseline: Path = Path()
    seconds: float = field(default=0.0, compare=False)

    @property
    def verdict(self) -> str:
        return {0: "pass", 1: "fail"}.get(self.status, "error")
