"""A checked model goes in, its layers come out: names, order, parents and children, roles."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from trt_helper.errors import ConfigError, nearest
from trt_helper.onnx_model.load import Model
from trt_helper.onnx_model.normalise import normalise
from trt_helper.onnx_model.rewrites import apply, raise_opset
from trt_helper.onnx_model.roles import Ports, picks, role_and_ports, shape_only_values
from trt_helper.values import Layer, LayerName, Plan, Rewrite, Role, TensorName

NAME_SCOPES = "pkg.torch.onnx.name_scopes"  # torch.onnx's dynamo exporter: "['', 'gate', 'gate.norm', 'mul_4']"


@dataclass(frozen=True, eq=False)
class Graph:
    """The normalised model and its layers. `nodes[name]` and `ports[name]` belong to layer `name`."""

    source: Model
    model: ir.Model  # normalised, all FP32; never edited after this
    layers: tuple[Layer, ...]
    nodes: Mapping[LayerName, ir.Node]
    ports: Mapping[LayerName, Ports]
    aliases: Mapping[LayerName, LayerName]
    half_io: Mapping[TensorName, ir.DataType]  # graph inputs and outputs that are half for the user
    picking: frozenset[LayerName]
    inexact: frozenset[TensorName]  # initializers that movement layers mix with tensors and that half would change
    was_half: bool  # the file computes in half precision, at least in part
    rewrites: tuple[Rewrite, ...] = ()  # how it was rewritten after normalising

    @property
    def candidates(self) -> tuple[LayerName, ...]:
        """The layers that a plan may pin, in topological order."""
        return tuple(layer.name for layer in self.layers if layer.role is Role.COMPUTE)

    @property
    def inputs(self) -> tuple[ir.Value, ...]:
        return tuple(self.model.graph.inputs)

    @property
    def outputs(self) -> tuple[TensorName, ...]:
        return tuple(value.name or "" for value in self.model.graph.outputs)

    def all_pinned(self) -> Plan:
        """The control: every layer that can be FP32 is."""
        return Plan.of(self.candidates)

    def plan(self, names: Iterable[LayerName], bf16: Iterable[LayerName] = ()) -> Plan:
        """The plan that pins `names` and puts `bf16` into BF16; folded names stand for the layer they went into.

        Raises ConfigError for a name that the model does not have. Movement and fixed layers are
        accepted and change nothing: they follow their neighbours, or are FP32 already.
        """
        pins = self._computing(names)
        return Plan(pins, self._computing(bf16) - pins)

    def _computing(self, names: Iterable[LayerName]) -> frozenset[LayerName]:
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


def read_graph(model: Model, rewrites: Sequence[Rewrite] = ()) -> Graph:
    """Normalise a copy of `model`, rewrite it by `cures` and describe its layers."""
    copy = model.ir_model.clone()
    raise_opset(copy, rewrites)
    normal = normalise(copy)
    successors = apply(normal.model, rewrites) if rewrites else {}
    graph = normal.model.graph
    shapes = shape_only_values(graph)
    opset = normal.model.opset_imports.get("", 1)
    nodes: dict[LayerName, ir.Node] = {}
    ports: dict[LayerName, Ports] = {}
    layers: list[Layer] = []
    children = _children(graph)
    for node in graph:
        name = node.name or ""
        shape_only = all(out.name in shapes for out in node.outputs if out.uses() or out.is_graph_output())
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
        half_io=normal.half_io,
        picking=frozenset(name for name, node in nodes.items() if picks(node)),
        inexact=_inexact_constants(layers, nodes, ports),
        was_half=normal.was_half,
        rewrites=tuple(rewrites),
    )


def _inexact_constants(
    layers: list[Layer], nodes: Mapping[LayerName, ir.Node], ports: Mapping[LayerName, Ports]
) -> frozenset[TensorName]:
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
    return tuple(dict.fromkeys(p.name or "" for value in read if (p := value.producer()) is not None))


def _layer(node: ir.Node, role: Role, children: tuple[LayerName, ...]) -> Layer:
    read = (value for value in (*node.inputs, *captured(node)) if value is not None)
    return Layer(
        name=node.name or "",
        op=node.op_type,
        role=role,
        inputs=tuple(value.name or "" for value in read),
        outputs=tuple(value.name or "" for value in node.outputs),
        parents=_parents(node),
        children=children,
        module=_module_path(node),
    )


def _module_path(node: ir.Node) -> str:
    """The PyTorch module that the node came from, where the exporter wrote it."""
    try:
        scopes = ast.literal_eval(node.metadata_props.get(NAME_SCOPES, "[]"))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return ""
    return str(scopes[-2]) if isinstance(scopes, list) and len(scopes) > 1 else ""


def captured(node: ir.Node) -> tuple[ir.Value, ...]:
    """Tensors of the main graph that the node's subgraphs read, each once."""
    found: dict[str, ir.Value] = {}
    main = node.graph
    for subgraph in subgraphs(node):
        read = [v for inner in ir.traversal.RecursiveGraphIterator(subgraph) for v in inner.inputs]
        for value in (*read, *subgraph.outputs):
            if value is not None and _belongs_to(value, main):
                found[value.name or ""] = value
    return tuple(found.values())


def subgraphs(node: ir.Node) -> tuple[ir.Graph, ...]:
    """The bodies of an If, Loop or Scan; none for any other node."""
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
