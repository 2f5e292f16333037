"""Choose what is built besides the plan so that the compiler keeps the pins.

TensorRT-RTX 1.7.1 undoes the casts around a Conv, ConvTranspose, Gemm or MatMul that is pinned alone, 1.4.0 around a
Gemm or MatMul. It keeps the casts if an FP32 operation that it cannot fold stands between cast and layer, and if a
neighbour is FP32 too. So a pin that is not kept gets first a guard, which changes no value, so that the verdict on
the plan still applies; then, if that does not help, the pin of a neighbour that costs little.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from trt_helper.builder.proof import HEAVY, PinProof
from trt_helper.onnx_model.graph import Graph
from trt_helper.onnx_model.names import free_name, names_in
from trt_helper.onnx_model.typed import TypedModel
from trt_helper.values import LayerName, Plan, Role

MEASURES = ("", "guard", "parent", "child")  # what is tried for a pin, in this order; "" is nothing
# States of a pin that a measure can change. A "gone" pin is not computed at all.
RETAINABLE = frozenset({"demoted", "fused", "unknown"})


@dataclass(frozen=True, slots=True)
class Retention:
    """What is built besides the plan. Both mappings have as value the pin of the plan that the entry serves.

    Attributes:
        added: Layers that are pinned in addition.
        guards: Layers whose FP32 inputs are guarded (see `guard`).
    """

    added: Mapping[LayerName, LayerName] = field(default_factory=dict)
    guards: Mapping[LayerName, LayerName] = field(default_factory=dict)

    def plan(self, plan: Plan) -> Plan:
        """Return `plan` with the added pins."""
        return Plan(plan.fp32 | frozenset(self.added), plan.bf16 - frozenset(self.added))

    @property
    def retained(self) -> frozenset[LayerName]:
        """The pins of the plan that a guard or an added pin serves."""
        return frozenset(self.added.values()) | frozenset(self.guards.values())


class RetentionSearch:
    """Tries the measures of `MEASURES` in order for every pin that is not kept."""

    def __init__(self, graph: Graph, plan: Plan, given: Iterable[LayerName] = ()) -> None:
        """`given` are pins that an earlier conversion had to guard."""
        self._plan = plan
        self._layers = {layer.name: layer for layer in graph.layers}
        self._measures = {name: MEASURES.index("guard") for name in given if name in plan.fp32}
        self._given_up: set[LayerName] = set()

    def retention(self) -> Retention:
        """Return the guards and added pins to build with next."""
        added: dict[LayerName, LayerName] = {}
        guards: dict[LayerName, LayerName] = {}
        for name, measure in self._measures.items():
            if MEASURES[measure] == "guard":
                guards[name] = name
            elif neighbour := self._neighbour(name, MEASURES[measure]):
                added[neighbour] = name
        return Retention(added, guards)

    def escalate(self, proofs: Iterable[PinProof]) -> bool:
        """Choose the next measure for every pin that was not kept.

        An added pin must be kept as well, otherwise the pin that it serves escalates. A pin for which every measure
        failed is built without any.

        Args:
            proofs: The proofs of the last build.

        Returns:
            Whether there is something new to build.
        """
        added = self.retention().added
        failed = {added.get(one.layer, one.layer) for one in proofs if one.state in RETAINABLE} - self._given_up
        for name in failed:
            self._escalate(name)
        return bool(failed)

    def _escalate(self, name: LayerName) -> None:
        measure = self._measures.pop(name, 0) + 1
        while measure < len(MEASURES) and MEASURES[measure] != "guard" and not self._neighbour(name, MEASURES[measure]):
            measure += 1  # no layer on that side can be pinned
        if measure < len(MEASURES):
            self._measures[name] = measure
        else:
            self._given_up.add(name)

    def _neighbour(self, name: LayerName, side: str) -> LayerName | None:
        """Return the nearest layer on that side that can be pinned, is not pinned and is cheap.

        Movement layers are skipped and the search continues beyond them.
        """
        seen, queue = {name}, [name]
        while queue:
            layer = self._layers[queue.pop(0)]
            for other in layer.parents if side == "parent" else layer.children:
                role = self._layers[other].role
                if role is Role.COMPUTE and other not in self._plan.fp32 and self._layers[other].op not in HEAVY:
                    return other
                if role is Role.MOVEMENT and other not in seen:
                    queue.append(other)
                seen.add(other)
        return None


def guard(typed: TypedModel, layers: Iterable[LayerName]) -> tuple[LayerName, ...]:
    """Insert a LeakyRelu of slope 1 before every FP32 tensor that these layers read, in place.

    max(x, 1 * x) is x for every float, including infinities, NaN and -0. Neither version of TensorRT-RTX folds it away;
    both fold an Identity, a Reshape and a product with 1.

    Args:
        typed: The typed model to change.
        layers: Names of the layers to guard.

    Returns:
        The names of the inserted nodes.
    """
    nodes = list(ir.traversal.RecursiveGraphIterator(typed.model.graph))
    wanted = frozenset(layers)
    taken = names_in(typed.model.graph) | {value.name or "" for node in nodes for value in node.outputs}
    added: list[LayerName] = []
    for node in [node for node in nodes if node.name in wanted]:
        for index, value in enumerate(node.inputs):
            if value is None or value.is_initializer() or value.dtype is not ir.DataType.FLOAT:
                continue
            name = free_name(f"{node.name}_guard_{index}", taken)
            out = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=value.shape)
            slope = ir.AttrFloat32("alpha", 1.0)
            before = ir.Node("", "LeakyRelu", [value], [slope], outputs=[out], name=name)
            node.graph.insert_before(node, before)  # type: ignore[union-attr]
            node.replace_input_with(index, out)
            added.append(name)
    return tuple(added)
