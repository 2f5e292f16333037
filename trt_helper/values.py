"""The frozen values that the rooms exchange, in the order in which data flows.

Nothing but the standard library is imported here.
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
"""Tensors by name. Floats of every precision are float32 arrays, of values that the precision can represent."""
Feed: TypeAlias = "Mapping[TensorName, Array]"
"""The inputs of one sample by name."""


class Role(Enum):
    """What a plan may do with a layer."""

    COMPUTE = "compute"  # has an FP16 and an FP32 form: may be pinned
    MOVEMENT = "movement"  # moves or picks values without arithmetic: follows the precision of what it moves
    FIXED = "fixed"  # never changed: integers, shapes, no FP16 form, or FP32 by the decision of the model's author


@dataclass(frozen=True, slots=True)
class Layer:
    """One ONNX node of the normalised main graph.

    Attributes:
        name: the node's name.
        op: the ONNX operator.
        role: what a plan may do with it.
        inputs: all tensors that it reads, with initializers and those that its subgraphs read.
        outputs: the tensors that it writes.
        parents: the layers that produce its inputs.
        children: the layers that consume its outputs.
        module: path of the PyTorch module that it came from; empty where the exporter did not write it.
    """

    name: LayerName
    op: str
    role: Role
    inputs: tuple[TensorName, ...]
    outputs: tuple[TensorName, ...]
    parents: tuple[LayerName, ...]
    children: tuple[LayerName, ...]
    module: str = ""


class ReducedPrecision(Enum):
    """A float type of 16 bits."""

    FP16 = "fp16"
    BF16 = "bf16"  # the range of FP32 with 8 bits of significand


class Reading(Enum):
    """What the kernels of an engine are taken to compute in half precision."""

    TYPICAL = "typical"  # what kernels were read to compute, see `emulator.lowering`
    EXACT = "exact"  # each layer in FP32, and also a chain of pointwise layers, which is rounded once
    ONE_STEP = "one-step"  # each layer in FP32, rounded once
    WORST = "worst"  # as typical, and products and sums are accumulated in half


READINGS = (Reading.TYPICAL, Reading.EXACT, Reading.WORST)
"""The readings that an answer is judged by."""


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


REWRITE_KINDS = ("pins", "constants", "norms", "logs", "rows", "bf16")


@dataclass(frozen=True, slots=True)
class Rewrite:
    """One rewrite of the graph.

    Attributes:
        kind: of `REWRITE_KINDS`.
        name: of the initializer or layer.
        op: the operator that a norm becomes, or the number that an epsilon is raised to; else empty.
    """

    kind: str
    name: str
    op: str = ""


class Statistic(str, Enum):
    """The statistic of a tensor's errors that is compared with the tolerance, as Polygraphy means it."""

    MAX = "max"
    MEAN = "mean"
    MEDIAN = "median"
    ELEMWISE = "elemwise"


@dataclass(frozen=True, slots=True)
class Tolerance:
    """The errors that are allowed: an output passes if stat(abs) <= atol or stat(rel) <= rtol.

    abs = |found - reference|, rel = abs / |reference|, as in Polygraphy. With ELEMWISE every element has to be within
    one of the two.

    Attributes:
        atol: absolute, in the output's own unit.
        rtol: relative to the reference.
        stat: the statistic that is compared.
        per_output: (atol, rtol) of single outputs.
    """

    atol: float = 1e-3
    rtol: float = 1e-3
    stat: Statistic = Statistic.MAX
    per_output: Mapping[TensorName, tuple[float, float]] = field(default_factory=dict)

    def of(self, output: TensorName) -> tuple[float, float]:
        """(atol, rtol) for this output."""
        return self.per_output.get(output, (self.atol, self.rtol))

    def times(self, factor: float) -> Tolerance:
        """The tolerance with every allowed error multiplied by `factor`."""
        per_output = {name: (factor * atol, factor * rtol) for name, (atol, rtol) in self.per_output.items()}
        return Tolerance(factor * self.atol, factor * self.rtol, self.stat, per_output)


