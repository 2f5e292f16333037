"""A graph, the shapes of its tensors and a plan go in; an estimate of the time on a named GPU comes out.

An estimate, not a measurement. A product, a pooling or a reduction is a kernel: it takes as long as its
arithmetic at the GPU's peak or its traffic at the GPU's bandwidth, whichever is longer (the roofline model,
Williams, Waterman and Patterson 2009). It reads each tensor in the type that it is stored in: TensorRT-RTX takes
a cast into the kernel (`CorrCastRelu`). Everything else is fused into a kernel beside it and free, except where
precision changes: that ends the fusion, and the tensor goes to memory once and back. Kernels reach only a
part of either peak and launches take time, so ratios say more than seconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from trt_helper.onnx_model.graph import Graph
from trt_helper.onnx_model.precision import Precisions, assign
from trt_helper.values import Layer, LayerName, Plan, Role, TensorName

Shapes = Mapping[TensorName, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Gpu:
    """Peaks from the maker's data sheet, without sparsity: multiply-adds count as two operations."""

    name: str
    half: float  # operations per second, FP16 or BF16 tensor cores that accumulate in FP32
    single: float  # operations per second, FP32 without TF32
    bandwidth: float  # bytes per second


GPUS = {
    gpu.name.lower(): gpu
    for gpu in (
        Gpu("T4", 65e12, 8.1e12, 320e9),
        Gpu("A10", 125e12, 31.2e12, 600e9),
        Gpu("L4", 121e12, 30.3e12, 300e9),
        Gpu("A100", 312e12, 19.5e12, 2039e9),
        Gpu("H100", 989e12, 67e12, 3350e9),
        Gpu("RTX4090", 165e12, 82.6e12, 1008e9),
    )
}
USUAL = GPUS["l4"]
NARROW, SINGLE = 2, 4  # bytes of an element
PRODUCTS = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "Einsum"))
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def seconds(graph: Graph, plan: Plan, shapes: Shapes, gpu: Gpu = USUAL) -> float:
    """Estimated time of one inference under `plan`; `shapes` are those of every tensor, weights too."""
    precisions = assign(graph, plan)
    return sum(_seconds(graph, layer, precisions, shapes, gpu) for layer in graph.layers)


def prices(graph: Graph, shapes: Shapes, gpu: Gpu = USUAL) -> dict[LayerName, float]:
    """What pinning each layer alone would add to the time of one inference, in seconds."""
    plain = assign(graph, Plan())
    layers = {layer.name: layer for layer in graph.layers}
    usual = {name: _seconds(graph, layer, plain, shapes, gpu) for name, layer in layers.items()}
    found = {}
    for name in graph.candidates:
        outputs = layers[name].outputs
        pinned = Precisions(
            {other: kind for other, kind in plain.layers.items() if other != name},
            {tensor: kind for tensor, kind in plain.tensors.items() if tensor not in outputs},
        )
        near = (name, *layers[name].children)
        found[name] = sum(_seconds(graph, layers[other], pinned, shapes, gpu) - usual[other] for other in near)
    return found


def _seconds(graph: Graph, layer: Layer, precisions: Precisions, shapes: Shapes, gpu: Gpu) -> float:
    reduced, stored, weights = precisions.layers.get(layer.name), precisions.tensors, graph.model.graph.initializers
    width = NARROW if reduced else SINGLE
    if not _is_kernel(layer):
        broken = [name for name in layer.inputs if name not in weights and stored.get(name) is not reduced]
        return (NARROW + SINGLE) * _elements(broken, shapes) / gpu.bandwidth if layer.role is Role.COMPUTE else 0.0
    moved = width * _elements((*layer.outputs, *(name for name in layer.inputs if name in weights)), shapes)
    for name in layer.inputs:
        moved += 0 if name in weights else (NARROW if name in stored else SINGLE) * _elements((name,), shapes)
    peak = gpu.half if reduced and layer.op in PRODUCTS else gpu.single
    return max(operations(graph, layer, shapes) / peak, moved / gpu.bandwidth)


def _is_kernel(layer: Layer) -> bool:
    """Whether the layer is one by itself; what is not is fused into one beside it."""
    return layer.op in PRODUCTS or layer.op.startswith("Reduce") or "Pool" in layer.op or "Norm" in layer.op


def _elements(names: Iterable[TensorName], shapes: Shapes) -> int:
    return sum(math.prod(shapes[name]) for name in names if name in shapes)


def operations(graph: Graph, layer: Layer, shapes: Shapes) -> float:
    """Arithmetic operations of one layer; a multiply-add is two, a pointwise function one for each element."""
    node = graph.nodes[layer.name]
    read = [shapes.get(value.name or "", ()) if value is not None else () for value in node.inputs]
    written = _elements(layer.outputs, shapes)
    if layer.op in ("Conv", "ConvTranspose"):
        spread = written if layer.op == "Conv" else math.prod(read[0])
        return 2.0 * spread * math.prod(read[1][1:])
    if layer.op in ("MatMul", "Gemm", "Einsum"):
        transposed = layer.op == "Gemm" and (given := node.attributes.get("transA")) is not None and given.as_int()
        return 2.0 * written * (read[0][0 if transposed else -1] if read[0] else 1)
    if layer.op in GATES:
        steps = math.prod(read[0][:2])
        return 2.0 * steps * GATES[layer.op] * math.prod(read[2]) + 2.0 * steps * math.prod(read[1])
    if layer.role is Role.MOVEMENT:
        return 0.0
    return float(max(written, *map(math.prod, read), 0))
