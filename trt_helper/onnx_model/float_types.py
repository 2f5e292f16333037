"""The float types of a file: what its author decided by them, and how all of them become FP32.

Storage is not a decision: an FP16 or BF16 input, output or table says nothing about the layers that read it. A file is
mixed where its own casts lead from arithmetic in half precision to arithmetic in FP32, or back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import onnx_ir as ir

from trt_helper.onnx_model.roles import MOVEMENT
from trt_helper.values import ReducedPrecision

HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
# TensorRT-RTX 1.7.1 reads FP64 tensors as FP32 ("double" inputs, outputs and casts are built as FLOAT).
NOT_FP32 = (*HALVES, ir.DataType.DOUBLE)
REDUCED = {ir.DataType.FLOAT16: ReducedPrecision.FP16, ir.DataType.BFLOAT16: ReducedPrecision.BF16}


def author_fp32(model: ir.Model) -> frozenset[str]:
    """The layers that the author of a mixed file left in FP32, in branches, too.

    They compute in FP32, and FP32 tensors lead from or to them, up to a cast whose other side is arithmetic in half
    precision. In a file without such casts nobody decided.
    """
    after, before = [], []
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.op_type != "Cast" or node.inputs[0] is None:
            continue
        source, result = node.inputs[0], node.outputs[0]
        if source.dtype in HALVES and result.dtype is ir.DataType.FLOAT and _is_computed_in_half(source):
            after += [user for user, _ in result.uses()]
        if source.dtype is ir.DataType.FLOAT and result.dtype in HALVES and _feeds_half(result):
            before += [source.producer()]
    found = {*_reached(after, _consumers), *_reached(before, _producers)}
    return frozenset(node.name or "" for node in found if _computes_fp32(node))


def _computes_fp32(node: ir.Node) -> bool:
    return node.op_type != "Cast" and any(out.dtype is ir.DataType.FLOAT for out in node.outputs)


Following = Callable[[ir.Node], Iterable[ir.Node | None]]


def _reached(starts: Iterable[ir.Node | None], following: Following) -> set[ir.Node]:
    """The nodes with FP32 results that are reached from `starts` by FP32 tensors alone."""
    waiting, found = list(starts), set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found and any(out.dtype is ir.DataType.FLOAT for out in node.outputs):
            found.add(node)
            waiting += following(node)
    return found


def _consumers(node: ir.Node) -> Iterator[ir.Node]:
    return (user for out in node.outputs if out.dtype is ir.DataType.FLOAT for user, _ in out.uses())


def _producers(node: ir.Node) -> Iterator[ir.Node | None]:
    return (v.producer() for v in node.inputs if v is not None and v.dtype is ir.DataType.FLOAT)


def _is_computed_in_half(value: ir.Value) -> bool:
    """Whether arithmetic in half precision made this half tensor, maybe moved afterwards."""
    waiting, seen = [value.producer()], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if _is_half_arithmetic(node):
            return True
        waiting += [v.producer() for v in node.inputs if v is not None and v.dtype in HALVES]
    return False


def _feeds_half(value: ir.Value) -> bool:
    """Whether arithmetic in half precision reads this half tensor, maybe after it was moved."""
    waiting, seen = [user for user, _ in value.uses()], set()
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if _is_half_arithmetic(node):
            return True
        waiting += [user for out in node.outputs if out.dtype in HALVES for user, _ in out.uses()]
    return False


def _is_half_arithmetic(node: ir.Node) -> bool:
    if node.op_type == "Cast" or node.op_type in MOVEMENT:
        return False
    return any(value is not None and value.dtype in HALVES for value in (*node.inputs, *node.outputs))


def computes_in_half(model: ir.Model) -> bool:
    """Whether any node of the file does arithmetic in half precision."""
    return any(_is_half_arithmetic(node) for node in ir.traversal.RecursiveGraphIterator(model.graph))


def has_type(model: ir.Model, types: Iterable[ir.DataType]) -> bool:
    """Whether any tensor of the model has one of the types."""
    wanted = frozenset(types)
    return any(value.dtype in wanted for value in _values(model))


def mentions(model: ir.Model, dtype: ir.DataType) -> bool:
    """Whether a type comes into a model whose types are not inferred: by an input, a weight, a cast or a constant."""
    if has_type(model, [dtype]):
        return True
    attributes = (a for node in ir.traversal.RecursiveGraphIterator(model.graph) for a in node.attributes.values())
    return any(
        (a.name in ("to", "dtype") and a.type is ir.AttributeType.INT and a.as_int() == dtype)
        or (a.type is ir.AttributeType.TENSOR and a.as_tensor().dtype is dtype)
        for a in attributes
    )


def to_fp32(model: ir.Model) -> None:
    """Make every FP16, BF16 and FP64 tensor, initializer and attribute FP32, in place.

    Stored values of FP16 and BF16 do not change; those of FP64 are rounded. A Cast that would be from FP32 to FP32
    becomes an Identity.
    """
    for value in _values(model):
        if value.dtype in NOT_FP32:
            value.type = ir.TensorType(ir.DataType.FLOAT)
            if value.const_value is not None:
                value.const_value = _as_float32(value.const_value)
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        _attributes_to_fp32(node)
        source = node.inputs[0] if node.op_type == "Cast" else None
        if source is not None and source.dtype is ir.DataType.FLOAT is node.outputs[0].dtype:
            node.op_type = "Identity"
            node.attributes.clear()


def _values(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from graph.inputs
        yield from graph.initializers.values()
        for node in graph:
            yield from node.outputs


def _as_float32(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    with np.errstate(over="ignore"):
        return ir.Tensor(tensor.numpy().astype(np.float32), name=tensor.name)


def _attributes_to_fp32(node: ir.Node) -> None:
    for name in ("to", "dtype"):
        attribute = node.attributes.get(name)
        if attribute is not None and attribute.as_int() in NOT_FP32:
            node.attributes[name] = ir.AttrInt64(name, ir.DataType.FLOAT)
    value = node.attributes.get("value")
    if value is not None and value.type is ir.AttributeType.TENSOR and value.as_tensor().dtype in NOT_FP32:
        node.attributes["value"] = ir.AttrTensor("value", _as_float32(value.as_tensor()))
