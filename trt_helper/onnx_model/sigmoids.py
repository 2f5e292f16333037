"""Sigmoids whose relative accuracy counts.

ONNX Runtime's CPU provider computes a Sigmoid to 1e-7 absolute (measured on 1.32): below some -8 a relative error of
1e-4, below -18 nothing is right. That is harmless, unless its logarithm is taken or something is divided by it. There
the reference is 1 / (1 + exp(-x)), which is what kernels compute in FP32.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from trt_helper.onnx_model.names import free_name, names_in

RELATIVE = frozenset(("Log", "Reciprocal", "Div", "Pow", "Sqrt"))  # the relative error of what they read counts


def counts_relatively(node: ir.Node) -> bool:
    """Whether this is a Sigmoid that some layer reads by its relative value."""
    return node.op_type == "Sigmoid" and any(use.node.op_type in RELATIVE for use in node.outputs[0].uses())


def with_exact_sigmoids(model: ir.Model) -> ir.Model:
    """`model`, or, if its main graph has such sigmoids, a copy that computes these as 1 / (1 + exp(-x))."""
    if not any(counts_relatively(node) for node in model.graph):
        return model
    copy = model.clone()
    names = names_in(copy.graph)
    one = ir.Value(
        name=free_name("one", names),
        type=ir.TensorType(ir.DataType.FLOAT),
        shape=ir.Shape([]),
        const_value=ir.Tensor(np.array(1, np.float32)),
    )
    copy.graph.register_initializer(one)
    for node in [node for node in copy.graph if counts_relatively(node) and node.inputs[0] is not None]:
        negative = ir.Node("", "Neg", [node.inputs[0]], name=free_name(f"{node.name}_Neg", names))
        power = ir.Node("", "Exp", [negative.outputs[0]], name=free_name(f"{node.name}_Exp", names))
        total = ir.Node("", "Add", [power.outputs[0], one], name=free_name(f"{node.name}_Add", names))
        quotient = ir.Node("", "Reciprocal", [total.outputs[0]], name=free_name(f"{node.name}_Reciprocal", names))
        for made in (negative, power, total):
            made.outputs[0].name = free_name(f"{made.name}_output", names)
        nodes, old = [negative, power, total, quotient], node.outputs[0]
        ir.convenience.replace_nodes_and_values(copy.graph, node, [node], nodes, [old], [quotient.outputs[0]])
    return copy
