"""Derive the precision of every layer and tensor from a plan.

Only this module knows the rules. The renderer places casts by it and the emulator rounds by it, so the emulated model
is the model that is built.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from trt_helper.onnx_model.float_types import REDUCED
from trt_helper.onnx_model.graph import Graph
from trt_helper.onnx_model.roles import SHAPE_READING
from trt_helper.values import Layer, LayerName, Plan, ReducedPrecision, Role, TensorName


@dataclass(frozen=True, slots=True)
class Precisions:
    """The layers and tensors with reduced precision under a plan.

    Float tensors that are not listed are FP32. Initializers are never listed: they have the precision of their
    consumer, and exist twice if their consumers differ.
    """

    layers: Mapping[LayerName, ReducedPrecision]  # layers that read and write FP16 or BF16
    tensors: Mapping[TensorName, ReducedPrecision]  # tensors that are stored in FP16 or BF16


def assign(graph: Graph, plan: Plan) -> Precisions:
    """The precision of every layer and tensor of `graph` under `plan`.

    A layer that computes has the precision in the plan, else FP16. Rounding and moving commute, so a movement layer is
    FP16 unless that would lose digits that a consumer uses: it stays FP32 or BF16 only if it reads a tensor that is
    not FP16 and some consumer of its output, directly or through movement layers, is not FP16. A layer that picks by
    comparing (TopK, ArgMax, a cast to integers) reads FP32 whenever its input is FP32.
    """
    wanted = _wanted_above_fp16(graph, plan)
    layers: dict[LayerName, ReducedPrecision] = {}
    inputs = {value.name for value in graph.inputs if value.name}
    tensors = {name: REDUCED[dtype] for name, dtype in graph.io_types.items() if name in inputs and dtype in REDUCED}
    for layer in graph.layers:
        kind: ReducedPrecision | None = ReducedPrecision.FP16
        if layer.role is Role.FIXED or layer.name in plan.fp32:
            continue
        if layer.name in plan.bf16:
            kind = ReducedPrecision.BF16
        elif layer.role is Role.MOVEMENT:
            as_stored = layer.name in graph.picking or layer.op in SHAPE_READING
            keeps = as_stored or any(name in wanted for name in layer.outputs)
            if keeps and _reads_above_fp16(graph, layer, tensors):
                is_bf16 = not as_stored and layer.name in graph.takes_bf16 and _reads_only_bf16(graph, layer, tensors)
                kind = ReducedPrecision.BF16 if is_bf16 else None
        if kind is not None:
            layers[layer.name] = kind
            tensors.update((layer.outputs[index], kind) for index in graph.ports[layer.name].outputs)
    return Precisions(layers, tensors)


def _moved(graph: Graph, layer: Layer) -> list[ir.Value]:
    """The tensors and initializers that a movement layer moves."""
    moved = (graph.nodes[layer.name].inputs[index] for index in graph.ports[layer.name].inputs)
    return [value for value in moved if value is not None]


def _reads_above_fp16(graph: Graph, layer: Layer, tensors: Mapping[TensorName, ReducedPrecision]) -> bool:
    """Whether FP16 would change a moved value: a tensor that is not FP16, or a constant that is inexact in FP16."""
    moved = _moved(graph, layer)
    names = [value.name for value in moved if not value.is_initializer()]
    constants = [value.name for value in moved if value.is_initializer()]
    return (
        not names
        or any(tensors.get(name or "") is not ReducedPrecision.FP16 for name in names)
        or any(name in graph.inexact for name in constants)
    )


def _reads_only_bf16(graph: Graph, layer: Layer, tensors: Mapping[TensorName, ReducedPrecision]) -> bool:
    """Whether all moved values are BF16, so that the layer can be BF16, too."""
    moved = _moved(graph, layer)
    return bool(moved) and all(tensors.get(value.name or "") is ReducedPrecision.BF16 for value in moved)


def _wanted_above_fp16(graph: Graph, plan: Plan) -> set[TensorName]:
    """The tensors with a consumer that would read FP32 or BF16 if the tensor had it."""
    wanted = {name for name in graph.outputs if graph.io_types.get(name) is not ir.DataType.FLOAT16}
    for layer in reversed(graph.layers):
        node, ports = graph.nodes[layer.name], graph.ports[layer.name]
        if layer.role is Role.FIXED:
            wanted.update(layer.inputs)
            continue
        follows = (
            layer.name in plan.fp32 or layer.name in plan.bf16
            if layer.role is Role.COMPUTE
            else layer.name in graph.picking or any(name in wanted for name in layer.outputs)
        )
        for index, value in enumerate(node.inputs):
            if value is not None and value.name and (follows or index not in ports.inputs):
                wanted.add(value.name)
    return wanted
