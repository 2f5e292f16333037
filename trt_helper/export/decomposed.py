"""Find norms and GELUs that the exporter decomposed into several operators.

A square or an exponent that is a layer of its own is the most common FP16 overflow; within one operator, TensorRT
computes it in FP32.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from trt_helper.values import Layer

ROOTS = {"Sqrt", "Reciprocal"}
SHOWN = 4  # modules in a list
GELU = 20  # the opset that introduced Gelu
CUBIC = ({"Mul"}, {"Add"}, {"Mul"}, {"Pow", "Mul"})  # before a tanh, nearest first: k * (x + c * x ** 3)


def decomposed(layers: Iterable[Layer], opset: int) -> list[str]:
    """Return a warning each for decomposed norms, for decomposed GELUs, and for attention that is a single operator.

    Args:
        layers: The layers of the exported model, with their PyTorch modules.
        opset: The opset of the exported model.
    """
    layers = tuple(layers)
    by_name = {layer.name: layer for layer in layers}
    operators: dict[str, set[str]] = defaultdict(set)
    for layer in layers:
        operators[layer.module].add(layer.op)
    norms = [module for module, found in operators.items() if "ReduceMean" in found and found & ROOTS]
    gelus = list(dict.fromkeys(layer.module for layer in layers if _is_in_gelu(layer, by_name)))
    said = []
    if norms:
        said.append(
            f"norms come out in pieces, the commonest FP16 hazard: {_some(norms)}; "
            "trt-helper locate --cures puts them together again, and nn.LayerNorm stays whole"
        )
    if gelus:
        whole = "nn.GELU stays whole" if opset >= GELU else f"nn.GELU stays whole from --opset {GELU}"
        said.append(f"GELUs come out in pieces, a common FP16 hazard: {_some(gelus)}; {whole}")
    attention = [module for module, found in operators.items() if "Attention" in found]
    if attention:
        said.append(
            f"attention is one operator from --opset 23 on ({_some(attention)}), "
            "and TensorRT-RTX 1.7.1 builds it for some shapes only; --opset 22 writes it out"
        )
    return said


def _is_in_gelu(layer: Layer, by_name: Mapping[str, Layer]) -> bool:
    """Whether this is the erf of x erf(x) + x, or the tanh of its approximation, whose argument has a cube of x."""
    after = {by_name[name].op for name in layer.children}
    if layer.op not in ("Erf", "Tanh") or "Add" not in after:
        return False
    if not any(by_name[two].op == "Mul" for one in layer.children for two in by_name[one].children):
        return False
    if layer.op == "Erf":
        return True
    before: set[str] = {layer.name}
    ops: list[set[str]] = []
    for _ in range(len(CUBIC)):
        before = {parent for name in before for parent in by_name[name].parents}
        ops.append({by_name[name].op for name in before})
    return all(wanted & found for wanted, found in zip(CUBIC, ops, strict=True))


def _some(modules: list[str]) -> str:
    shown = ", ".join(module or "the model itself" for module in modules[:SHOWN])
    return shown + (f" and {len(modules) - SHOWN} more" if len(modules) > SHOWN else "")
