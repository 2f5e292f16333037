"""What became of each pin in the engine, judged from what the engine says of itself.

A pin is a promise in the typed model; the compiler may break it without a word. TensorRT-RTX 1.7.1 rounds a
Conv or MatMul that stands alone between two casts back to FP16, weights included. The layer list shows the
types at a kernel's border; what is inside a fused kernel is read from the engine's text, where it holds any.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from math import prod
from typing import Literal

from trt_helper.builder.engine_program import NO_TEXT, Program
from trt_helper.builder.kernel_precision import ABSENT, Claim, KernelPrecision, kernel_precision
from trt_helper.builder.layer_info import EngineLayer, EngineTensor, float_types
from trt_helper.builder.requested_precision import RequestedPrecision

PinState = Literal["honoured", "fused", "demoted", "gone", "unknown"]
HEAVY = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})

# Worst first: a pin that ended in several engine layers is as good as the worst of them.
_WORST_FIRST: tuple[PinState, ...] = ("demoted", "fused", "unknown", "honoured")
_STATES: Mapping[str, PinState] = {"FP32": "honoured", "FP16": "demoted", "": "fused", ABSENT: "fused"}

# "__myl_CastMeanCast_myl0_3": a generated kernel's name spells its operations in order.
_SHOWN = 4
_SPELLED = re.compile(r"__myl_(?P<operations>(?:[A-Z][a-z0-9]*)+)_")


@dataclass(frozen=True, slots=True)
class PinProof:
    """The state of one pin and why it is believed; the float types are those at the border of its engine layers.

    - honoured: it is computed in FP32: the engine layer reads or holds it so, or its source says so
    - fused: it shares an engine layer with layers that are not pinned, and what is inside is not proven
    - demoted: it is computed in FP16
    - gone: no engine layer names it (folded, or moved without arithmetic)
    - unknown: the engine layer is there, but TensorRT does not state its types
    """

    layer: str
    state: PinState
    engine_layers: tuple[str, ...]
    inputs: tuple[str, ...]
    weights: tuple[str, ...]
    outputs: tuple[str, ...]
    evidence: str

    @property
    def types(self) -> tuple[str, ...]:
        """Float types that those engine layers read, weights included, sorted."""
        return tuple(sorted({*self.inputs, *self.weights}))

    @property
    def proven(self) -> bool:
        return self.state == "honoured"


def prove(
    pins: Sequence[str] | Set[str],
    layers: Sequence[EngineLayer],
    requested: Mapping[str, RequestedPrecision],
    *,
    program: Program = NO_TEXT,
) -> tuple[PinProof, ...]:
    """Return one proof per pin, in the order given (by name for a set).

    `layers` and `program` are what the engine says; `asked` is what the typed model that it was built from
    says of each node. A node that `asked` lacks may be anything: less is proven then.
    """
    ordered = sorted(pins) if isinstance(pins, Set) else pins
    claim = Claim(layers, program, frozenset(pins), requested)
    return tuple(_proof(pin, claim) for pin in ordered)


def _proof(pin: str, claim: Claim) -> PinProof:
    holders = claim.holders(pin)
    if not holders:
        return PinProof(pin, "gone", (), (), (), (), "no engine layer names it")
    heavy = pin in claim.requested and claim.requested[pin].op in HEAVY
    known = [
        (one, kernel_precision(pin, one, claim)) for one in (_multiplying(holders) if heavy else _computing(holders))
    ]
    there = [(one, said) for one, said in known if not (said and said.precision == ABSENT)] or known
    judged = [(_heavy if heavy else _light)(one, claim, said) for one, said in there]
    state, evidence = min(judged, key=lambda one: _WORST_FIRST.index(one[0]))
    return PinProof(
        pin,
        state,
        tuple(one.name for one in holders),
        _types(tensor for one in holders for tensor in one.inputs),
        _types(tensor for one in holders for tensor in one.weights),
        _types(tensor for one in holders for tensor in one.outputs),
        evidence,
    )


def _multiplying(holders: Sequence[EngineLayer]) -> Sequence[EngineLayer]:
    """Return the holders that multiply: those with weights, else those that are no generated kernel.

    A dynamic MatMul also names the `kgen` kernels that pad its inputs (seen on RTX 1.7.1).
    """
    weighted = [one for one in holders if one.weights]
    return weighted or [one for one in holders if one.kind != "kgen"] or holders


def _computing(holders: Sequence[EngineLayer]) -> Sequence[EngineLayer]:
    """Return the holders that do more than move values, all if none does (a sum is cleared by a "Move" first)."""
    return [one for one in holders if _operations(one) != "Move"] or holders


def _heavy(one: EngineLayer, _: Claim, known: KernelPrecision | None) -> tuple[PinState, str]:
    """Judge by the inside; where it says nothing, by the weights: if they are FP32 so is the arithmetic.

    A small product is a generated kernel (seen on RTX 1.4 and 1.7), which may cast what it reads.
    """
    weights = _largest_types(one)
    types = weights or float_types(one.inputs)
    where = f"{one.name} ({one.kind})"
    if known and (known.precision or weights != {"FP32"}):
        return _STATES[known.precision], f"{where}: {known.why}"
    if not types:
        return "unknown", f"{where} does not state its types"
    state: PinState = "demoted" if "FP32" not in types else "honoured" if types == {"FP32"} else "fused"
    return state, f"{where} {'holds weights of' if weights else 'reads'} {_list(types)}"


def _largest_types(one: EngineLayer) -> frozenset[str]:
    """Return the types of the largest weights: a bias or a neighbour's scale must not decide."""
    sizes = {tensor: abs(prod(tensor.shape)) for tensor in one.weights}
    largest = max(sizes.values(), default=0)
    return float_types(tensor for tensor, size in sizes.items() if size == largest)


def _light(one: EngineLayer, claim: Claim, known: KernelPrecision | None) -> tuple[PinState, str]:
    """Judge by what the engine says of the inside, and without that by the border and the spelled name."""
    if known:
        return _STATES[known.precision], f"{one.name} ({one.kind}): {known.why}"
    types = one.operand_types
    where = f"{one.name} ({one.kind}) reads {_list(types)}"
    others = claim.beside(one)
    company = f", together with {_list(others)}" if others else ""
    casts = "Cast" in _operations(one)
    if not types:
        return "unknown", f"{one.name} ({one.kind}) does not state its types"
    if types == {"FP32"} and "Cast" not in _operations(one).removesuffix("Cast"):
        return "honoured", where  # a cast at the very end comes after all arithmetic
    if "FP32" not in types and not others and casts:
        return "honoured", f"{where} and casts inside: {_operations(one)}"  # its own: there is nothing else to cast
    if "FP32" in types or casts or (others and not _operations(one)):
        return "fused", f"{where}{company}{_spelled(one) or '; the types inside cannot be seen'}"
    return "demoted", f"{where}{company}"


def _operations(one: EngineLayer) -> str:
    """Return "CastMeanCast" for such a generated kernel; "" where the name spells nothing."""
    found = _SPELLED.match(one.name)
    return found["operations"] if found else ""


def _spelled(one: EngineLayer) -> str:
    return f"; its operations are {_operations(one)}" if _operations(one) else ""


def _types(tensors: Iterable[EngineTensor]) -> tuple[str, ...]:
    return tuple(sorted(float_types(tensors)))


def _list(words: Iterable[str]) -> str:
    """Join with commas: sets sorted, sequences as they are, at most `_SHOWN`."""
    ordered = sorted(words) if isinstance(words, Set) else list(words)
    shown = ", ".join(ordered[:_SHOWN])
    return f"{shown} and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else shown
