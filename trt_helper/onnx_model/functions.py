"""Inline the functions of a model."""

from __future__ import annotations

import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes

from trt_helper.errors import ModelError, first_line
from trt_helper.onnx_model.inference import all_nodes
from trt_helper.onnx_model.plugins import DOMAINS


def inline(model: ir.Model) -> None:
    """Inline all functions. Versions of the standard that mean the same for a function's operators count as equal."""
    for function in model.functions.values():
        for domain, version in function.opset_imports.items():
            wanted = model.opset_imports.get(domain, version)
            if all(_same_schema(node, version, wanted) for node in function if node.domain == domain):
                function.opset_imports[domain] = wanted
    for node in all_nodes(model):
        called = model.functions.get(node.op_identifier())
        if called is not None and len(node.outputs) < len(called.outputs):  # trailing outputs may be left out
            node.resize_outputs(len(called.outputs))
    try:
        passes.InlinePass()(model)
    except Exception as error:  # onnx_ir raises ValueError, wrapped by its passes, for every call that does not fit
        cause = error.__cause__ or error
        raise ModelError(
            f"a call of a function cannot be inlined: {first_line(cause)}",
            fix="export the model without functions, or with calls that fit them",
        ) from error


def _same_schema(node: ir.Node, one: int, other: int) -> bool:
    """Whether an operator means the same in two versions of its domain."""
    domain = "" if node.domain in DOMAINS else node.domain
    try:
        first, second = (onnx.defs.get_schema(node.op_type, version, domain) for version in (one, other))
    except onnx.defs.SchemaError:  # another function
        return True
    return bool(first.since_version == second.since_version)
