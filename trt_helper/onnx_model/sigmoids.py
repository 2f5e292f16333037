"""Sigmoids whose relative accuracy counts.

ONNX Runtime's CPU provider computes a Sigmoid to 1e-7 absolute (measured on 1.32): below some -8 a relative error of
1e-4, below -18 nothing is right. That is harmless, unless its logarithm is taken or something is divided by it. There
the reference is exp(-softplus(-x)), right to the last digits; kernels compute 1 / (1 + exp(-x)) in FP32, as right.
"""

from __future__ import annotations

import onnx_ir as ir

from trt_helper.onnx_model.float_types import mentions
from trt_helper.onnx_model.names import free_name, names_in

EXACT = ("Neg", "Softplus", "Neg", "Exp")  # one after the other: a sigmoid without a constant, so of any type
RELATIVE = frozenset(("Log", "Reciprocal", "Div", "Pow", "Sqrt"))  # the relative error of what they read counts


def counts_relatively(node: ir.Node) -> bool:
    """Whether this is a Sigmoid that some layer reads by its relative value."""
    return node.op_type == "Sigmoid" and any(use.node.op_type in RELATIVE for use in node.outputs[0].uses())


def with_exact_sigmoids(model: ir.Model) -> ir.Model:
    """`model`, or, if its main graph has such sigmoids, a copy that computes these as exp(-softplus(-x)).

    A model with FP64 in it is left as it is: ONNX Runtime has no Softplus of that type.
    """
    if mentions(model, ir.DataType.DOUBLE) or not any(counts_relatively(node) for node in model.graph):
        return model
    copy = model.clone()
    names = names_in(copy.graph)
    for node in [node for node in copy.graph if counts_relatively(node)]:
        made: list[ir.Node] = []
        for operator in EXACT:
            inputs = made[-1].outputs if made else node.inputs
            made.append(ir.Node("", operator, inputs, name=free_name(f"{node.name}_{operator}", names)))
            made[-1].outputs[0].name = free_name(f"{made[-1].name}_output", names)
        ir.convenience.replace_nodes_and_values(copy.graph, node, [node], made, node.outputs, made[-1].outputs)
    return copy
