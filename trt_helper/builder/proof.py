"""Prove for each pin, from TensorRT's description of the engine, whether it is computed in FP32.

The typed model only requests FP32; the compiler may ignore it without a message. TensorRT-RTX 1.7.1 rounds a Conv or
MatMul that stands alone between two casts back to FP16, weights included. The layer list states the types at a
kernel's inputs and outputs; the types inside a fused kernel come from the text in the engine, if it has any.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

from trt_helper.builder.engine_program import NO_TEXT, Program
from trt_helper.builder.kernel_precision import ABSENT, Claim, KernelPrecision, RequestedPrecision, kernel_precision
from trt_helper.builder.layer_info import EngineLayer, EngineTensor, float_types

PinState = Literal["honoured", "fused", "demoted", "gone", "unknown"]
# Operators that cost much in FP32; compilers undo their casts.
HEAVY = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})

# A pin in several engine layers has the worst of their states.
_WORST_FIRST: tuple[PinState, ...] = ("demoted", "fused", "unknown", "honoured")
_STATES: Mapping[str, PinState] = {"FP32": "honoured", "FP16": "demoted", "": "fused", ABSENT: "fused"}

_SHOWN = 4  # names in a list
# "__myl_CastMeanCast_myl0_3": a generated kernel's name spells its operations in order.
_SPELLED = re.compile(r"__myl_(?P<operations>(?:[A-Z][a-z0-9]*)+)_")


@dataclass(frozen=True, slots=True)
class PinProof:
    """The state of one pin and the reason for it.

    `inputs`, `weights` and `outputs` are the float types of the engine layers that name the pin. The states:

    - honoured: it is computed in FP32, according to the operand types of its engine layer or to the kernel's source
    - fused: it shares an engine layer with layers that are not pinned, and the types inside are not proven
    - demoted: it is computed in FP16
    - gone: no engine layer names it (it was folded, or it only moved values)
    - unknown: an engine layer names it, but TensorRT does not state the types
    """

    layer: str
    state: PinState
    engine_layers: tuple[str, ...]
    inputs: tuple[str, ...]
    weights: tuple[str, ...]
    outputs: tuple[str, ...]
    because: str

    @property
    def types(self) -> tuple[str, ...]:
        """The float types that those engine layers read, including weights, sorted."""
        return tuple(sorted({*self.inputs, *self.weights}))

    @property
    def proven(self) -> bool:
        """Whether the pin is proven to be computed in FP32."""
        return self.state == "honoured"


def proof_json(proof: PinProof) -> dict[str, Any]:
    """Return the proof of one pin as JSON values."""
    return {
        "layer": proof.layer,
        "state": proof.state,
        "engine_layers": list(proof.engine_layers),
        "inputs": list(proof.inputs),
        "weights": list(proof.weights),
        "outputs": list(proof.outputs),
        "evidence": proof.because,
    }


def prove(
    pins: Sequence[str] | Set[str],
    layers: Sequence[EngineLayer],
    requested: Mapping[str, RequestedPrecision],
    *,
    program: Program = NO_TEXT,
) -> tuple[PinProof, ...]:
    """Prove each pin against the engine.

    Args:
        pins: Names of the pinned layers.
        layers: The engine's layers.
        requested: ONNX node name -> what the typed model requests of it. A node that is missing here may be anything,
            so less can be proven.
        program: The text of the engine's kernels.

    Returns:
        One proof per pin, in the order of `pins`; sorted by name if `pins` is a set.
    """
    ordered = sorted(pins) if isinstance(pins, Set) else pins
    claim = Claim(layers, program, frozenset(pins), requested)
    return tuple(_proof(pin, claim) for pin in ordered)


def _proof(pin: str, claim: Claim) -> PinProof:
    engine_layers = claim.engine_layers(pin)
    if not engine_layers:
        return PinProof(pin, "gone", (), (), (), (), "no engine layer names it")
    heavy = pin in claim.requested and claim.requested[pin].op in HEAVY
    known = [
        (one, kernel_precision(pin, one, claim))
        for one in (_multiplying(engine_layers) if heavy else _computing(engine_layers))
    ]
    present = [(one, said) for one, said in known if not (said and said.precision == ABSENT)] or known
    judged = [(_judge_heavy if heavy else _judge_light)(one, claim, said) for one, said in present]
    state, because = min(judged, key=lambda one: _WORST_FIRST.index(one[0]))
    return PinProof(
        pin,
        state,
        tuple(one.name for one in engine_layers),
        _types(tensor for one in engine_layers for tensor in one.inputs),
        _types(tensor for one in engine_layers for tensor in one.weights),
        _types(tensor for one in engine_layers for tensor in one.outputs),
        because,
    )


def _multiplying(engine_layers: Sequence[EngineLayer]) -> Sequence[EngineLayer]:
    """Return the engine layers that multiply: those with weights, else those that are not generated kernels.

    A dynamic MatMul also names the `kgen` kernels that pad its inputs (seen on RTX 1.7.1).
    """
    weighted = [one for one in engine_layers if one.weights]
    return weighted or [one for one in engine_layers if one.kind != "kgen"] or engine_layers


def _computing(engine_layers: Sequence[EngineLayer]) -> Sequence[EngineLayer]:
    """Return the engine layers that do more than move values; all of them if none does.

    A sum, for example, is first cleared by a "Move" kernel.
    """
    return [one for one in engine_layers if _operations(one) != "Move"] or engine_layers


def _judge_heavy(one: EngineLayer, _: Claim, known: KernelPrecision | None) -> tuple[PinState, str]:
    """Judge a Conv, Gemm or MatMul by its kernel's text, else by its weights: FP32 weights mean FP32 arithmetic.

    A small product is a generated kernel (seen on RTX 1.4 and 1.7), which may cast its inputs.
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


