"""Graph and plan go in; the precision of every layer and tensor comes out.

This is the one place that knows how a plan spreads. The renderer writes casts by it and the emulator
rounds by it, so that what is judged is what is built.
"""

from __future__ import annotations

from dataclasses import dataclass

from trt_helper.graph import Graph
from trt_helper.roles import SHAPE_READING
from trt_helper.values import Layer, LayerName, Plan, Role, TensorName


@dataclass(frozen=True, slots=True)
class Precisions:
    """What is half under a plan. Floats that are not listed are FP32; initializers are what their reader is."""

    layers: frozenset[LayerName]  # layers that read and write half
    tensors: frozenset[TensorName]  # tensors that are stored in half


def assign(graph: Graph, plan: Plan) -> Precisions:
    """Spread `plan` over the graph.

    A computing layer is FP32 when pinned, else FP16. A movement layer stays FP32 only where that keeps
    a value for somebody: it reads an FP32 tensor and an FP32 reader stands behind it. Rounding and
    moving commute, so moving in half is otherwise the same for less. A layer that picks by comparing
    (TopK, ArgMax, a cast to integers) sees FP32 whenever it is given FP32.
    """
    wanted = _wanted_in_fp32(graph, plan)
    layers: set[LayerName] = set()
    half: set[TensorName] = set(graph.half_io) & {value.name for value in graph.inputs if value.name}
    for layer in graph.layers:
        if layer.role is Role.COMPUTE:
            in_half = layer.name not in plan.fp32
        elif layer.role is Role.MOVEMENT:
            given_fp32 = _is_given_fp32(graph, layer, half)
            as_given = layer.name in graph.picking or layer.op in SHAPE_READING
            keeps = as_given or any(name in wanted for name in layer.outputs)
            in_half = not (given_fp32 and keeps)
        else:
            continue
        if in_half:
            layers.add(layer.name)
            half.update(layer.outputs[index] for index in graph.ports[layer.name].outputs)
    return Precisions(frozenset(layers), frozenset(half))


def _is_given_fp32(graph: Graph, layer: Layer, half: set[TensorName]) -> bool:
    """Whether something is moved that half would change: an FP32 tensor, or a constant that is not exact in half."""
    node = graph.nodes[layer.name]
    moved = [node.inputs[index] for index in graph.ports[layer.name].inputs]
    tensors = [value.name for value in moved if value is not None and not value.is_initializer()]
    constants = [value.name for value in moved if value is not None and value.is_initializer()]
    return not tensors or any(name not in half for name in tensors) or any(name in graph.inexact for name in constants)


def _wanted_in_fp32(graph: Graph, plan: Plan) -> set[TensorName]:
    """Tensors that some reader would take in FP32 if it could get them so."""
    wanted = {name for name in graph.outputs if name not in graph.half_io}
    for layer in reversed(graph.layers):
        node, ports = graph.nodes[layer.name], graph.ports[layer.name]
        if layer.role is Role.FIXED:
            wanted.update(layer.inputs)
            continue
        follows = (
            layer.name in plan.fp32
            if layer.role is Role.COMPUTE
            else layer.name in graph.picking or any(name in wanted for name in layer.outputs)
        )
        for index, value in enumerate(node.inputs):
            if value is not None and value.name and (follows or index not in ports.inputs):
                wanted.add(value.name)
    return wanted
