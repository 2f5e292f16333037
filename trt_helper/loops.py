"""A model goes in; its Loops come out with a condition, as TensorRT's ONNX parser needs them. No value changes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from trt_helper.normalise import free_name, names_in

CONDITION = 1  # the second input of a Loop and of its body; the first result of the body


def state_conditions(model: ir.Model) -> None:
    """Give every Loop without a condition one that stays true, in place.

    ONNX lets a Loop that counts leave its condition out, and ignores what the body says of it then. TensorRT-RTX
    1.7.1 and 1.4.0 refuse such a body if it reads the condition ("Node input was not registered").
    """
    for node in list(ir.traversal.RecursiveGraphIterator(model.graph)):
        if node.op_type == "Loop" and node.inputs[CONDITION] is None and node.graph is not None:
            node.replace_input_with(CONDITION, _true(node))
            _keep(node.attributes["body"].as_graph())


def _true(loop: ir.Node) -> ir.Value:
    name = free_name(f"{loop.name}_condition", names_in(loop.graph))  # type: ignore[arg-type]
    value = ir.Value(name=name, type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape(()))
    node = ir.Node("", "Constant", [], [ir.AttrTensor("value", ir.Tensor(np.array(True)))], outputs=[value], name=name)
    loop.graph.insert_before(loop, node)  # type: ignore[union-attr]
    return value


def _keep(body: ir.Graph) -> None:
    name = free_name(f"{body.inputs[CONDITION].name}_kept", names_in(body))
    kept = ir.Value(name=name, type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape(()))
    body.append(ir.Node("", "Identity", [body.inputs[CONDITION]], outputs=[kept], name=name))
    body.outputs[0] = kept
