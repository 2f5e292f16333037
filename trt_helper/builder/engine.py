"""What a build leaves behind: what is known about a finished engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trt_helper.builder.layer_info import EngineLayer


@dataclass(frozen=True, slots=True)
class EngineBuild:
    """A finished engine. `layers` is empty where the builder's log held no layer dump."""

    path: Path
    bytes: int
    sha256: str
    seconds: float  # wall clock, start of the building process included
    builder: str  # product and version, e.g. "TensorRT-RTX 1.7.1.116"
    layers: tuple[EngineLayer, ...]
    warnings: tuple[str, ...]  # each once, in the order of the log
