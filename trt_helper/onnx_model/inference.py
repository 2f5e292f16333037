"""Types and shapes of all tensors, as far as they can be inferred."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes


def all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """The nodes of the main graph and of all graphs within it."""
    return iter(ir.traversal.RecursiveGraphIterator(model.graph))


def infer_what_is_known(model: ir.Model) -> None:
    """Infer types and shapes in place, as far as onnx can."""
    passes.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)


def infer_by_schema(node: ir.Node, model: ir.Model) -> bool:
    """Give outputs without a type that of the inputs which the schema says have the same; whether there was one.

    ONNX has no inference for some operators, such as GroupNormalization of opset 21.
    """
    untyped = [index for index, value in enumerate(node.outputs) if value.name and value.type is None]
    if not untyped:
        return False
    try:
        schema = onnx.defs.get_schema(node.op_type, model.opset_imports.get("", 1))
    except onnx.defs.SchemaError:
        return False
    named = {parameter.type_str: value for parameter, value in zip(schema.inputs, node.inputs, strict=False)}
    found = False
    for index in untyped:
        like = named.get(schema.outputs[min(index, len(schema.outputs) - 1)].type_str)
        if like is not None and like.type is not None:
            node.outputs[index].type = like.type
            found = True
    return found


def is_inferred(model: ir.Model) -> bool:
    """Whether every tensor has a type and a shape, and no symbol in a shape comes from shape inference.

    Shape inference makes up symbols for sizes that it cannot compute. It may know the number once constants are folded.
    """
    given = {dim for value in model.graph.inputs for dim in value.shape or () if dim != ir.SymbolicDim(None)}
    outputs = (v for node in all_nodes(model) for v in node.outputs if v.name)
    return all(
        v.type is not None and v.shape is not None and all(isinstance(dim, int) or dim in given for dim in v.shape)
        for v in outputs
    )
