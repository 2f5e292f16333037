"""Raise a model to a later opset."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import version_converter

from trt_helper.errors import ModelError, first_line


def raise_to(model: ir.Model, opset: int, why: str) -> None:
    """Convert `model`, in place, to an opset of the standard that is at least `opset`.

    Args:
        model: Before it is normalised.
        opset: The wanted opset.
        why: What needs it; for the message.

    Raises:
        ModelError: onnx cannot convert the model to that opset.
    """
    if model.opset_imports.get("", 1) >= opset:
        return
    try:
        version_converter.convert_version(model, opset, fallback=True)
    except Exception as error:  # onnx's converter passes on any C++ exception
        raise ModelError(
            f"the model cannot be converted to opset {opset}, which {why} needs: {first_line(error)}",
            fix=f"export it with opset {opset} or later",
        ) from error
