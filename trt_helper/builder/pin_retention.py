"""A plan and what became of its pins go in; what makes the compiler keep them comes out.

TensorRT-RTX 1.7.1 undoes the casts around a Conv, ConvTranspose, Gemm or MatMul that is pinned alone, 1.4.0 around a
Gemm or MatMul. It leaves them where an FP32 operation that it cannot fold stands between the cast and the layer, and
where a neighbour is FP32 too. So a pin that is not kept is tried again with a guard, which changes no value and
leaves the plan what it was when it was judged; then with the pin of a neighbour that costs little.
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

MEASURES = ("", "guard", "parent", "child")  # what is tried for a pin, in this order
RETAINABLE = frozenset({"demoted", "fused", "unknown"})  # a pin that is gone is not computed: nothing can hold it


@dataclass(frozen=True, slots=True)
class Retention:
    """What is built besides the plan. Both map a layer to the pin of the plan for whose sake it is there."""

    added: Mapping[LayerName, LayerName] = field(default_factory=dict)  # pins
    guards: Mapping[LayerName, LayerName] = field(default_factory=dict)  # layers whose FP32 inputs are guarded

    def plan(self, plan: Plan) -> Plan:
        """`plan` with the added pins."""
        return Plan(plan.fp32 | frozenset(self.added), plan.bf16 - frozenset(self.added))

    @property
    def retained(self) -> frozenset[LayerName]:
        """The pins for whose sake something was done."""
        return frozenset(self.added.values()) | frozenset(self.guards.values())


class RetentionSearch:
    """Remembers what was tried for each pin of a plan, and says what comes next."""

    def __init__(self, graph: Graph, plan: Plan, given: Iterable[LayerName] = ()) -> None:
        """`given` are layers whose guards an earlier conversion found necessary."""
        self._plan = plan
        self._layers = {layer.name: layer for layer in graph.layers}
        self._measures = {name: MEASURES.index("guard") for name in given if name in plan.fp32}
        self._given_up: set[LayerName] = set()

    def retention(self) -> Retention:
        """What the pins are built with now."""
        added: dict[LayerName, LayerName] = {}
        guards: dict[LayerName, LayerName] = {}
        for name, measure in self._measures.items():
            if MEASURES[measure] == "guard":
                guards[name] = name
            elif neighbour := self._neighbour(name, MEASURES[measure]):
                added[neighbour] = name
        return Retention(added, guards)

    def escalate(self, proofs: Iterable[PinProof]) -> bool:
        """Take the next rung for every pin that was not kept; False when there is nothing left to try.

        A neighbour that was pinned for a pin's sake has to be kept as well. A pin for which every rung was tried in
        vain is built as it was at first.
        """
        added = self.retention().added
        failed = {added.get(one.layer, one.layer) for one in proofs if one.state in RETAINABLE} - self._given_up
        for name in failed:
            self._escalate(name)
        return bool(failed)

    def _escalate(self, name: LayerName) -> None:
        measure = self._measures.pop(name, 0) + 1
        while measure < len(MEASURES) and MEASURES[measure] != "guard" and not self._neighbour(name, MEASURES[measure]):
            measure += 1  # nobody there who could be pinned
        if measure < len(MEASURES):
            self._measures[name] = measure
        else:
            self._given_up.add(name)

    def _neighbour(self, name: LayerName, side: str) -> LayerName | None:
        """The nearest layer on that side that may be pinned, is not, and costs little; movement is looked through."""
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
    """Put a LeakyRelu of slope 1 before every FP32 tensor that these layers read, in place; returns their names.

    max(x, 1 * x) is x for every float, infinities, NaN and -0 included. Neither version folds it; both fold
    an Identity, a Reshape and a product with 1.
    """
    graph = typed.model.graph
    wanted = frozenset(layers)
    taken = names_in(graph)
    added: list[LayerName] = []
    for node in [node for node in graph if node.name in wanted]:
        for index, value in enumerate(node.inputs):
            if value is None or value.is_initializer() or value.dtype is not ir.DataType.FLOAT:
                continue
            name = free_name(f"{node.name}_guard_{index}", taken)
            out = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=value.shape)
            slope = ir.AttrFloat32("alpha", 1.0)
            graph.insert_before(node, ir.Node("", "LeakyRelu", [value], [slope], outputs=[out], name=name))
            node.replace_input_with(index, out)
            added.append(name)
    return tuple(added)
