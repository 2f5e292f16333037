"""Decide from the operations inside a kernel whether a pin is computed in FP32.

A fused program names the ONNX layers of each step, so its operand types decide. A generated kernel does not name
layers; there the calls in its source are counted, only calls of the kinds that the pin makes. The pin is kept if

- no more calls are FP16 than the unpinned layers of the kernel make, and
- at least as many calls are FP32 as the pins of the kernel make.

If the compiler undoes the casts around a pin, a call moves from the FP32 count to the FP16 count.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from math import inf

from trt_helper.builder.engine_program import Kernel, Operations, Program
from trt_helper.builder.kernel_source import ROUNDED
from trt_helper.builder.layer_info import EngineLayer, float_types

# ONNX operator -> the calls that TensorRT-RTX (1.4.0, 1.7.1) makes for it; "div mul" is one call of either
# kind. A quotient that is computed as a product with a reciprocal also calls "rcp".
_BY_NAME = ("Abs", "Add", "Ceil", "Cos", "Erf", "Exp", "Floor", "Log", "Max", "Min", "Mul", "Neg", "Round", "Sigmoid")
CALLS: Mapping[str, tuple[str, ...]] = {
    **{op: (op.lower(),) for op in (*_BY_NAME, "Sign", "Sin", "Sqrt", "Tan", "Tanh")},
    **dict.fromkeys(("GlobalAveragePool", "ReduceL1", "ReduceMean", "ReduceSum"), ("AddOp",)),
    **dict.fromkeys(("Elu", "PRelu", "LeakyRelu"), ("max min select", "mul")),
    "HardSigmoid": ("add", "div mul", "max", "min"),
    "HardSwish": ("add", "div mul", "max", "min", "mul"),
    **dict.fromkeys(("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"), ("eql gte gtr lt lte",)),
    "Clip": ("max", "min"),
    "CumSum": ("cumsum",),
    "Div": ("div mul",),
    "LayerNormalization": ("AddOp", "add", "mul"),
    "MatMul": ("AddOp", "mul"),
    "Pow": ("pow sqrt",),
    **{f"Pow{exponent}": ("mul",) * (exponent - 1) for exponent in (2, 3, 4)},
    "Reciprocal": ("rcp",),
    "ReduceL2": ("AddOp", "mul", "sqrt"),
    "GlobalMaxPool": ("MaxOp",),
    "ReduceMax": ("MaxOp",),
    "ReduceMin": ("MinOp",),
    "ReduceSumSquare": ("AddOp", "mul"),
    "Relu": ("max relu",),
    "Softmax": ("div mul", "exp", "sub"),
    "Sub": ("add sub",),
    "Sum": ("add",),
    "Where": ("select",),
    **dict.fromkeys(("Cast", "Concat", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape", "Slice"), ()),
    **dict.fromkeys(("Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"), ()),
}

# Operator -> calls that are FP32 even if the layer is FP16: (in the first kernel that names it, in the last one). The
# squares of a norm are FP32 in 1.7 and FP16 in 1.4, so they count as both; in 1.4 they hide the precision of a pin in
# the same kernel.
ALWAYS_FP32: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "LayerNormalization": (("AddOp", "AddOp", "sub", "mul"), ("add", "sqrt", "rcp", "mul")),
    "ReduceL2": (("mul",), ()),
    "ReduceSumSquare": (("mul",), ()),
}


@dataclass(frozen=True, slots=True)
class RequestedPrecision:
    """What the typed model requests of a layer.

    Attributes:
        op: The ONNX operator, or the one that the compiler makes of it (see `_operator`).
        half: It reads or writes FP16 or BF16.
        full: It reads or writes FP32.
        alone: It is FP32 and none of its neighbours is, so that all its inputs and outputs are rounded.
        formula: Equal for layers that compute the same, which the compiler may compute only once.
    """

    op: str
    half: bool = False
    full: bool = False
    alone: bool = False
    formula: str = ""


@dataclass(frozen=True, slots=True)
class Claim:
    """The requested precisions and the engine that is claimed to keep them.

    Attributes:
        layers: The engine's layers, in order.
        program: The text of the engine's kernels.
        pins: Names of the layers that the plan keeps in FP32.
        requested: ONNX node name -> what the typed model requests of it, Cast nodes included.
    """

    layers: Sequence[EngineLayer]
    program: Program
    pins: Set[str]
    requested: Mapping[str, RequestedPrecision]

    def calls(self, name: str) -> tuple[str, ...]:
        """Return the calls that TensorRT-RTX makes for this layer (see `CALLS`); empty if they are not known."""
        return CALLS.get(self.requested[name].op, ()) if name in self.requested else ()

    def is_unknown(self, name: str) -> bool:
        """Return whether this layer computes floats with calls that are not known."""
        if name not in self.requested:
            return True
        layer = self.requested[name]
        return (layer.half or layer.full) and layer.op not in CALLS

    def distinct(self, names: Iterable[str]) -> tuple[str, ...]:
        """Drop the layers that compute the same as another one: the compiler may compute it only once."""
        formulas = ((name, self.requested[name].formula if name in self.requested else "") for name in names)
        return tuple({(formula or name, name in self.pins): name for name, formula in formulas}.values())

    def engine_layers(self, name: str) -> list[EngineLayer]:
        """Return the engine layers that name an ONNX layer, in the engine's order."""
        return [layer for layer in self.layers if name in layer.onnx_layers]

    def unpinned(self, one: EngineLayer) -> tuple[str, ...]:
        """Return the ONNX layers in an engine layer that are neither pins nor casts."""
        return tuple(
            name
            for name in one.onnx_layers
            if name not in self.pins and not (name in self.requested and self.requested[name].op == "Cast")
        )


ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class KernelPrecision:
    """The precision that a kernel computes a pin in, and why.

    `precision` is FP32, FP16, "" if it cannot be determined, or ABSENT if the kernel computes nothing of the pin:
    engine layers also name ONNX layers that they only read from (seen on RTX 1.7.1).
    """

    precision: str
    why: str


