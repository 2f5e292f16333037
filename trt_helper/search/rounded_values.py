"""The values that the empty plan rounds, and where a plan rounds them.

A value is rounded for all consumers when its producer is FP16, and for each FP16 consumer when its producer is not.
"""

from __future__ import annotations

from dataclasses import dataclass

from trt_helper.emulator.emulator import Emulator
from trt_helper.onnx_model.float_types import HALVES
from trt_helper.search.error_model import ValueName
from trt_helper.values import LayerName, Plan, Role, TensorName

Places = list[tuple[TensorName, LayerName]]
"""Where values are read rounded: (tensor, consumer), as `Emulator.inject` takes them."""


@dataclass(frozen=True, slots=True)
class Value:
    """A value that the empty plan rounds: a tensor, or what is inside of a layer (weights, steps of its kernel).

    Attributes:
        tensor: its name; empty for what is inside of the layer `producer`.
        producer: the layer that computes it; empty for a graph input and for the result of a layer that has no FP16
            form.
        consumers: the computing layers that read it, directly or through movement layers.
        others: other consumers, which take it as it is; an empty name stands for the graph's outputs.
    """

    tensor: TensorName
    producer: LayerName
    consumers: tuple[LayerName, ...]
    others: tuple[LayerName, ...]

    @property
    def names(self) -> frozenset[LayerName]:
        """The layers that would have to be pinned to keep it from being rounded."""
        return frozenset((self.producer, *self.consumers)) - {""}

    @property
    def name(self) -> ValueName:
        return self.tensor, self.producer

    @property
    def places(self) -> Places:
        """Where it is rounded when all read it rounded."""
        return [(self.tensor, name) for name in (*self.consumers, *self.others)]

    def places_under(self, plan: Plan) -> Places:
        """Where it is rounded under a plan: everywhere when its producer rounds, else where its consumers do."""
        if self.producer and self.producer not in plan.fp32:
            return self.places
        return [(self.tensor, name) for name in self.consumers if name not in plan.fp32]


def rounded_values(emulator: Emulator) -> list[Value]:
    """Every value that the empty plan rounds, in topological order of the producers."""
    graph = emulator.graph
    weights = [
        Value("", layer.name, (), (layer.name,))
        for layer in graph.layers
        if layer.role is Role.COMPUTE and emulator.rounds_inside(layer.name)
    ]
    constants = {value.name or "" for value in graph.model.graph.initializers.values()}
    producers: dict[TensorName, LayerName] = {
        v.name or "": "" for v in graph.inputs if graph.io_types.get(v.name or "") not in HALVES
    }
    producers.update(dict.fromkeys(constants, ""))  # for consumers behind a movement layer
    consumers: dict[TensorName, dict[LayerName, bool]] = {}
    origins: dict[TensorName, tuple[TensorName, ...]] = {name: (name,) for name in producers}
    for layer in graph.layers:
        node, ports = graph.nodes[layer.name], graph.ports[layer.name]
        followed = {node.inputs[i].name for i in ports.inputs if node.inputs[i] is not None}  # type: ignore[union-attr]
        read = [name for name in dict.fromkeys(layer.inputs) if name in origins]
        written = [layer.outputs[i] for i in ports.outputs]
        if layer.role is Role.MOVEMENT and layer.name not in graph.picking:
            moved = tuple(dict.fromkeys(o for name in read if name in followed for o in origins[name]))
            for name in written:  # a layer that reads no float makes a constant
                origins[name] = moved or (name,)
                producers.setdefault(name, "")
            continue
        for name in (name for name in read if name not in constants):
            rounds = layer.role is Role.COMPUTE and name in followed
            for origin in origins[name]:
                known = consumers.setdefault(origin, {})
                known[layer.name] = known.get(layer.name, False) or rounds
        for name in written if layer.role is Role.COMPUTE else layer.outputs:
            origins[name] = (name,)
            producers[name] = layer.name if layer.role is Role.COMPUTE else ""
    for name in graph.outputs:
        for origin in origins.get(name, ()):
            consumers.setdefault(origin, {})[""] = False
    values = [
        Value(
            tensor,
            producers[tensor],
            tuple(name for name, rounds in found.items() if rounds),
            tuple(name for name, rounds in found.items() if not rounds and producers[tensor]),
        )
        for tensor, found in consumers.items()
    ]
    return weights + [value for value in values if value.consumers or value.others]
