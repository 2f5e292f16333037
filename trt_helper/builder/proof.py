"""What became of each pin in the engine, judged from the engine's own layer information.

A pin is a promise in the typed model; the compiler may break it without a word. TensorRT-RTX 1.7.1
rounds a Conv or MatMul that stands alone between two casts back to FP16, weights included.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from math import prod
from typing import Literal

from trt_helper.builder.layer_info import EngineLayer, float_types

PinState = Literal["honoured", "fused", "demoted", "gone", "unknown"]

# Worst first: a pin that ended in several engine layers is as good as the worst of them.
_WORST_FIRST: tuple[PinState, ...] = ("demoted", "fused", "unknown", "honoured")

# "__myl_CastMeanCast_myl0_3": a generated kernel's name spells its operations in order.
_SHOWN = 4
_SPELLED = re.compile(r"__myl_(?P<operations>(?:[A-Z][a-z0-9]*)+)_")


@dataclass(frozen=True, slots=True)
class PinProof:
    """The state of one pin and why it is believed.

    - honoured: the engine layer reads or holds it in FP32, or casts to FP32 inside itself
    - fused: it shares an engine layer with layers that are not pinned, and the types there do not tell
    - demoted: everything float that the engine layer reads is FP16
    - gone: no engine layer names it (folded, or moved without arithmetic)
    - unknown: the engine layer is there, but TensorRT does not state its types
    """

    layer: str
    state: PinState
    engine_layers: tuple[str, ...]
    types: tuple[str, ...]  # float types that those engine layers read, sorted
    evidence: str

    @property
    def proven(self) -> bool:
        return self.state == "honoured"


def prove(
    pins: Sequence[str] | Set[str],
    layers: Sequence[EngineLayer],
    heavy: frozenset[str],
    *,
    casts: frozenset[str] = frozenset(),
) -> tuple[PinProof, ...]:
    """Return one proof per pin, in the order given (by name for a set).

    `heavy` are the Conv, Gemm and MatMul pins: the type of their weights decides, of their inputs where
    they have no weights. `casts` are the Cast nodes of the typed model: without them a cast counts as
    a layer that is not pinned, so that a pin alone with its casts is called fused.
    """
    ordered = sorted(pins) if isinstance(pins, Set) else pins
    friends = frozenset(pins) | casts
    return tuple(_proof(pin, layers, friends, heavy=pin in heavy) for pin in ordered)


def _proof(pin: str, layers: Sequence[EngineLayer], friends: frozenset[str], *, heavy: bool) -> PinProof:
    holders = [one for one in layers if pin in one.onnx_layers]
    if not holders:
        return PinProof(pin, "gone", (), (), "no engine layer names it")
    if heavy:
        judged = [_heavy(one, friends) for one in _computing(holders)]
    else:
        judged = [_light(one, friends) for one in holders]
    state, evidence = min(judged, key=lambda one: _WORST_FIRST.index(one[0]))
    types = frozenset[str]().union(*(one.operand_types for one in holders))
    return PinProof(pin, state, tuple(one.name for one in holders), tuple(sorted(types)), evidence)


def _computing(holders: Sequence[EngineLayer]) -> Sequence[EngineLayer]:
    """Return the holders that multiply: those with weights, else those that are no generated kernel.

    A dynamic MatMul also names the `kgen` kernels that pad its inputs (seen on RTX 1.7.1).
    """
    weighted = [one for one in holders if one.weights]
    return weighted or [one for one in holders if one.kind != "kgen"] or holders


def _heavy(one: EngineLayer, friends: frozenset[str]) -> tuple[PinState, str]:
    """Judge by the weights: if they are FP32 so is the arithmetic, whatever was cast on the way in."""
    weights = _largest_types(one)
    types = weights or float_types(one.inputs)
    where = f"{one.name} ({one.kind}) {'holds weights of' if weights else 'reads'} {_list(types)}"
    if not types:
        return "unknown", f"{one.name} ({one.kind}) does not state its types"
    if "FP32" not in types:
        return "demoted", where
    if types == {"FP32"}:
        return "honoured", where
    return "fused", f"{where}, together with {_list(_others(one, friends))}"


def _largest_types(one: EngineLayer) -> frozenset[str]:
    """Return the types of the largest weights: a bias or a neighbour's scale must not decide."""
    sizes = {tensor: _elements(tensor.shape) for tensor in one.weights}
    largest = max(sizes.values(), default=0)
    return float_types(tensor for tensor, size in sizes.items() if size == largest)


def _elements(shape: tuple[int, ...]) -> int:
    return abs(prod(shape))


def _light(one: EngineLayer, friends: frozenset[str]) -> tuple[PinState, str]:
    """Judge by the border and the spelled name: what is inside a generated kernel cannot be read."""
    types = one.operand_types
    where = f"{one.name} ({one.kind}) reads {_list(types)}"
    others = _others(one, friends)
    company = f", together with {_list(others)}" if others else ""
    if not types:
        return "unknown", f"{one.name} ({one.kind}) does not state its types"
    if types == {"FP32"} and not (others and "Cast" in _operations(one).removesuffix("Cast")):
        return "honoured", where  # a cast at the very end comes after all arithmetic
    if types != {"FP32"} and not others and _casts_inside(one):
        return "honoured", f"{where} and casts inside: {_operations(one)}"
    if "FP32" in types or _casts_inside(one):
        return "fused", f"{where}{company}{_spelled(one)}"
    if others and not _operations(one):
        return "fused", f"{where}{company}; the types inside cannot be seen"
    return "demoted", f"{where}{company}"


def _operations(one: EngineLayer) -> str:
    """Return "CastMeanCast" for such a generated kernel; "" where the name spells nothing."""
    found = _SPELLED.match(one.name)
    return found["operations"] if found else ""


def _casts_inside(one: EngineLayer) -> bool:
    return "Cast" in _operations(one)


def _spelled(one: EngineLayer) -> str:
    return f"; its operations are {_operations(one)}" if _operations(one) else ""


def _others(one: EngineLayer, friends: frozenset[str]) -> tuple[str, ...]:
    """Return the ONNX layers in the same kernel that are neither pins nor casts."""
    return tuple(name for name in one.onnx_layers if name not in friends)


def _list(words: Iterable[str]) -> str:
    """Join with commas: sets sorted, sequences as they are, at most `_SHOWN`."""
    ordered = sorted(words) if isinstance(words, Set) else list(words)
    shown = ", ".join(ordered[:_SHOWN])
    return f"{shown} and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else shown