def kernel_precision(pin: str, one: EngineLayer, claim: Claim) -> KernelPrecision | None:
    """Determine the precision that one engine layer computes a pin in.

    Args:
        pin: Name of the ONNX layer.
        one: An engine layer that names the pin.
        claim: The requested precisions and the engine.

    Returns:
        None if the engine has no text for this engine layer.
    """
    if one.kind == "runtime_fusion":
        return _in_steps(pin, claim.program)
    return _in_kernel(pin, one, claim)


def _in_steps(pin: str, program: Program) -> KernelPrecision | None:
    """Judge by the steps of a fused program that name the pin."""
    steps = [step for step in program.steps if pin in step.onnx_layers]
    types = frozenset[str]().union(*(step.types for step in steps))
    if not types:
        return None
    facts = (
        f"its step {' and '.join(dict.fromkeys(step.kind for step in steps))} works on {' and '.join(sorted(types))}"
    )
    return KernelPrecision(next(iter(types)) if len(types) == 1 else "", facts)


def _in_kernel(pin: str, one: EngineLayer, claim: Claim) -> KernelPrecision | None:
    """Judge by the source of a generated kernel; of several variants the worst counts."""
    kernels = [kernel for kernel in claim.program.kernels if _is(kernel, one)]
    if not kernels or not all(kernel.variants for kernel in kernels):
        return None
    if pin not in claim.requested or claim.requested[pin].op not in CALLS:
        return _uncounted(kernels, one)
    types = {dtype for kernel in kernels for ops in kernel.variants for _, dtype in ops}
    if types | one.operand_types | float_types(one.outputs) == {"FP32"}:
        return KernelPrecision("FP32", "nothing in it is less than FP32")
    expected = _expected(pin, one, claim)
    found = [_counted(ops, expected) for kernel in kernels for ops in kernel.variants]
    return min(found, key=lambda kernel_precision: ("FP16", "", "FP32", ABSENT).index(kernel_precision.precision))


def _uncounted(kernels: Sequence[Kernel], one: EngineLayer) -> KernelPrecision:
    """Judge a pin whose calls are not known, such as an LSTM.

    Any operation of the kernel may belong to it, so all of them must be FP32.
    """
    types = {dtype for kernel in kernels for ops in kernel.variants for _, dtype in ops} | one.operand_types
    if types == {"FP32"}:
        return KernelPrecision("FP32", "all that it reads and computes is FP32")
    return KernelPrecision(
        "", f"it works in {' and '.join(sorted(types))}, and what this layer computes there is not known"
    )


