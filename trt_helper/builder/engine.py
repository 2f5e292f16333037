"""What a build leaves behind: what is known about a finished engine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from trt_helper.builder.engine_program import Program
from trt_helper.builder.layer_info import EngineLayer

BYTES = {"FP64": 8, "FP32": 4, "TF32": 4, "FP16": 2, "BF16": 2, "FP8": 1}
NARROW = frozenset({"FP16", "BF16", "FP8", "FP4"})


@dataclass(frozen=True, slots=True)
class EngineBuild:
    """A finished engine. `layers` is empty where the builder's log held no layer dump."""

    path: Path
    bytes: int
    sha256: str
    seconds: float  # wall clock, start of the building process included
    builder: str  # product and version, e.g. "TensorRT-RTX 1.7.1.116"
    layers: tuple[EngineLayer, ...]
    program: Program  # what is inside the kernels, where the engine holds text
    warnings: tuple[str, ...]  # each once, in the order of the log
    marked: tuple[str, ...] = ()  # ONNX tensors made outputs to be heard; none where all that is not fused can be

    @property
    def has_reduced(self) -> bool:
        """Whether anything is less than FP32: an operand, or a value inside a kernel that is cast to and fro."""
        operands = (tensor for one in self.layers for tensor in (*one.inputs, *one.constants, *one.outputs))
        inside = (one.name.startswith("__myl_") and "Cast" in one.name for one in self.layers)
        return any(tensor.dtype in NARROW for tensor in operands) or any(inside)

    @property
    def weight_bytes(self) -> Mapping[str, int]:
        """Bytes of the weights by their type, each weight once; a layer of several profiles shares its weights."""
        held = {tensor for one in self.layers for tensor in one.weights}
        found: Counter[str] = Counter()
        for tensor in held:
            found[tensor.dtype] += abs(prod(tensor.shape)) * BYTES.get(tensor.dtype, 1)
        return dict(sorted(found.items()))
