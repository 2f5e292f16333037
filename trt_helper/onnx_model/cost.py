"""Estimate the time of one inference on a named GPU, from the graph, the shapes of its tensors and a plan.

This is an estimate, not a measurement. It uses the roofline model (Williams, Waterman and Patterson 2009): a kernel
takes as long as its arithmetic at the GPU's peak, or its memory traffic at the GPU's bandwidth, whichever is longer.

- A product, a pooling, a normalisation or a reduction is a kernel. It reads each tensor in the type that the tensor
  is stored in, because TensorRT-RTX fuses a cast into the kernel (`CorrCastRelu`).
- Every other layer is fused into a neighbouring kernel and costs nothing, except where precision changes: that ends
  the fusion, and the tensor is written to memory and read back once.

Real kernels reach only a part of either peak, and launches take time. So ratios of these estimates mean more than the
seconds.
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
    """The peaks in the manufacturer's data sheet, without sparsity. A multiply-add counts as two operations."""

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
USUAL = GPUS["l4"]  # the default
REDUCED, SINGLE = 2, 4  # bytes of an element in FP16 or BF16, and in FP32
PRODUCTS = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "Einsum"))
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def seconds(graph: Graph, plan: Plan, shapes: Shapes, gpu: Gpu = USUAL) -> float:
    """The estimated time of one inference under `plan`, in seconds.

    Args:
        graph: The graph.
        plan: The layers in FP32 and in BF16. All others run in FP16.
        shapes: Of every tensor, weights included, for the sample to estimate: `Emulator.shapes`.
        gpu: The GPU to estimate for.
    """
    precisions = assign(graph, plan)
    return sum(_seconds(graph, layer, precisions, shapes, gpu) for layer in graph.layers)


@dataclass(frozen=True, slots=True)
class Estimate:
    """Estimated seconds of one inference on a GPU: everything in FP32, everything in FP16, and with a plan."""

    gpu: str
    fp32: float
    fp16: float
    plan: float


def estimate(graph: Graph, plan: Plan, shapes: Shapes, gpu: Gpu = USUAL) -> Estimate:
    """Estimate what a plan costs.

    Args:
        graph: the model.
        plan: the plan.
        shapes: the shape of every tensor, weights included.
        gpu: the GPU to estimate for.
    """
    plans = (graph.all_pinned(), Plan(), plan)
    return Estimate(gpu.name, *(seconds(graph, some, shapes, gpu) for some in plans))


def pin_costs(graph: Graph, shapes: Shapes, gpu: Gpu = USUAL) -> dict[LayerName, float]:
    """The estimated time, in seconds, that pinning each layer alone would add to one inference with all in FP16.

    Args:
        graph: The graph. Its candidates are priced.
        shapes: Of every tensor, weights included: `Emulator.shapes`.
        gpu: The GPU to estimate for.
    """
    all_reduced = assign(graph, Plan())
    layers = {layer.name: layer for layer in graph.layers}
    unpinned = {name: _seconds(graph, layer, all_reduced, shapes, gpu) for name, layer in layers.items()}
    found = {}
    for name in graph.candidates:
        outputs = layers[name].outputs
        pinned = Precisions(
            {other: kind for other, kind in all_reduced.layers.items() if other != name},
            {tensor: kind for tensor, kind in all_reduced.tensors.items() if tensor not in outputs},
        )
        affected = (name, *layers[name].children)
        found[name] = sum(_seconds(graph, layers[other], pinned, shapes, gpu) - unpinned[other] for other in affected)
    return found


def _seconds(graph: Graph, layer: Layer, precisions: Precisions, shapes: Shapes, gpu: Gpu) -> float:
    reduced, stored, weights = precisions.layers.get(layer.name), precisions.tensors, graph.model.graph.initializers
    width = REDUCED if reduced else SINGLE
    if not _is_kernel(layer):
        cast = [name for name in layer.inputs if name not in weights and stored.get(name) is not reduced]
        return (REDUCED + SINGLE) * _elements(cast, shapes) / gpu.bandwidth if layer.role is Role.COMPUTE else 0.0
    traffic = width * _elements((*layer.outputs, *(name for name in layer.inputs if name in weights)), shapes)
    for name in layer.inputs:
        traffic += 0 if name in weights else (REDUCED if name in stored else SINGLE) * _elements((name,), shapes)
    peak = gpu.half if reduced and layer.op in PRODUCTS else gpu.single
    return max(operations(graph, layer, shapes) / peak, traffic / gpu.bandwidth)


def _is_kernel(layer: Layer) -> bool:
    """Whether the layer is a kernel by itself. Any other layer is fused into a kernel."""
    return layer.op in PRODUCTS or layer.op.startswith("Reduce") or "Pool" in layer.op or "Norm" in layer.op


def _elements(names: Iterable[TensorName], shapes: Shapes) -> int:
    return sum(math.prod(shapes[name]) for name in names if name in shapes)


def operations(graph: Graph, layer: Layer, shapes: Shapes) -> float:
    """The number of arithmetic operations of one layer.

    A multiply-add counts as two operations, a pointwise function as one per element, a movement layer as none.
    """
    node = graph.nodes[layer.name]
    read = [shapes.get(value.name or "", ()) if value is not None else () for value in node.inputs]
    written = _elements(layer.outputs, shapes)
    if layer.op in ("Conv", "ConvTranspose"):
        positions = written if layer.op == "Conv" else math.prod(read[0])
        return 2.0 * positions * math.prod(read[1][1:])
    if layer.op in ("MatMul", "Gemm", "Einsum"):
        transposed = layer.op == "Gemm" and (given := node.attributes.get("transA")) is not None and given.as_int()
        return 2.0 * written * (read[0][0 if transposed else -1] if read[0] else 1)
    if layer.op in GATES:
        steps = math.prod(read[0][:2])
        return 2.0 * steps * GATES[layer.op] * math.prod(read[2]) + 2.0 * steps * math.prod(read[1])
    if layer.role is Role.MOVEMENT:
        return 0.0
    return float(max(written, *map(math.prod, read), 0))
