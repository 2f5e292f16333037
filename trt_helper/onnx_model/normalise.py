"""An untouched ONNX graph goes in, the graph that precision is decided on comes out.

Functions are inlined, every node has a name of its own, half-precision parts are raised to FP32 (and
remembered), constants and BatchNorm are folded in FP32 as TensorRT folds them, types are inferred.
Nothing is rounded here: in FP32 the result computes what the user's model computes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes
from onnxscript.optimizer import fold_constants
from onnxscript.rewriter import rewrite
from onnxscript.rewriter.rules.common import (
    fuse_batchnorm_into_conv_rule,
    fuse_batchnorm_into_conv_transpose_rule,
    fuse_batchnorm_into_gemm_rule,
)

from trt_helper.errors import ModelError, first_line
from trt_helper.onnx_model.names import name_nodes

BATCHNORM_RULES = (
    fuse_batchnorm_into_conv_rule,
    fuse_batchnorm_into_conv_transpose_rule,
    fuse_batchnorm_into_gemm_rule,
)
HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
FOLD_LIMIT = 1 << 30  # elements: weights may be folded whatever their size
GROWTH_LIMIT = 1 << 24  # elements of a folded result, so that an Expand does not fill the memory
DOMAINS = ("", "ai.onnx")
RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli")
LISTS = ("SplitToSequence", "ConcatFromSequence")  # and all that begin with Sequence or Optional
QUANTISED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger")


@dataclass(frozen=True)
class Normalised:
    """`model` in FP32, and what its author had decided."""

    model: ir.Model
    aliases: dict[str, str]  # name of a folded or removed node -> the layer that it went into
    author_fp32: frozenset[str]  # layers that the author of a mixed model had left in FP32
    half_io: dict[str, ir.DataType] = field(default_factory=dict)  # graph inputs and outputs in half
    was_half: bool = False  # some node computed in half precision; stored or fed so alone is not meant


def normalise(model: ir.Model) -> Normalised:
    """Normalise `model` in place. Raises ModelError for what trt-helper cannot judge."""
    passes.InlinePass()(model)
    refuse(model)
    name_nodes(model.graph)
    passes.RemoveInitializersFromInputsPass()(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.LiftSubgraphInitializersToMainGraphPass()(model)
    infer_types(model)
    half_io = _half_io(model.graph)
    model.ir_version = max(model.ir_version, 4)  # from there on an initializer need not be an input
    was_half = _computes_in_half(model)
    author_fp32 = raise_to_fp32(model)
    before = {node.name or "": _consumers(node) for node in model.graph}
    producers = {out.name: node.name for node in model.graph for out in node.outputs}
    _fold_constants(model)
    folded = fold_batchnorm(model)
    passes.RemoveUnusedNodesPass()(model)
    _restore_names(model.graph, before, producers)
    name_nodes(model.graph)
    _refuse_sequences(model)
    if not _is_inferred(model):
        infer_types(model)
    alive = {node.name or "" for node in model.graph}
    if not alive:
        raise ModelError("every output is a constant", fix="there is nothing to decide in this model")
    vanished = [name for name in before if name not in alive]
    parents = _reversed(before)  # a no-op before an output went into what computes the output
    aliases = {
        n: successor for n in vanished if (successor := _successor(n, before, alive) or _successor(n, parents, alive))
    }
    return Normalised(
        model,
        {**aliases, **folded},
        frozenset({folded.get(name, name) for name in author_fp32} & alive),
        half_io,
        was_half,
    )


def _computes_in_half(model: ir.Model) -> bool:
    nodes = ir.traversal.RecursiveGraphIterator(model.graph)
    return any(out.dtype in HALVES for node in nodes if node.op_type != "Cast" for out in node.outputs)


def _half_io(graph: ir.Graph) -> dict[str, ir.DataType]:
    """Graph inputs and outputs in half; bfloat16 ones can neither be fed to the reference nor read from it."""
    found = {v.name: v.dtype for v in (*graph.inputs, *graph.outputs) if v.name and v.dtype in HALVES}
    for name, dtype in found.items():
        if dtype is ir.DataType.BFLOAT16:
            raise ModelError(f"{name!r} is bfloat16", fix="export the model with FP32 or FP16 inputs and outputs")
    return found


def _fold_constants(model: ir.Model) -> None:
    try:
        fold_constants(model, input_size_limit=FOLD_LIMIT, output_size_limit=GROWTH_LIMIT)
    except RuntimeError as error:  # what onnxscript makes of any mistake in one of its own rules
        raise ModelError(
            f"{first_line(error)}: {error.__cause__}",
            fix="export the model without this operator; onnxscript cannot fold it",
        ) from error


def refuse(model: ir.Model) -> None:
    """Say no to what has no FP32 reference here, before any work is done."""
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        where = f"node {node.name or node.op_type!r}"
        if node.domain not in DOMAINS:
            raise ModelError(
                f"{where} is {node.domain}::{node.op_type}, a custom operator: it has no reference to judge by",
                fix="export the model with standard ONNX operators, or cut the custom part off",
            )
        if node.op_type in QUANTISED or node.op_type.startswith("QLinear"):
            raise ModelError(
                f"{where} is {node.op_type}: the model is quantised already",
                fix="give the FP32 model from before quantisation; trt-helper chooses between FP32 and FP16",
            )
        if node.op_type in RANDOM or _drops_at_random(node):
            raise ModelError(
                f"{where} is {node.op_type}: it draws random numbers, so no two runs can be compared",
                fix="export the model in evaluation mode, or give the random numbers as an input",
            )


def _drops_at_random(node: ir.Node) -> bool:
    """A Dropout that was exported in training mode."""
    if node.op_type != "Dropout" or len(node.inputs) < 3 or node.inputs[2] is None:  # noqa: PLR2004 - training_mode
        return False
    mode = ir.convenience.get_const_tensor(node.inputs[2])
    return mode is not None and bool(mode.numpy().any())


def _refuse_sequences(model: ir.Model) -> None:
    """Lists of tensors that folding did not dissolve: nothing can be cast there, and TensorRT has none."""
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.op_type in LISTS or node.op_type.startswith(("Sequence", "Optional")):
            raise ModelError(
                f"node {node.name!r} is {node.op_type}: TensorRT has no sequences and no optional tensors",
                fix="export the model without lists of tensors",
            )


def infer_types(model: ir.Model) -> None:
    """Infer shapes and types; every tensor has a type afterwards."""
    passes.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        for value in node.outputs:
            if value.name and value.type is None and (value.uses() or value.is_graph_output()):
                raise ModelError(
                    f"the type of {value.name!r}, an output of {node.op_type} {node.name!r}, cannot be inferred",
                    fix="run onnx.shape_inference on the model, or export it again with type information",
                )


def _is_inferred(model: ir.Model) -> bool:
    """Whether every tensor has a type and a shape, of numbers and of symbols that the inputs have.

    What else there is of symbols an inference made up, and it may make numbers of them when constants are folded.
    """
    given = {dim for value in model.graph.inputs for dim in value.shape or () if dim != ir.SymbolicDim(None)}
    outputs = (v for node in ir.traversal.RecursiveGraphIterator(model.graph) for v in node.outputs if v.name)
    return all(
        v.type is not None and v.shape is not None and all(isinstance(dim, int) or dim in given for dim in v.shape)
        for v in outputs
    )


def raise_to_fp32(model: ir.Model) -> frozenset[str]:
    """Turn every half-precision tensor of a mixed model into FP32, without changing a value.

    Returns the names of the main graph's layers that compute in FP32 already, in a model that also
    has half-precision ones: its author meant them to. In a pure FP32 model nobody decided anything.
    """
    values = list(_values(model))
    if not any(value.dtype in HALVES for value in values):
        return frozenset()
    kept = frozenset(
        node.name or ""
        for node in model.graph
        if node.op_type != "Cast" and any(out.dtype is ir.DataType.FLOAT for out in node.outputs)
    )
    for value in values:
        if value.dtype in HALVES:
            value.type = ir.TensorType(ir.DataType.FLOAT)
            if value.const_value is not None:
                value.const_value = _as_float32(value.const_value)
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        _raise_attributes(node)
    _drop_idle_casts(model)
    return kept


def _values(model: ir.Model) -> Iterable[ir.Value]:
    for graph in model.graphs():
        yield from graph.inputs
        yield from graph.initializers.values()
        for node in graph:
            yield from node.outputs


def _as_float32(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.Tensor(tensor.numpy().astype(np.float32), name=tensor.name)


def _raise_attributes(node: ir.Node) -> None:
    for name in ("to", "dtype"):
        attribute = node.attributes.get(name)
        if attribute is not None and attribute.as_int() in HALVES:
            node.attributes[name] = ir.AttrInt64(name, ir.DataType.FLOAT)
    value = node.attributes.get("value")
    if value is not None and value.type is ir.AttributeType.TENSOR and value.as_tensor().dtype in HALVES:
        node.attributes["value"] = ir.AttrTensor("value", _as_float32(value.as_tensor()))


def _drop_idle_casts(model: ir.Model) -> None:
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        source = node.inputs[0] if node.op_type == "Cast" else None
        if source is not None and source.dtype is ir.DataType.FLOAT is node.outputs[0].dtype:
            node.op_type = "Identity"
            node.attributes.clear()


def fold_batchnorm(model: ir.Model) -> dict[str, str]:
    """Fold each BatchNorm into the convolution or product before it; returns BatchNorm -> its heir.

    A BatchNorm that stands alone becomes the scale and shift that TensorRT computes: its running
    mean and variance are worked into scale and bias, in FP32, before anything is rounded.
    """
    norms = {
        node.outputs[0].name: (node.name or "", getattr(node.inputs[0].producer(), "name", None))  # type: ignore[union-attr]
        for node in model.graph
        if node.op_type == "BatchNormalization"
    }
    if not norms:
        return {}
    origins = {node.name: dict(node.metadata_props) for node in model.graph}
    rewrite(model, BATCHNORM_RULES)
    successors: dict[str, str] = {}
    for node in model.graph:
        norm, parent = norms.get(node.outputs[0].name, ("", None))
        if node.op_type == "BatchNormalization":
            _absorb_statistics(node)
        elif norm and parent:
            node.name = parent
            node.metadata_props.clear()
            node.metadata_props.update(origins.get(parent, {}))  # the convolution's module, not the norm's
            successors[norm] = parent
    return successors


def _absorb_statistics(node: ir.Node) -> None:
    tensors = [value.const_value if value is not None else None for value in node.inputs[1:5]]
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    if any(tensor is None for tensor in tensors):
        return
    scale, bias, mean, variance = (tensor.numpy() for tensor in tensors if tensor is not None)
    factor = scale / np.sqrt(variance + np.float32(epsilon))
    folded = (factor, bias - mean * factor, np.zeros_like(mean), np.ones_like(variance))
    for index, (role, array) in enumerate(zip(("scale", "bias", "mean", "var"), folded, strict=True), start=1):
        value = ir.Value(
            name=f"{node.name}_folded_{role}",
            const_value=ir.Tensor(array.astype(np.float32)),
            type=ir.TensorType(ir.DataType.FLOAT),
            shape=ir.Shape(array.shape),
        )
        node.graph.register_initializer(value)  # type: ignore[union-attr]
        node.replace_input_with(index, value)
    node.attributes["epsilon"] = ir.AttrFloat32("epsilon", 0.0)


def _consumers(node: ir.Node) -> tuple[str, ...]:
    return tuple(user.name or "" for out in node.outputs for user, _ in out.uses())


def _reversed(consumers: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    producers: dict[str, list[str]] = {name: [] for name in consumers}
    for name, names in consumers.items():
        for consumer in names:
            producers.setdefault(consumer, []).append(name)
    return {name: tuple(found) for name, found in producers.items()}


def _restore_names(
    graph: ir.Graph, before: dict[str, tuple[str, ...]], producers: dict[str | None, str | None]
) -> None:
    """A node that a rewrite replaced gets back the name of the one that made the same tensor."""
    taken = {node.name for node in graph}
    for node in graph:
        if node.name in before:
            continue
        name = next((producers[out.name] for out in node.outputs if out.name in producers), None)
        if name and name not in taken:
            node.name = name
            taken.add(name)


def _successor(name: str, links: dict[str, tuple[str, ...]], alive: set[str]) -> str | None:
    """The surviving layer that is nearest to a vanished one, in the direction of `links`."""
    queue, seen = list(links[name]), {name}
    while queue:
        candidate = queue.pop(0)
        if candidate in alive:
            return candidate
        if candidate not in seen:
            seen.add(candidate)
            queue.extend(links.get(candidate, ()))
    return None
