"""The branches of an If, opened into the main graph while precision is decided, and closed again in the typed model.

In the opened graph the nodes of both branches stand before a `Select`, an operator of our own, which picks the results
of the branch that is taken. Each of these nodes has its path in its metadata: the Selects that it belongs to, outermost
first, and which branch of each. So layers of a branch are layers like all others, and casts are put where they are
needed; a node that is added later belongs to the branch of what it reads.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

import onnx_ir as ir
from onnx_ir.passes.common import TopologicalSortPass

from trt_helper.onnx_model.names import free_name, names_in
from trt_helper.values import LayerName, TensorName

DOMAIN, SELECT = "trt_helper", "Select"
PATH = "trt_helper.branch"  # metadata of a node: JSON, a list of [name of the Select, number of the branch]
BRANCHES = ("then_branch", "else_branch")
NUMBER_TAKEN = {True: 0, False: 1}  # the number of the branch that is taken, by the condition

Path = tuple[tuple[LayerName, int], ...]
Conditions = tuple[tuple[TensorName, bool], ...]  # tensors, and what they have to be


def open_branches(model: ir.Model) -> None:
    """Open every If of the main graph whose branches have floats in them, in place. Values get unique names."""
    taken = names_in(model.graph)
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        node.metadata_props.pop(PATH, None)  # of a user's file: it means nothing
    while opened := [node for node in model.graph if node.op_type == "If" and _has_floats(node)]:
        for node in opened:
            _open(node, model.graph, taken)


def _has_floats(node: ir.Node) -> bool:
    bodies = (node.attributes[name].as_graph() for name in BRANCHES)
    inner = (one for body in bodies for one in ir.traversal.RecursiveGraphIterator(body))
    return any(value.dtype is ir.DataType.FLOAT for one in inner for value in one.outputs)


def _open(node: ir.Node, graph: ir.Graph, taken: set[str]) -> None:
    outer = _path(node)
    results: list[ir.Value | None] = []
    for number, name in enumerate(BRANCHES):
        body = node.attributes[name].as_graph()
        returned = list(body.outputs)
        body.outputs.clear()
        for value in list(body.initializers.values()):
            moved = _initializer(value, graph, taken)
            ir.convenience.replace_all_uses_with(value, moved)
            returned = [moved if one is value else one for one in returned]
        inside = list(body)
        results.extend(returned)
        body.remove(inside)
        for one in inside:
            one.metadata_props[PATH] = json.dumps([*outer, (node.name, number)])
            for value in one.outputs:
                value.name = free_name(value.name or "", taken) if value.name else value.name
        graph.insert_before(node, inside)
    select = ir.Node(DOMAIN, SELECT, [node.inputs[0], *results], num_outputs=len(node.outputs), name=node.name)
    if outer:
        select.metadata_props[PATH] = json.dumps(outer)
    for old, new in zip(node.outputs, select.outputs, strict=True):
        new.name, new.type, new.shape = old.name, old.type, old.shape
    ir.convenience.replace_nodes_and_values(graph, node, [node], [select], node.outputs, select.outputs)


def _initializer(value: ir.Value, graph: ir.Graph, taken: set[str]) -> ir.Value:
    """A copy of a branch's initializer in the main graph."""
    name = free_name(value.name or "value", taken)
    moved = ir.Value(name=name, type=value.type, shape=value.shape, const_value=value.const_value)
    graph.register_initializer(moved)
    return moved


def _path(node: ir.Node) -> Path:
    return tuple((str(name), int(number)) for name, number in json.loads(node.metadata_props.get(PATH, "[]")))


def is_select(node: ir.Node) -> bool:
    """Whether the node picks the results of a branch."""
    return node.domain == DOMAIN and node.op_type == SELECT


def paths(graph: ir.Graph) -> dict[LayerName, Path]:
    """The path of every node of a graph that is in a branch."""
    found: dict[LayerName, Path] = {}
    for node in graph:
        path = _path(node)
        if not path:
            read = (v.producer() for v in node.inputs if v is not None) if not is_select(node) else ()
            path = max((found.get(one.name or "", ()) for one in read if one is not None), key=len, default=())
        if path:
            found[node.name or ""] = path
    return found


def conditions(graph: ir.Graph) -> Mapping[LayerName, Conditions]:
    """What has to be true so that a node of the opened graph is computed; nodes outside of branches are not in it."""
    selects = {node.name or "": node.inputs[0] for node in graph if is_select(node)}
    names = {name: value.name or "" for name, value in selects.items() if value is not None}
    return {
        name: tuple((names[select], number == NUMBER_TAKEN[True]) for select, number in path if select in names)
        for name, path in paths(graph).items()
    }


def close_branches(model: ir.Model) -> None:
    """Put the nodes of branches back into their If, in place; `open_branches` backwards."""
    graph = model.graph
    of = paths(graph)
    selects = sorted((node for node in graph if is_select(node)), key=lambda node: -len(of.get(node.name or "", ())))
    taken = names_in(graph) if selects else set()
    for select in selects:
        outer = of.get(select.name or "", ())
        count = len(select.outputs)
        bodies = []
        for number, name in enumerate(BRANCHES):
            wanted = (*outer, (select.name or "", number))
            inside = [node for node in graph if of.get(node.name or "") == wanted]
            results = select.inputs[1 + number * count : 1 + (number + 1) * count]
            bodies.append(ir.AttrGraph(name, _body(select, name, inside, results, taken)))
        made = ir.Node("", "If", [select.inputs[0]], bodies, num_outputs=count, name=select.name)
        for old, new in zip(select.outputs, made.outputs, strict=True):
            new.name, new.type, new.shape = old.name, old.type, old.shape
        ir.convenience.replace_nodes_and_values(graph, select, [select], [made], select.outputs, made.outputs)
    if selects:
        TopologicalSortPass()(model)


def _body(
    select: ir.Node,
    name: str,
    nodes: list[ir.Node],
    results: Iterable[ir.Value | None],
    taken: set[str],
) -> ir.Graph:
    """A branch with these nodes, which are taken out of their graph. What it returns is computed in it."""
    outputs: list[ir.Value] = []
    made: list[ir.Node] = []
    inside = {id(node) for node in nodes}
    for value in results:
        if value is None:
            raise AssertionError("a branch returns a tensor for each output of its If")
        producer = value.producer()
        if producer is None or id(producer) not in inside or value in outputs:
            copy = free_name(f"{value.name}_of_{name}", taken)
            node = ir.Node("", "Identity", [value], num_outputs=1, name=copy)
            node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = copy, value.type, value.shape
            made.append(node)
            value = node.outputs[0]  # noqa: PLW2901
        outputs.append(value)
    for index in range(len(select.inputs)):
        if any(select.inputs[index] is value for value in outputs):
            select.replace_input_with(index, select.inputs[0])  # the branch has it now
    if nodes:
        select.graph.remove(nodes)  # type: ignore[union-attr]
    for node in nodes:
        node.metadata_props.pop(PATH, None)
    return ir.Graph([], outputs, nodes=[*nodes, *made], name=f"{select.name}_{name}")