def _is(kernel: Kernel, one: EngineLayer) -> bool:
    return one.name.startswith(f"{kernel.name}_myl") and set(kernel.onnx_layers) == set(one.onnx_layers)


@dataclass(frozen=True, slots=True)
class _Expected:
    """How many calls of `kinds` the kernel makes if all its pins are kept.

    Attributes:
        kinds: The kinds of call that count.
        full: Calls that must be FP32.
        alone: Further calls that must be FP32, but may be rounded before and after.
        half: Most calls that may be FP16.
        unknown: A layer of the kernel whose calls are not known, if there is one.
    """

    kinds: frozenset[str]
    full: int
    alone: int
    half: float
    unknown: str


def _expected(pin: str, one: EngineLayer, claim: Claim) -> _Expected:
    """Count the calls that the kernel must make if all its pins are kept.

    `kinds` is extended until it is closed: where a layer makes one call of either of two kinds, both kinds count.
    """
    calls = {name: [frozenset(call.split()) for call in claim.calls(name)] for name in one.onnx_layers}
    kinds = frozenset[str]().union(*calls.get(pin, ()))
    while (closed := kinds.union(*(call for of in calls.values() for call in of if call & kinds))) != kinds:
        kinds = closed
    full, alone, half, unknown = 0, 0, 0.0, ""
    for name in claim.distinct(calls):
        count = sum(bool(call & kinds) for call in calls[name])
        if claim.is_unknown(name):
            half, unknown = inf, name
        elif claim.requested[name].half and name not in claim.pins:
            op = claim.requested[name].op
            early, late = ALWAYS_FP32.get(op, ((), ()))
            engine_layers = claim.engine_layers(name)
            first, last = engine_layers[0], engine_layers[-1]
            full += sum(kind in kinds for kind in (*(early if first is one else ()), *(late if last is one else ())))
            half += count + (op == "Div" and "rcp" in kinds) if last is one or not late else 0
        elif claim.requested[name].alone:
            alone += count
        elif claim.requested[name].full or name in claim.pins:
            full += count
    return _Expected(kinds, full, alone, half, unknown)


def _counted(ops: Operations, expected: _Expected) -> KernelPrecision:
    of_kinds = [(dtype, count) for (kind, dtype), count in ops.items() if kind in expected.kinds]
    if not of_kinds:
        return KernelPrecision(ABSENT, "its source computes nothing that this layer is known to compute")
    if {dtype for _, dtype in ops} == {"FP32"}:
        return KernelPrecision("FP32", "all its operations are FP32")
    full, rounded, half = (
        sum(count for dtype, count in of_kinds if dtype in wanted)
        for wanted in (("FP32",), (ROUNDED,), ("FP16", "BF16"))
    )
    kinds = ", ".join(sorted({kind for kind, _ in ops if kind in expected.kinds}))
    facts = f"its source computes {kinds} {_times(full + rounded)} in FP32"
    facts += f" ({rounded} of them rounded before and after)" if rounded else ""
    reduced = " or ".join(sorted({dtype for dtype, _ in of_kinds} - {"FP32", ROUNDED}))
    facts += f" and {_times(half)} in {reduced}" if half else " only"
    if not full + rounded and half <= expected.half < inf:
        return KernelPrecision(ABSENT, f"{facts}, all of it for layers that are not pinned")
    if expected.half == inf and half:
        return KernelPrecision("", f"{facts}; what {expected.unknown!r} computes there is not known")
    if full >= expected.full and full + rounded >= expected.full + expected.alone and half <= expected.half:
        return KernelPrecision("FP32", f"{facts}, as asked for" if half else facts)
    requested = (
        f"{expected.full + expected.alone} in FP32 and at most {expected.half:g} in {reduced or 'FP16'} were asked for"
    )
    return KernelPrecision("" if full + rounded else "FP16", f"{facts}, where {requested}")


def _times(number: int) -> str:
    return {0: "never", 1: "once", 2: "twice"}.get(number, f"{number} times")
