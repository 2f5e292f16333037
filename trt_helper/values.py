"""The frozen values that cross a module border, in the order in which data flows.

No third-party import here: the search sees these and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import numpy as np

LayerName = str
TensorName = str
Array: TypeAlias = "np.ndarray[Any, Any]"
Tensors: TypeAlias = "dict[TensorName, Array]"
Feed: TypeAlias = "Mapping[TensorName, Array]"


class Role(Enum):
    """What a plan may do with a layer."""

    COMPUTE = "compute"  # has an FP16 and an FP32 form: may be pinned
    MOVEMENT = "movement"  # moves or picks values: follows the precision of what it moves
    FIXED = "fixed"  # integers, shapes, no FP16 form, or FP32 by the author's decision: never changed


@dataclass(frozen=True, slots=True)
class Layer:
    """One ONNX node of the normalised main graph, in topological order."""

    name: LayerName
    op: str
    role: Role
    inputs: tuple[TensorName, ...]  # floats and others, initializers and tensors read by subgraphs included
    outputs: tuple[TensorName, ...]
    parents: tuple[LayerName, ...]
    children: tuple[LayerName, ...]
    module: str = ""  # path of the PyTorch module it came from, where the exporter wrote it


class ReducedPrecision(Enum):
    """A float type of 16 bits."""

    FP16 = "fp16"
    BF16 = "bf16"  # the range of FP32, 8 bits of significand: for layers whose trouble is range


@dataclass(frozen=True, slots=True)
class Plan:
    """The layers that stay in FP32, and those that compute in BF16. Everything else is FP16."""

    fp32: frozenset[LayerName] = frozenset()
    bf16: frozenset[LayerName] = frozenset()

    @classmethod
    def of(cls, names: Iterable[LayerName]) -> Plan:
        """The plan that pins `names`."""
        return cls(frozenset(names))

    @property
    def kept(self) -> frozenset[LayerName]:
        """The layers that are not FP16: pins and BF16 layers."""
        return self.fp32 | self.bf16

    def without(self, *names: LayerName) -> Plan:
        """The plan with these layers back in FP16."""
        return Plan(self.fp32.difference(names), self.bf16.difference(names))

    def __len__(self) -> int:
        """The number of pins; BF16 layers do not count."""
        return len(self.fp32)


REWRITE_KINDS = ("pins", "constants", "norms", "bf16")


@dataclass(frozen=True, slots=True)
class Rewrite:
    """One rewrite of the graph: of the initializer `name`, or of the layer `name` into the operator `op`."""

    kind: str
    name: str
    op: str = ""


class Statistic(str, Enum):
    """Which figure of a tensor's errors is held against the tolerance (Polygraphy's meaning)."""

    MAX = "max"
    MEAN = "mean"
    MEDIAN = "median"
    ELEMWISE = "elemwise"


@dataclass(frozen=True, slots=True)
class Tolerance:
    """An output passes if stat(abs) <= atol or stat(rel) <= rtol; with elemwise, every element must.

    `atol` is in the output's own unit, `rtol` is relative to the reference. `per_output` maps an
    output's name to its own (atol, rtol).
    """

    atol: float = 1e-3
    rtol: float = 1e-3
    stat: Statistic = Statistic.MAX
    per_output: Mapping[TensorName, tuple[float, float]] = field(default_factory=dict)

    def of(self, output: TensorName) -> tuple[float, float]:
        """(atol, rtol) for this output."""
        return self.per_output.get(output, (self.atol, self.rtol))


@dataclass(frozen=True, slots=True)
class TensorError:
    """How far one tensor is from its reference.

    The statistics are over the elements that are finite on both sides. `non_finite` counts the others
    that differ: NaN or Inf where the reference has something else, or the reverse.
    """

    name: TensorName
    max: float
    mean: float
    median: float
    max_rel: float
    mean_rel: float
    median_rel: float
    worst: tuple[int, ...]  # index of the worst element; of the first non-finite one where there is one
    outside: int  # elements beyond both atol and rtol
    non_finite: int
    total: int
    reference_max: float = 0.0  # largest finite magnitude of the reference

    def passes(self, tolerance: Tolerance) -> bool:
        """Whether this tensor is within `tolerance`; `outside` must have been counted with it."""
        if self.non_finite:
            return False
        if tolerance.stat is Statistic.ELEMWISE:
            return self.outside == 0
        atol, rtol = tolerance.of(self.name)
        absolute = getattr(self, tolerance.stat.value)
        relative = getattr(self, f"{tolerance.stat.value}_rel")
        return bool(absolute <= atol or relative <= rtol)

    def error_ratio(self, tolerance: Tolerance) -> float:
        """Error over tolerance: at most 1 for a tensor that passes, inf for a non-finite one."""
        if self.non_finite:
            return float("inf")
        if tolerance.stat is Statistic.ELEMWISE:
            return 2.0 * self.outside / max(self.total, 1) + (1.0 if self.outside else 0.0)
        atol, rtol = tolerance.of(self.name)
        absolute = getattr(self, tolerance.stat.value)
        relative = getattr(self, f"{tolerance.stat.value}_rel")
        return min(over(absolute, atol), over(relative, rtol))


def over(error: float, allowed: float) -> float:
    """An error over what is allowed; inf where nothing is."""
    if error == 0:
        return 0.0
    return error / allowed if allowed > 0 else float("inf")


class Verdict(Enum):
    """What one trial says about its own plan, and about no other."""

    PASS = "pass"  # noqa: S105 - a verdict, not a password
    FAIL = "fail"
    UNRESOLVED = "unresolved"  # could not build, crashed, timed out, repeats disagree


DISAGREE = "repeats disagree"  # how `why` begins where that is so


@dataclass(frozen=True, slots=True)
class Trial:
    """One plan evaluated on samples: the worst error of each output decides.

    Attributes:
        plan: the plan that was evaluated.
        verdict: PASS, FAIL or UNRESOLVED.
        outputs: one error per output, that of its worst sample; none where the plan could not be computed.
        error_ratio: the worst error over what is allowed; at most 1 passes.
        sample: index of the sample that decided, among those that the plan was judged on.
        why: why there is no verdict; empty unless UNRESOLVED.
        because: why a search tried this plan; empty outside of a search.
    """

    plan: Plan
    verdict: Verdict
    outputs: tuple[TensorError, ...] = ()
    error_ratio: float = float("inf")
    sample: int = 0
    why: str = ""
    because: str = field(default="", compare=False)


PerSample: TypeAlias = "tuple[tuple[TensorError, ...], ...]"
"""Errors of each sample, of each output."""


@dataclass(frozen=True, slots=True)
class LayerReport:
    """What FP16 does to one layer, worst sample: the evidence."""

    layer: Layer
    accumulated: TensorError  # in the trial, against the FP32 reference: what arrives
    isolated: TensorError  # fed with reference inputs: what this layer itself adds
    overflow: int  # finite in FP32, infinite in FP16, by this layer itself
    underflow: int  # not zero in FP32, zero in FP16, by this layer itself
    read: float  # largest finite magnitude of the float tensors that it reads in FP32, weights aside
    written: float  # the same of what it writes
    weights_overflow: int  # finite weights that FP16 makes infinite
    weights_underflow: int  # weights other than 0 that FP16 makes 0


HALF_STEP = 2.0**-11  # half the distance between two halfs, relative
FARTHER = 4.0  # times what FP16 explains: kernels sum in another order than the emulator


@dataclass(frozen=True, slots=True)
class IntermediateError:
    """One tensor between two kernels, against FP32: as the engine computed it and as FP16 is emulated."""

    layer: LayerName
    tensor: TensorName
    kernel: str
    engine: TensorError
    emulated: TensorError
    tactic: str = ""  # what the kernel runs, where the engine says it

    @property
    def is_farther(self) -> bool:
        """Whether the engine is farther off than the precision explains."""
        if self.engine.non_finite or self.emulated.non_finite:
            return self.engine.non_finite > self.emulated.non_finite
        return self.engine.max > FARTHER * max(self.emulated.max, self.engine.reference_max * HALF_STEP)
