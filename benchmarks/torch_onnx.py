"""Run a typed ONNX model on PyTorch, each operator in the types that its tensors have in the file.

`torch_operators.py` has the table of operators. `Interpreter(..., attention=True)` computes softmax(Q K) V by
PyTorch's fused attention where all of it is half.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor
from torch_layers import Node, NotCoveredError
from torch_operators import NUMBERS, OPERATORS

Watch = Callable[[str, Tensor], None]  # called with the name and the value of every tensor that a node writes
DTYPES = {
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT64: torch.int64,
    ir.DataType.BOOL: torch.bool,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.INT8: torch.int8,
}


@dataclass(frozen=True, eq=False)
class Body:
    """A graph: the main one or that of an If or a Loop."""

    nodes: Sequence[Node]
    inputs: Mapping[str, torch.dtype]
    outputs: Sequence[str]


class Interpreter:
    """Runs one typed model on one device, "cpu" or "cuda".

    Attributes:
        fused: the nodes that fused attention replaced; their tensors are not computed.
        widened: the nodes that PyTorch has no half kernel for here. They ran in FP32 and were rounded once.
        waits: whether the host and the device exchanged values during a run, such as a shape that is computed.
    """

    def __init__(self, model: ir.Model, device: str, *, attention: bool = False) -> None:
        self.device = torch.device(device)
        self.widened: set[str] = set()
        self.waits = False
        self._arrays: dict[str, np.ndarray] = {}
        self._body = self._read(model.graph)
        unknown = sorted({node.op for node in _every_node(self._body)} - OPERATORS.keys() - {"If", "Loop"})
        if unknown:
            raise NotCoveredError(f"operator {', '.join(unknown)}")
        self.fused: tuple[str, ...] = ()
        if attention:
            self._body, self.fused = with_attention(self._body, self._arrays, _half_values(model.graph))
        self._numbers = {name: self._arrays[name].tolist() for name in _read_as_numbers(self._body) & set(self._arrays)}
        self._weights = {name: torch.from_numpy(array).to(self.device) for name, array in self._arrays.items()}
        self._on_host = {n: torch.from_numpy(a) for n, a in self._arrays.items() if a.dtype.kind in "iub"}
        self._last_read = _last_read(self._body)

    def inputs(self, feed: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """One sample as tensors on the device, in the types of the file."""
        types = self._body.inputs
        return {name: torch.tensor(feed[name]).to(self.device, types[name]) for name in types}

    @torch.inference_mode()
    def run(self, inputs: Mapping[str, Tensor], watch: Watch | None = None) -> dict[str, Tensor]:
        """The outputs of the model by name.

        Args:
            inputs: the result of `inputs`.
            watch: called with every tensor that is written.

        Raises:
            NotCoveredError: a node uses an operator in a way that its function does not cover.
            IndexError: an index is out of range.
        """
        values = dict(inputs)
        for index, node in enumerate(self._body.nodes):
            self._compute(node, values)
            if watch:
                for name in filter(None, node.outputs):
                    watch(name, values[name])
            for name in self._last_read[index]:
                values.pop(name, None)
        return {name: values.get(name, self._weights.get(name)) for name in self._body.outputs}  # type: ignore[misc]

    def _compute(self, node: Node, values: dict[str, Tensor]) -> None:
        given = self._inputs_of(node, values)
        if node.op == "If":
            found = self._run_body(node.get("then_branch" if given[0] else "else_branch"), values)
        elif node.op == "Loop":
            found = self._loop(node, given, values)
        else:
            found = self._apply(node, given)
        values.update(zip(node.outputs, found, strict=False))  # trailing outputs may be omitted

    def _apply(self, node: Node, given: Sequence[Any]) -> Sequence[Tensor]:
        """The outputs of an operator; where PyTorch has no half kernel for it, in FP32 and rounded once."""
        function = OPERATORS[node.op]
        if node.name not in self.widened:
            try:
                return _sequence(function(node, *given))
            except RuntimeError as error:
                if "not implemented for 'Half'" not in str(error):
                    raise
                self.widened.add(node.name)
        wide = [g.float() if isinstance(g, Tensor) and g.dtype is torch.float16 else g for g in given]
        found = _sequence(function(node, *wide))
        return [tensor.half() if tensor.dtype is torch.float32 else tensor for tensor in found]

    def _inputs_of(self, node: Node, values: Mapping[str, Tensor]) -> list[Any]:
        """The inputs of a node, numbers where PyTorch wants numbers; None where one is omitted.

        A node that reads shapes alone, which are on the host, stays there; all else is on the device.
        """
        numbers = NUMBERS.get(node.op, ())
        tensors = [name for index, name in enumerate(node.inputs) if name and index not in numbers]
        computed = [name for name in tensors if name in values]
        on_host = bool(computed) and all(
            values[name].device.type == "cpu" and not values[name].is_floating_point() for name in computed
        )
        weights = self._on_host if on_host else self._weights

        def read(name: str) -> Tensor:
            if name in values:
                self.waits |= not on_host and values[name].device.type != self.device.type
                return values[name] if on_host else values[name].to(self.device)
            return weights[name] if name in weights else self._weights[name]

        return [
            None if not name else self._as_numbers(name, values) if index in numbers else read(name)
            for index, name in enumerate(node.inputs)
        ]

    def _as_numbers(self, name: str, values: Mapping[str, Tensor]) -> Any:
        if name not in values:
            return self._numbers[name]
        self.waits |= values[name].device.type != "cpu"
        return values[name].tolist()

    def _run_body(self, body: Body, outer: Mapping[str, Tensor], given: Sequence[Tensor] = ()) -> list[Tensor]:
        values = {**outer, **dict(zip(body.inputs, given, strict=True))}
        for node in body.nodes:
            self._compute(node, values)
        return [values[name] if name in values else self._weights[name] for name in body.outputs]

    def _loop(self, node: Node, given: Sequence[Any], values: Mapping[str, Tensor]) -> list[Tensor]:
        """A Loop: its carried values, then what it collected."""
        count, condition, *carried = given
        body: Body = node.get("body")
        collected: list[list[Tensor]] = [[] for _ in body.outputs[1 + len(carried) :]]
        turn = 0
        while (count is None or turn < count) and condition is not False:
            told = [torch.tensor(turn), torch.tensor(True)]
            found = self._run_body(body, values, [*told, *carried])
            if node.inputs[1]:
                self.waits |= found[0].device.type != "cpu"
                condition = bool(found[0])
            carried, turn = found[1 : 1 + len(carried)], turn + 1
            for kept, tensor in zip(collected, found[1 + len(carried) :], strict=True):
                kept.append(tensor)
        return [*carried, *(torch.stack(kept) for kept in collected)]

    def _read(self, graph: ir.Graph) -> Body:
        for name, value in graph.initializers.items():
            self._remember(name, value.const_value.numpy())  # type: ignore[union-attr]
        nodes = [self._node(node) for node in graph if node.op_type != "Constant"]
        for node in graph:
            if node.op_type == "Constant":
                self._remember(node.outputs[0].name or "", node.attributes["value"].as_tensor().numpy())
        kept = {value.name or "": DTYPES[value.dtype] for value in graph.inputs if value.dtype in DTYPES}
        inputs = {name: dtype for name, dtype in kept.items() if name not in graph.initializers}
        return Body(nodes, inputs, [value.name or "" for value in graph.outputs])

    def _remember(self, name: str, array: np.ndarray) -> None:
        self._arrays[name] = np.array(array)  # a writable copy, as PyTorch wants it

    def _node(self, node: ir.Node) -> Node:
        attributes: dict[str, Any] = {}
        for name, attribute in node.attributes.items():
            if attribute.type is ir.AttributeType.GRAPH:
                attributes[name] = self._read(attribute.as_graph())
            elif attribute.type is ir.AttributeType.TENSOR:
                attributes[name] = torch.from_numpy(np.array(attribute.as_tensor().numpy()))
            else:
                value = attribute.value
                attributes[name] = list(value) if isinstance(value, tuple) else value
        if "to" in attributes:
            attributes["to"] = DTYPES.get(ir.DataType(attributes["to"]))
        read = tuple((value.name or "") if value is not None else "" for value in node.inputs)
        return Node(node.name or "", node.op_type, read, tuple(v.name or "" for v in node.outputs), attributes)


def _sequence(found: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    return [found] if isinstance(found, Tensor) else found


# -------------------------------------------------------------------------------------- reading the graph


def _every_node(body: Body) -> Iterator[Node]:
    for node in body.nodes:
        yield node
        for value in node.attributes.values():
            if isinstance(value, Body):
                yield from _every_node(value)


def _read_as_numbers(body: Body) -> set[str]:
    return {
        name
        for node in _every_node(body)
        for index, name in enumerate(node.inputs)
        if index in NUMBERS.get(node.op, ())
    }


def _captured(node: Node) -> Iterator[str]:
    for value in node.attributes.values():
        if isinstance(value, Body):
            for inner in _every_node(value):
                yield from inner.inputs
            yield from value.outputs


def _last_read(body: Body) -> list[list[str]]:
    """For each node the tensors that nobody reads after it."""
    last: dict[str, int] = {}
    for index, node in enumerate(body.nodes):
        last.update(dict.fromkeys((*node.inputs, *_captured(node), *node.outputs), index))
    dropped: list[list[str]] = [[] for _ in body.nodes]
    for name, index in last.items():
        if name not in body.outputs:
            dropped[index].append(name)
    return dropped


def _half_values(graph: ir.Graph) -> set[str]:
    return {value.name or "" for node in graph for value in node.outputs if value.dtype is ir.DataType.FLOAT16}


def with_attention(body: Body, weights: Mapping[str, np.ndarray], half: set[str]) -> tuple[Body, tuple[str, ...]]:
    """`body` with one Attention node for each MatMul, scale, mask, Softmax and MatMul in half, and what that replaced.

    Scale (Mul or Div by a number) and mask (Add) may be missing. Each tensor in between has one consumer only.
    """
    makers = {name: node for node in body.nodes for name in node.outputs}
    readers = Counter(name for node in body.nodes for name in (*node.inputs, *_captured(node)))
    readers.update(body.outputs)

    def inner(name: str, op: str) -> Node | None:
        node = makers.get(name)
        return node if node and node.op == op and name in half and readers[name] == 1 else None

    def scaled(name: str) -> tuple[Node, float, list[Node]] | None:
        """The MatMul that makes `name`, the scale behind it and the nodes from there to here."""
        if product := inner(name, "MatMul"):
            return product, 1.0, [product]
        node = inner(name, "Mul") or inner(name, "Div")
        number = weights.get(node.inputs[1]) if node else None
        product = inner(node.inputs[0], "MatMul") if node and number is not None and number.size == 1 else None
        if node is None or number is None or product is None:
            return None
        return product, float(number) if node.op == "Mul" else 1 / float(number), [product, node]

    def attention(last: Node) -> tuple[Node, list[Node]] | None:
        softmax = inner(last.inputs[0], "Softmax") if last.op == "MatMul" and last.outputs[0] in half else None
        if softmax is None or softmax.get("axis", -1) != -1:
            return None
        choices = [(softmax.inputs[0], "", [softmax])]
        if masked := inner(softmax.inputs[0], "Add"):
            a, b = masked.inputs
            choices += [(a, b, [masked, softmax]), (b, a, [masked, softmax])]
        for scores, mask, nodes in choices:
            if found := scaled(scores):
                product, scale, before = found
                read = (*product.inputs, last.inputs[1], *([mask] if mask else []))
                return Node(last.name, "Attention", read, last.outputs, {"scale": scale}), [*before, *nodes]
        return None

    found = {node.name: attention(node) for node in body.nodes}
    replaced = {old.name for made in found.values() if made for old in made[1]}
    nodes = [made[0] if (made := found[node.name]) else node for node in body.nodes if node.name not in replaced]
    return replace(body, nodes=nodes), tuple(sorted(replaced))
