"""Custom operators at the end of a model: TensorRT plugins, such as EfficientNMS_TRT.

Nothing here can compute them, so what lies before them is judged: the model is cut where they begin, and the tensors
that they read become outputs, as a user would cut it. The typed model gets the tail back, as it is in the file.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from trt_helper.errors import ModelError
from trt_helper.onnx_model.expanded import EXPANDED
from trt_helper.onnx_model.names import free_name, name_nodes, names_in
from trt_helper.values import TensorName

DOMAINS = ("", "ai.onnx")
# Domains of operators that are known, and that no TensorRT has a plugin for.
NO_PLUGINS = {
    "com.microsoft": "an operator of ONNX Runtime that TensorRT does not have",
    "ai.onnx.ml": "an operator of classical machine learning that TensorRT does not have",
    "ai.onnx.preview.training": "an operator for training",
    "ai.onnx.training": "an operator for training",
}


@dataclass(frozen=True, eq=False)
class Tail:
    """What was cut off: custom operators, and all that depends on them."""

    model: ir.Model  # its inputs are tensors and inputs of the graph, its outputs are outputs of the file
    outputs: tuple[TensorName, ...]  # all outputs of the file, in order
    custom: str  # the operator of the first custom node
    layers: int  # nodes in the tail


def is_custom(node: ir.Node, model: ir.Model) -> bool:
    """Whether the operator is neither standard, nor expanded here, nor a function of the model."""
    if (node.domain, node.op_type) in EXPANDED or node.op_identifier() in model.functions:
        return False
    if node.domain not in DOMAINS:
        return True
    return not onnx.defs.has(node.op_type)


def cut_tail(model: ir.Model) -> Tail | None:
    """Cut `model` before its custom operators, in place; None if it has none.

    Raises:
        ModelError: A custom operator is inside of an If or a Loop, is known and no plugin, or has nothing before it.
    """
    graph = model.graph
    custom = [node for node in ir.traversal.RecursiveGraphIterator(graph) if is_custom(node, model)]
    if not custom:
        return None
    name_nodes(graph)
    for node in custom:
        where = f"node {node.name or node.op_type!r} is {node.domain or 'ai.onnx'}::{node.op_type}"
        if node.domain in NO_PLUGINS:
            raise ModelError(
                f"{where}, {NO_PLUGINS[node.domain]}", fix="export the model with operators of the ONNX standard"
            )
        if node.graph is not graph:
            raise ModelError(f"{where}, a custom operator inside of a branch or loop", fix="move it out of there")
    behind = _behind(graph, custom)
    read = _read(behind, graph)
    kept = [value for value in graph.outputs if value.producer() not in behind]
    made = [value for value in read if value.producer() is not None]
    if not kept + made:
        raise ModelError(
            f"every layer depends on {custom[0].op_type}, a custom operator: nothing can be judged",
            fix="export the part of the model that has standard operators by itself",
        )
    outputs = tuple(value.name or "" for value in graph.outputs)
    tail = _only_tail(model.clone(), {node.name for node in behind}, [value.name or "" for value in read])
    graph.outputs.clear()
    graph.outputs.extend([*kept, *(value for value in made if value not in kept)])
    graph.remove(list(behind), safe=True)
    RemoveUnusedNodesPass()(model)
    return Tail(tail, outputs, custom[0].op_type, len(behind))


def _behind(graph: ir.Graph, custom: Iterable[ir.Node]) -> dict[ir.Node, None]:
    """The custom nodes and all nodes that depend on them, in order."""
    found = set(custom)
    owner = {inner: node for node in graph for inner in _with_subgraphs(node)}
    for node in graph:
        if node in found:
            found.update(owner[user] for out in node.outputs for user, _ in out.uses())
    return {node: None for node in graph if node in found}


def _read(behind: Iterable[ir.Node], graph: ir.Graph) -> list[ir.Value]:
    """The tensors and graph inputs that the tail reads and does not make."""
    nodes = list(behind)
    inner = {out for node in nodes for out in node.outputs}
    every = (v for node in nodes for one in _with_subgraphs(node) for v in one.inputs)
    outer = [v for v in every if v is not None and v not in inner and not v.is_initializer()]
    return list(dict.fromkeys(v for v in outer if v.is_graph_input() or getattr(v.producer(), "graph", None) is graph))


def _with_subgraphs(node: ir.Node) -> Iterable[ir.Node]:
    yield node
    for attribute in node.attributes.values():
        if attribute.type is ir.AttributeType.GRAPH:
            yield from ir.traversal.RecursiveGraphIterator(attribute.as_graph())


def _only_tail(model: ir.Model, behind: set[str | None], read: list[TensorName]) -> ir.Model:
    """The copy `model` without what is before the tail."""
    graph = model.graph
    by_name = {value.name: value for node in graph for value in node.outputs} | {v.name: v for v in graph.inputs}
    outputs = [value for value in graph.outputs if getattr(value.producer(), "name", None) in behind]
    graph.outputs.clear()
    inputs = []
    for name in read:
        old = by_name[name]
        new = ir.Value(name=name, type=old.type, shape=old.shape)
        ir.convenience.replace_all_uses_with(old, new)
        inputs.append(new)
    graph.outputs.extend(outputs)
    graph.remove([node for node in graph if node.name not in behind], safe=True)
    graph.inputs.clear()
    graph.inputs.extend(inputs)
    RemoveUnusedNodesPass()(model)
    return model


def attach_tail(model: ir.Model, tail: Tail) -> None:
    """Put the tail back behind a model that was cut, in place. It reads the outputs in the types of the file."""
    graph, copy = model.graph, tail.model.clone()
    known = {value.name: value for value in (*graph.inputs, *graph.outputs)}
    results = dict(known)
    for value in copy.graph.inputs:
        ir.convenience.replace_all_uses_with(value, known[value.name])
    taken = names_in(graph)
    weights, nodes = list(copy.graph.initializers.values()), list(copy.graph)
    results |= {value.name: value for value in copy.graph.outputs}
    copy.graph.outputs.clear()
    copy.graph.remove(nodes)
    for value in weights:
        copy.graph.initializers.pop(value.name or "")
        value.name = free_name(value.name or "weight", taken)
        graph.register_initializer(value)
    for value in (out for node in nodes for out in node.outputs if out.name not in tail.outputs and out.name):
        value.name = free_name(value.name or "", taken)
    graph.extend(nodes)
    graph.outputs.clear()
    graph.outputs.extend(results[name] for name in tail.outputs)
    for domain, version in copy.opset_imports.items():
        model.opset_imports.setdefault(domain, version)
