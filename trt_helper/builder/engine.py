"""The facts about a finished engine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from trt_helper.builder.engine_program import Program
from trt_helper.builder.layer_info import EngineLayer

# Bytes of one element.
BYTES = {"FP64": 8, "FP32": 4, "TF32": 4, "FP16": 2, "BF16": 2, "FP8": 1}
REDUCED = frozenset({"FP16", "BF16", "FP8", "FP4"})


@dataclass(frozen=True, slots=True)
class EngineBuild:
    """A finished engine. `layers` is empty if the builder's log had no layer dump."""

    path: Path
    bytes: int  # size of the file
    sha256: str  # of the file
    seconds: float  # wall clock, including the start of the child process
    builder: str  # product and version, e.g. "TensorRT-RTX 1.7.1.116"
    layers: tuple[EngineLayer, ...]
    program: Program  # the text of the kernels; empty if the engine has only binaries
    warnings: tuple[str, ...]  # in the order of the log, without duplicates
    # ONNX tensors that were made outputs to read intermediate tensors; empty if TensorRT has debug tensors.
    marked: tuple[str, ...] = ()

    @property
    def has_reduced(self) -> bool:
        """Whether a float operand has fewer than 32 bits, or a generated kernel casts values internally."""
        operands = (tensor for one in self.layers for tensor in (*one.inputs, *one.constants, *one.outputs))
        casting = (one.name.startswith("__myl_") and "Cast" in one.name for one in self.layers)
        return any(tensor.dtype in REDUCED for tensor in operands) or any(casting)

    @property
    def weight_bytes(self) -> Mapping[str, int]:
        """Bytes of the weights by their type.

        Each weight counts once: the engine layers of several profiles share their weights.
        """
        weights = {tensor for one in self.layers for tensor in one.weights}
        found: Counter[str] = Counter()
        for tensor in weights:
            found[tensor.dtype] += abs(prod(tensor.shape)) * BYTES.get(tensor.dtype, 1)
        return dict(sorted(found.items()))
