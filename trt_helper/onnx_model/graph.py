"""The layers of a normalised model: their names, order, parents, children and roles.

`read_graph` normalises a model and describes it as a `Graph`, from which all typed models are rendered.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir

from trt_helper.errors import ConfigError, ModelError, nearest
from trt_helper.onnx_model.branches import is_select
from trt_helper.onnx_model.load import Model, load
from trt_helper.onnx_model.normalise import Normalised, normalise
from trt_helper.onnx_model.plugins import Tail
from trt_helper.onnx_model.rewrites import apply, raise_opset
from trt_helper.onnx_model.roles import MOVEMENT, Ports, may_be_bf16, picks, role_and_ports, shape_only_values
from trt_helper.values import Layer, LayerName, Plan, Rewrite, Role, TensorName

PROVENANCE = "trt_helper.export"  # key of the metadata that `export` writes into a model
NAME_SCOPES = "pkg.torch.onnx.name_scopes"  # torch.onnx's dynamo exporter: "['', 'gate', 'gate.norm', 'mul_4']"


@dataclass(frozen=True, eq=False)
class Graph:
    """The normalised model and its layers. It is never edited: every typed model is rendered from a copy."""

    source: Model
    model: ir.Model  # normalised and rewritten; all floats are FP32
    layers: tuple[Layer, ...]  # in topological order
    nodes: Mapping[LayerName, ir.Node]
    ports: Mapping[LayerName, Ports]  # which inputs and outputs follow the precision of the layer
    aliases: Mapping[LayerName, LayerName]  # name of a folded or removed node -> its successor
    io_types: Mapping[TensorName, ir.DataType]  # FP16, BF16 and FP64 inputs and outputs of the user's file
    picking: frozenset[LayerName]  # layers that decide something non-float by comparing floats, such as TopK
    inexact: frozenset[TensorName]  # initializers that movement layers mix with tensors and that FP16 would change
    was_half: bool  # the file computes in half precision, at least in part
    takes_bf16: frozenset[LayerName] = frozenset()  # layers whose operator takes BF16 in the model's opset
    rewrites: tuple[Rewrite, ...] = ()  # applied after normalising
    tail: Tail | None = None  # custom operators that were cut off; the typed model has them
    unjudged: Mapping[str, int] = field(default_factory=dict)  # why -> nodes that compute floats and are never FP16

    @property
    def candidates(self) -> tuple[LayerName, ...]:
        """The layers that a plan may pin, in topological order."""
        return tuple(layer.name for layer in self.layers if layer.role is Role.COMPUTE)

    def in_order(self, names: Collection[LayerName]) -> tuple[LayerName, ...]:
        """Those of `names` that a plan may pin, in topological order."""
        return tuple(name for name in self.candidates if name in names)

    @property
    def inputs(self) -> tuple[ir.Value, ...]:
        return tuple(self.model.graph.inputs)

    @property
    def outputs(self) -> tuple[TensorName, ...]:
        return tuple(value.name or "" for value in self.model.graph.outputs)

    def all_pinned(self) -> Plan:
        """The plan that pins every layer that can be pinned: the control of a search."""
        return Plan.of(self.candidates)

    def plan(self, names: Iterable[LayerName], bf16: Iterable[LayerName] = ()) -> Plan:
        """The plan that pins the layers `names` and puts the layers `bf16` into BF16.

        The name of a folded node stands for its successor. Movement and fixed layers are accepted and left out of the
        plan: they follow their neighbours, or are FP32 already. A layer in both lists is a pin.

        Raises:
            ConfigError: The model has no layer of this name, or a layer cannot be BF16 in the model's opset.
        """
        pins = self._candidates_named(names)
        reduced = self._candidates_named(bf16) - pins
        if refused := sorted(reduced - self.takes_bf16):
            op, opset = self.nodes[refused[0]].op_type, self.model.opset_imports.get("", 1)
            raise ConfigError(
                f"layer {refused[0]!r} cannot be BF16: {op} of opset {opset} does not take it",
                fix="keep it in FP32, or export the model with a later opset",
            )
        return Plan(pins, reduced)

    def _candidates_named(self, names: Iterable[LayerName]) -> frozenset[LayerName]:
        found = set()
        roles = {layer.name: layer.role for layer in self.layers}
        for name in names:
            actual = self.aliases.get(name, name)
            if actual not in roles:
                near = nearest(name, [*roles, *self.aliases])
                hint = f"did you mean {near!r}?" if near else f"list them: trt-helper inspect {self.source.path}"
                raise ConfigError(f"the model has no layer named {name!r}", fix=hint)
            if roles[actual] is Role.COMPUTE:
                found.add(actual)
        return frozenset(found)


def require_half(graph: Graph) -> None:
    """Refuse a graph in which no layer can be FP16: there is nothing to judge.

    Raises:
        ModelError: With the reasons.
    """
    if any(layer.role is not Role.FIXED for layer in graph.layers):
        return
    why = "; ".join(f"{count} {'is' if count == 1 else 'are'} {why}" for why, count in graph.unjudged.items())
    raise ModelError(
        f"no layer of {graph.source.path} can be FP16: {why or 'none computes with floats'}",
        fix="export the model with its float arithmetic in the main graph, or build it as it is",
    )


def load_graph(path: Path | str, rewrites: Sequence[Rewrite] = ()) -> Graph:
    """Load an ONNX file, check and normalise it, and describe its layers.

    Args:
        path: the file; it is never changed.
        rewrites: rewrites to apply, as a config has them.

    Raises:
        ModelError: the file cannot be read, is not valid ONNX, or contains something that trt-helper cannot judge.
        ConfigError: the model does not offer one of the rewrites.
    """
    return read_graph(load(Path(path)), rewrites)


def read_graph(model: Model, rewrites: Sequence[Rewrite] = ()) -> Graph:
    """Normalise a copy of `model`, apply `rewrites` to it, and describe its layers.

    Raises:
        ModelError: The model contains something that trt-helper cannot judge, or cannot be converted to the opset
            that a rewrite needs.
        ConfigError: The model does not offer one of the rewrites.
    """
    copy = model.ir_model.clone()
    raise_opset(copy, rewrites)
    normal = normalise(copy)
    successors = apply(normal.model, rewrites) if rewrites else {}
    graph = normal.model.graph
    shape_only_tensors = shape_only_values(graph)
    opset = normal.model.opset_imports.get("", 1)
    nodes: dict[LayerName, ir.Node] = {}
    ports: dict[LayerName, Ports] = {}
    layers: list[Layer] = []
    children = _children(graph)
    for node in graph:
        name = node.name or ""
        shape_only = all(out.name in shape_only_tensors for out in node.outputs if out.uses() or out.is_graph_output())
        role, ports[name] = role_and_ports(node, opset, shape_only=shape_only)
        if name in normal.author_fp32:
            role, ports[name] = Role.FIXED, Ports((), ())
        nodes[name] = node
        layers.append(_layer(node, role, tuple(children[name])))
    return Graph(
        source=model,
        model=normal.model,
        layers=tuple(layers),
        nodes=nodes,
        ports=ports,
        aliases={
            **{name: successors.get(successor, successor) for name, successor in normal.aliases.items()},
            **successors,
        },
        io_types=normal.io_types,
        picking=frozenset(name for name, node in nodes.items() if picks(node)),
        inexact=_inexact_constants(layers, nodes, ports),
        was_half=normal.was_half,
        rewrites=tuple(rewrites),
        takes_bf16=frozenset(name for name, node in nodes.items() if may_be_bf16(node, opset)),
        tail=normal.tail,
        unjudged=_unjudged(layers, nodes, normal),
    )


def _unjudged(layers: list[Layer], nodes: Mapping[LayerName, ir.Node], normal: Normalised) -> dict[str, int]:
    """`Graph.unjudged`."""
    loops = sum(_computes(inner) for node in nodes.values() for body in subgraphs(node) for inner in _inside(body))
    found = {
        "FP32 by casts in the file": sum(
            layer.name in normal.author_fp32 and _computes(nodes[layer.name]) for layer in layers
        ),
        "inside of a Loop or Scan": loops,
        f"behind {normal.tail.custom}, a custom operator" if normal.tail else "": normal.tail.layers
        if normal.tail
        else 0,
    }
    return {why: count for why, count in found.items() if count}


def _inside(graph: ir.Graph) -> Iterable[ir.Node]:
    return ir.traversal.RecursiveGraphIterator(graph)


def _computes(node: ir.Node) -> bool:
    """Whether the node does arithmetic in FP32."""
    if node.op_type in MOVEMENT or node.op_type == "Cast":
        return False
    return any(value is not None and value.dtype is ir.DataType.FLOAT for value in (*node.inputs, *node.outputs))


def _inexact_constants(
    layers: list[Layer], nodes: Mapping[LayerName, ir.Node], ports: Mapping[LayerName, Ports]
) -> frozenset[TensorName]:
    """`Graph.inexact`."""
    found: set[TensorName] = set()
    for layer in layers:
        if layer.role is not Role.MOVEMENT:
            continue
        moved = [nodes[layer.name].inputs[index] for index in ports[layer.name].inputs]
        if any(value is not None and not value.is_initializer() for value in moved):
            constants = [value for value in moved if value is not None and value.is_initializer()]
            found.update(value.name or "" for value in constants if not _is_exact_in_half(value))
    return frozenset(found)


def _is_exact_in_half(value: ir.Value) -> bool:
    if value.const_value is None:
        return False
    array = value.const_value.numpy()
    with np.errstate(over="ignore"):
        return bool(np.array_equal(array.astype(np.float16).astype(np.float32), array, equal_nan=True))


def _children(graph: ir.Graph) -> dict[LayerName, list[LayerName]]:
    children: dict[LayerName, list[LayerName]] = {node.name or "": [] for node in graph}
    for node in graph:
        for parent in _parents(node):
            children[parent].append(node.name or "")
    return children


def _parents(node: ir.Node) -> tuple[LayerName, ...]:
    read = (value for value in (*node.inputs, *captured(node)) if value is not None)
    return tuple(dict.fromkeys(p.name or "" for value in read if (p := value.producer()) is not None))  # each once


def _layer(node: ir.Node, role: Role, children: tuple[LayerName, ...]) -> Layer:
    read = (value for value in (*node.inputs, *captured(node)) if value is not None)
    return Layer(
        name=node.name or "",
        op="If" if is_select(node) else node.op_type,
        role=role,
        inputs=tuple(value.name or "" for value in read),
        outputs=tuple(value.name or "" for value in node.outputs),
        parents=_parents(node),
        children=children,
        module=_module_path(node),
    )


def _module_path(node: ir.Node) -> str:
    """The path of the PyTorch module that the node came from, if the exporter recorded it, else an empty text."""
    try:
        scopes = ast.literal_eval(node.metadata_props.get(NAME_SCOPES, "[]"))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return ""
    return str(scopes[-2]) if isinstance(scopes, list) and len(scopes) > 1 else ""


def captured(node: ir.Node) -> tuple[ir.Value, ...]:
    """The tensors of the node's own graph that its subgraphs read, each once."""
    found: dict[str, ir.Value] = {}
    outer = node.graph
    for subgraph in subgraphs(node):
        read = [v for inner in ir.traversal.RecursiveGraphIterator(subgraph) for v in inner.inputs]
        for value in (*read, *subgraph.outputs):
            if value is not None and _belongs_to(value, outer):
                found[value.name or ""] = value
    return tuple(found.values())


def subgraphs(node: ir.Node) -> tuple[ir.Graph, ...]:
    """The bodies of an If, Loop or Scan. Any other node has none."""
    found: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type is ir.AttributeType.GRAPH:
            found.append(attribute.as_graph())
        elif attribute.type is ir.AttributeType.GRAPHS:
            found.extend(attribute.as_graphs())
    return tuple(found)


def _belongs_to(value: ir.Value, graph: ir.Graph | ir.Function | None) -> bool:
    producer = value.producer()
    return (producer.graph if producer is not None else value.graph) is graph
