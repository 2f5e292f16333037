"""Graph and plan go in; the precision of every layer and tensor comes out.

This is the one place that knows how a plan spreads. The renderer writes casts by it and the emulator
rounds by it, so that what is judged is what is built.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from trt_helper.onnx_model.graph import Graph
from trt_helper.onnx_model.roles import SHAPE_READING
from trt_helper.values import Layer, LayerName, Plan, ReducedPrecision, Role, TensorName


@dataclass(frozen=True, slots=True)
class Precisions:
    """What is narrow under a plan. Floats that are not listed are FP32; initializers are what their reader is."""

    layers: Mapping[LayerName, ReducedPrecision]  # layers that read and write 16 bits
    tensors: Mapping[TensorName, ReducedPrecision]  # tensors that are stored in 16 bits


def assign(graph: Graph, plan: Plan) -> Precisions:
    """Spread `plan` over the graph.

    A computing layer is what the plan says, else FP16. A movement layer stays wide only where that keeps
    a value for somebody: it reads a tensor that is not FP16, and a reader that is not FP16 stands behind it.
    Rounding and moving commute, so moving in half is otherwise the same for less. A layer that picks by
    comparing (TopK, ArgMax, a cast to integers) sees FP32 whenever it is given FP32.
    """
    wanted = _wanted_wide(graph, plan)
    layers: dict[LayerName, ReducedPrecision] = {}
    inputs = {value.name for value in graph.inputs if value.name}
    tensors = dict.fromkeys(set(graph.half_io) & inputs, ReducedPrecision.FP16)
    for layer in graph.layers:
        kind: ReducedPrecision | None = ReducedPrecision.FP16
        if layer.role is Role.FIXED or layer.name in plan.fp32:
            continue
        if layer.name in plan.bf16:
            kind = ReducedPrecision.BF16
        elif layer.role is Role.MOVEMENT:
            as_given = layer.name in graph.picking or layer.op in SHAPE_READING
            keeps = as_given or any(name in wanted for name in layer.outputs)
            if keeps and _is_given_wide(graph, layer, tensors):
                kind = ReducedPrecision.BF16 if not as_given and _is_given_bf16(graph, layer, tensors) else None
        if kind is not None:
            layers[layer.name] = kind
            tensors.update((layer.outputs[index], kind) for index in graph.ports[layer.name].outputs)
    return Precisions(layers, tensors)


def _moved(graph: Graph, layer: Layer) -> list[ir.Value]:
    """What a movement layer moves: tensors and initializers."""
    moved = (graph.nodes[layer.name].inputs[index] for index in graph.ports[layer.name].inputs)
    return [value for value in moved if value is not None]


def _is_given_wide(graph: Graph, layer: Layer, tensors: Mapping[TensorName, ReducedPrecision]) -> bool:
    """Whether something is moved that half would change: a tensor that is not FP16, or an inexact constant."""
    moved = _moved(graph, layer)
    names = [value.name for value in moved if not value.is_initializer()]
    constants = [value.name for value in moved if value.is_initializer()]
    return (
        not names
        or any(tensors.get(name or "") is not ReducedPrecision.FP16 for name in names)
        or any(name in graph.inexact for name in constants)
    )


def _is_given_bf16(graph: Graph, layer: Layer, tensors: Mapping[TensorName, ReducedPrecision]) -> bool:
    """Whether all that is moved is BF16, so that it can stay so."""
    moved = _moved(graph, layer)
    return bool(moved) and all(tensors.get(value.name or "") is ReducedPrecision.BF16 for value in moved)


def _wanted_wide(graph: Graph, plan: Plan) -> set[TensorName]:
    """Tensors that some reader would take in more than half if it could get them so."""
    wanted = {name for name in graph.outputs if name not in graph.half_io}
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
