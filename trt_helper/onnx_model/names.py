"""Unique names for nodes and values."""

from __future__ import annotations

import onnx_ir as ir


def name_nodes(graph: ir.Graph) -> None:
    """Give every node, also in subgraphs, a unique name, in place. Names that are unique already stay.

    An unnamed node is called `node_of_<first output>`, as in TensorRT's parser. Of several nodes with one name the
    first keeps it, and the others get a number: `name_1`.
    """
    nodes = list(ir.traversal.RecursiveGraphIterator(graph))
    given = {node.name for node in nodes}
    taken: set[str] = set()
    for node in nodes:
        name = node.name or f"node_of_{node.outputs[0].name}"
        unique, number = name, 0
        while unique in taken or (unique in given and unique != node.name):
            number += 1
            unique = f"{name}_{number}"
        taken.add(unique)
        node.name = unique


def names_in(graph: ir.Graph) -> set[str]:
    """The names of all nodes, inputs, initializers and node outputs of a graph, without those of its subgraphs."""
    values = (*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs))
    return {one.name or "" for one in (*values, *graph)}


def free_name(wanted: str, taken: set[str]) -> str:
    """`wanted`, or the first of `wanted_1`, `wanted_2`, ... that is not in `taken`. The result is added to `taken`."""
    name, number = wanted, 0
    while name in taken:
        number += 1
        name = f"{wanted}_{number}"
    taken.add(name)
    return name