@dataclass(frozen=True, slots=True)
class TensorError:
    """The error of one tensor against its reference; statistics over the elements that are finite in both.

    Attributes:
        name: the tensor's name.
        max: the largest absolute error; `mean` and `median` likewise, in the tensor's own unit.
        max_rel: the largest relative error; `mean_rel` and `median_rel` likewise.
        worst: index of the worst element; of the first non-finite one, if there is one.
        outside: the number of elements beyond both atol and rtol.
        non_finite: the number of elements that are NaN or infinite where the reference is not the same, or the reverse.
        total: the number of elements.
        reference_max: the largest finite magnitude of the reference.
        resized: in words, if the shape is not that of the reference: its size depends on values. All elements count as
            non-finite then.
    """

    name: TensorName
    max: float
    mean: float
    median: float
    max_rel: float
    mean_rel: float
    median_rel: float
    worst: tuple[int, ...]
    outside: int
    non_finite: int
    total: int
    reference_max: float = 0.0
    resized: str = ""

    @property
    def broken(self) -> str:
        """What no figure says: another size than the reference's, or how many elements are not finite; else empty."""
        return self.resized or (f"{self.non_finite} not finite" if self.non_finite else "")

    def passes(self, tolerance: Tolerance) -> bool:
        """Whether this tensor is within `tolerance`, with which `outside` must have been counted."""
        if self.non_finite:
            return False
        if tolerance.stat is Statistic.ELEMWISE:
            return self.outside == 0
        atol, rtol = tolerance.of(self.name)
        absolute = getattr(self, tolerance.stat.value)
        relative = getattr(self, f"{tolerance.stat.value}_rel")
        return bool(absolute <= atol or relative <= rtol)

    def error_ratio(self, tolerance: Tolerance) -> float:
        """The error over what is allowed: at most 1 passes, inf where an element is not finite."""
        if self.non_finite:
            return float("inf")
        if tolerance.stat is Statistic.ELEMWISE:
            return 2.0 * self.outside / max(self.total, 1) + (1.0 if self.outside else 0.0)
        atol, rtol = tolerance.of(self.name)
        absolute = getattr(self, tolerance.stat.value)
        relative = getattr(self, f"{tolerance.stat.value}_rel")
        return min(over(absolute, atol), over(relative, rtol))


def over(error: float, allowed: float) -> float:
    """An error over what is allowed; inf for an error where none is allowed."""
    if error == 0:
        return 0.0
    return error / allowed if allowed > 0 else float("inf")


class Verdict(Enum):
    """The result of a trial. It says something about its own plan only."""

    PASS = "pass"  # noqa: S105 - a verdict, not a password
    FAIL = "fail"
    UNRESOLVED = "unresolved"  # could not build, crashed, timed out, repeats disagree


DISAGREE = "repeats disagree"  # `Trial.why` begins with this where repeats gave different verdicts


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
class Operand:
    """One number that a layer computes an element of its output from.

    Attributes:
        exact: the number in FP32.
        reduced: the same in FP16.
        constant: whether it is a weight.
        mask: whether it hides an element: it is below FP16's range and comes from such a constant.
    """

    exact: float
    reduced: float
    constant: bool
    mask: bool


@dataclass(frozen=True, slots=True)
class WrongElement:
    """The element of a layer's output that shows best what FP16 does to the layer when its inputs are the reference's.

    Attributes:
        reference: in FP32.
        became: in FP16.
        operands: the floats that it is computed from in an elementwise layer; of a softmax the largest of the row.
        whole: whether it is a whole number beyond 2048, and the tensor holds only whole numbers.
        then: the layer that divides by it or takes its logarithm, maybe after a root, and which of both; empty if none
            does, or if the error is small beside the number or the epsilon that is added to it.
    """

    reference: float
    became: float
    operands: tuple[Operand, ...] = ()
    whole: bool = False
    then: str = ""


@dataclass(frozen=True, slots=True)
class LayerReport:
    """The errors of one layer under a plan, on its worst sample.

    Attributes:
        layer: the layer.
        accumulated: the error of its output in the trial, against the FP32 reference.
        isolated: the error of its output when it is fed with reference inputs: what the layer adds itself.
        overflow: elements that are finite in FP32 and that the layer itself makes infinite in FP16.
        underflow: elements that are not 0 in FP32 and that the layer itself makes 0 in FP16.
        read: the largest finite magnitude of the float tensors that it reads in FP32, without weights.
        written: the largest finite magnitude of the float tensors that it writes in FP32.
        weights_overflow: finite weights that FP16 makes infinite.
        weights_underflow: weights other than 0 that FP16 makes 0.
        first: the first element that goes wrong; None where plain figures say as much.
        reader: the layer that reads the output as positions or phases; empty if none does.
        cancelled_in: the layer that subtracts what comes of the output from a nearly equal number; empty if none does.
    """

    layer: Layer
    accumulated: TensorError
    isolated: TensorError
    overflow: int
    underflow: int
    read: float
    written: float
    weights_overflow: int
    weights_underflow: int
    first: WrongElement | None = None
    reader: LayerName = ""
    cancelled_in: LayerName = ""


HALF_STEP = 2.0**-11  # the largest relative error of rounding to FP16
FARTHER = 4.0  # an engine may be this many times as far off as emulated: its kernels sum in another order


@dataclass(frozen=True, slots=True)
class IntermediateError:
    """The errors of one tensor between two kernels of an engine, against FP32.

    Attributes:
        layer: the layer that produces the tensor.
        tensor: its ONNX name.
        kernel: the engine layer that writes it.
        engine: its error as the engine computed it.
        emulated: its error as the emulator computes FP16.
        tactic: the tactic of the kernel; empty where the engine does not tell.
    """

    layer: LayerName
    tensor: TensorName
    kernel: str
    engine: TensorError
    emulated: TensorError
    tactic: str = ""

    @property
    def is_farther(self) -> bool:
        """Whether the engine is farther off than the precision explains."""
        if self.engine.non_finite or self.emulated.non_finite:
            return self.engine.non_finite > self.emulated.non_finite
        return self.engine.max > FARTHER * max(self.emulated.max, self.engine.reference_max * HALF_STEP)
