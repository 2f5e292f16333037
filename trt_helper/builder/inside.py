"""A pin and the operations inside its kernel go in; whether the pin is computed in FP32 comes out.

A fused program names the ONNX layer of each step. A generated kernel does not: there the calls are counted. Of
the kinds that a pin calls, no more may be FP16 than the layers beside the pins account for, and at least as many
must be FP32 as there are pins. Undoing the casts of a pin moves a call from the one count to the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

from trt_helper.builder.layer_info import EngineLayer
from trt_helper.builder.program import Kernel, Operations, Program

# ONNX operator -> the calls of which TensorRT-RTX (1.4.0, 1.7.1) makes at least one for it. In FP16 it makes
# at most one of each: what a LayerNormalization or a sum does besides runs in FP32 anyway.
_ONE_CALL = "Abs Add Ceil Cos Erf Exp Floor Log Mul Neg Round Sigmoid Sign Sin Sqrt Sub Tan Tanh Max Min".split()
_TOTAL = frozenset({"AddOp"})
CALLS: Mapping[str, frozenset[str]] = {
    **{op: frozenset({op.lower()}) for op in _ONE_CALL},
    **dict.fromkeys(("GlobalAveragePool", "ReduceL1", "ReduceMean", "ReduceSum", "ReduceSumSquare"), _TOTAL),
    "Clip": frozenset({"max", "min"}),
    "CumSum": frozenset({"cumsum"}),
    "Div": frozenset({"div", "mul"}),
    "LayerNormalization": _TOTAL | {"add", "mul"},
    "Pow": frozenset({"mul", "pow", "sqrt"}),
    "Reciprocal": frozenset({"div"}),
    "ReduceL2": _TOTAL | {"sqrt"},
    "ReduceMax": frozenset({"MaxOp"}),
    "ReduceMin": frozenset({"MinOp"}),
    "Relu": frozenset({"max", "relu"}),
    "Softmax": frozenset({"div", "exp", "mul", "sub"}),
    "Sum": frozenset({"add"}),
}
NO_CALLS = frozenset({"Cast", "Concat", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape", "Slice"}) | {
    "Split",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
}


@dataclass(frozen=True, slots=True)
class Asked:
    """What the typed model asks of a layer: its operator, and whether it reads or writes FP16."""

    op: str
    half: bool


@dataclass(frozen=True, slots=True)
class Inside:
    """`precision` is "FP32", "FP16", or "" where it cannot be told; `why` says what shows it."""

    precision: str
    why: str


def in_steps(pin: str, program: Program) -> Inside | None:
    """Judge a pin by the step of a fused program that names it; None where no step does."""
    steps = [step for step in program.steps if pin in step.onnx_layers]
    types = frozenset[str]().union(*(step.types for step in steps))
    if not types:
        return None
    said = f"its step {', '.join(dict.fromkeys(step.kind for step in steps))} works on {' and '.join(sorted(types))}"
    return Inside(types.pop() if len(types) == 1 else "", said) if False else Inside(_only(types), said)


def _only(types: Set[str]) -> str:
    return next(iter(types)) if len(types) == 1 else ""


def in_kernel(
    pin: str, one: EngineLayer, pins: Set[str], asked: Mapping[str, Asked], layers: Sequence[EngineLayer], program: Program
) -> Inside | None:
    """Judge a pin by the source of its generated kernel; None where the engine holds no such source."""
    kernels = [kernel for kernel in program.kernels if _is(kernel, one)]
    if not kernels or not all(kernel.variants for kernel in kernels):
        return None
    calls = CALLS.get(asked[pin].op, frozenset()) if pin in asked else frozenset()
    with_pin = [name for name in one.onnx_layers if name in pins and calls & _calls(name, asked)]
    beside = [name for name in one.onnx_layers if name not in pins and _may_call(name, one, calls, asked, layers)]
    found = [_counted(ops, calls, len(with_pin), beside) for kernel in kernels for ops in kernel.variants]
    return min(found, key=lambda inside: ("FP16", "", "FP32").index(inside.precision))


def _is(kernel: Kernel, one: EngineLayer) -> bool:
    return one.name.startswith(f"{kernel.name}_myl") and set(kernel.onnx_layers) == set(one.onnx_layers)


def _calls(name: str, asked: Mapping[str, Asked]) -> frozenset[str]:
    return CALLS.get(asked[name].op, frozenset()) if name in asked else frozenset()


def _may_call(
    name: str, one: EngineLayer, calls: Set[str], asked: Mapping[str, Asked], layers: Sequence[EngineLayer]
) -> bool:
    """Whether an unpinned layer may make one of `calls` in FP16 here; unknown operators may make any.

    A layer that goes on in a later kernel ends there, with the scale and bias that are its FP16 part.
    """
    if name not in asked or asked[name].op in NO_CALLS or not asked[name].half:
        return name not in asked
    last = [layer for layer in layers if name in layer.onnx_layers][-1]
    if asked[name].op not in CALLS:
        return True
    return bool(calls & _calls(name, asked)) and last is one


def _counted(ops: Operations, calls: Set[str], pins: int, beside: Sequence[str]) -> Inside:
    half = {kind: count for (kind, dtype), count in ops.items() if dtype != "FP32"}
    full = {kind: count for (kind, dtype), count in ops.items() if dtype == "FP32"}
    if full and not half:
        return Inside("FP32", "all its operations are FP32")
    if half and not full:
        return Inside("FP16", "all its operations are FP16")
    if not calls:
        return Inside("", "it is not known which of its operations are this layer's")
    here, low = (sum(count for kind, count in of.items() if kind in calls) for of in (full, half))
    said = f"{here} FP32 and {low} FP16 of {', '.join(sorted(calls))}"
    if here and not low:
        return Inside("FP32", said)
    if low and not here:
        return Inside("FP16", said)
    if low > len(beside):
        return Inside("FP16", f"{said}, where at most {len(beside)} FP16 were asked for")
    if here < pins:
        return Inside("FP16", f"{said}, where {pins} FP32 were asked for")
    return Inside("FP32", f"{said}, of which the {len(beside)} FP16 layers account for FP16")