def _judge_light(one: EngineLayer, claim: Claim, known: KernelPrecision | None) -> tuple[PinState, str]:
    """Judge any other pin by its kernel's text, else by the operand types and the kernel's name."""
    if known:
        return _STATES[known.precision], f"{one.name} ({one.kind}): {known.why}"
    types = one.operand_types
    where = f"{one.name} ({one.kind}) reads {_list(types)}"
    others = claim.unpinned(one)
    shared = f", together with {_list(others)}" if others else ""
    casts = "Cast" in _operations(one)
    if not types:
        return "unknown", f"{one.name} ({one.kind}) does not state its types"
    if types == {"FP32"} and "Cast" not in _operations(one).removesuffix("Cast"):
        return "honoured", where  # a cast at the very end follows all arithmetic
    if "FP32" not in types and not others and casts:
        return "honoured", f"{where} and casts inside: {_operations(one)}"  # nothing but the pin is there to cast
    if "FP32" in types or casts or (others and not _operations(one)):
        return "fused", f"{where}{shared}{_spelled(one) or '; the types inside cannot be seen'}"
    return "demoted", f"{where}{shared}"


def _operations(one: EngineLayer) -> str:
    """Return "CastMeanCast" for the generated kernel "__myl_CastMeanCast_myl0_3"; empty for other names."""
    found = _SPELLED.match(one.name)
    return found["operations"] if found else ""


def _spelled(one: EngineLayer) -> str:
    return f"; its operations are {_operations(one)}" if _operations(one) else ""


def _types(tensors: Iterable[EngineTensor]) -> tuple[str, ...]:
    return tuple(sorted(float_types(tensors)))


def _list(words: Iterable[str]) -> str:
    """Join with commas, at most `_SHOWN`; sets are sorted."""
    ordered = sorted(words) if isinstance(words, Set) else list(words)
    shown = ", ".join(ordered[:_SHOWN])
    return f"{shown} and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else shown
