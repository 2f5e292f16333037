"""The layers of an exported model go in; norms and GELUs that the exporter took to pieces come out.

A square or an exponent that stands by itself is what FP16 overflows in most often; inside one operator, TensorRT
computes it in FP32.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from trt_helper.values import Layer

ROOTS = {"Sqrt", "Reciprocal"}
SHOWN = 4
GELU = 20  # the opset in which it appeared


def decomposed(layers: Iterable[Layer], opset: int) -> list[str]:
    """What to tell: a sentence each for norms and GELUs in pieces, and for attention that is in none."""
    operators: dict[str, set[str]] = defaultdict(set)
    for layer in layers:
        operators[layer.module].add(layer.op)
    norms = [module for module, found in operators.items() if "ReduceMean" in found and found & ROOTS]
    gelus = [module for module, found in operators.items() if "Erf" in found or {"Tanh", "Pow"} <= found]
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


def _some(modules: list[str]) -> str:
    shown = ", ".join(module or "the model itself" for module in modules[:SHOWN])
    return shown + (f" and {len(modules) - SHOWN} more" if len(modules) > SHOWN else "")
