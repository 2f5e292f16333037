"""Normalise an ONNX graph into the FP32 graph that precision is decided on.

`normalise` runs the passes in `PASSES`, in that order, on one model in place. The docstring of a pass states
what must hold before it (Requires) and what holds after it (Ensures). No pass rounds a value to FP16 or BF16: in
FP32 the result computes what the user's model computes. Constants and BatchNorm are folded before anything is
rounded, as TensorRT folds them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
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

from trt_helper.errors import ModelError, TrtHelperError, first_line
from trt_helper.onnx_model.branches import open_branches
from trt_helper.onnx_model.expanded import EXPANDED, expand
from trt_helper.onnx_model.float_types import NOT_FP32, author_fp32, computes_in_half, has_type, to_fp32
from trt_helper.onnx_model.functions import inline
from trt_helper.onnx_model.inference import all_nodes, infer_by_schema, infer_what_is_known, is_inferred
from trt_helper.onnx_model.names import name_nodes
from trt_helper.onnx_model.opsets import raise_to
from trt_helper.onnx_model.plugins import Tail, cut_tail

BATCHNORM_RULES = (
    fuse_batchnorm_into_conv_rule,
    fuse_batchnorm_into_conv_transpose_rule,
    fuse_batchnorm_into_gemm_rule,
)
FOLD_LIMIT = 1 << 30  # elements of the inputs of a folded node: weights of any usual size may be folded
GROWTH_LIMIT = 1 << 24  # elements of the result of a folded node, so that an Expand does not fill the memory
RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli")
LISTS = ("SplitToSequence", "ConcatFromSequence")  # also every operator whose name begins with Sequence or Optional
LISTS_OPSET = 13  # the first that onnxscript's rules for lists write operators of
QUANTISED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger")


@dataclass(frozen=True)
class Normalised:
    """The normalised model, and the facts about the user's file that the FP32 graph no longer shows."""

    model: ir.Model
    aliases: dict[str, str]  # name of a folded or removed node -> its successor, a layer of `model`
    author_fp32: frozenset[str]  # layers that the author of a mixed-precision model left in FP32
    io_types: dict[str, ir.DataType] = field(default_factory=dict)  # FP16, BF16 and FP64 inputs and outputs of the file
    was_half: bool = False  # some node does arithmetic in FP16 or BF16 in the file; storing and casting do not count
    tail: Tail | None = None  # custom operators that were cut off


@dataclass
class _State:
    """The model that is being normalised, and what passes record for later passes and for the result."""

    model: ir.Model
    io_types: dict[str, ir.DataType] = field(default_factory=dict)
    was_half: bool = False
    tail: Tail | None = None
    author_fp32: frozenset[str] = frozenset()
    consumers: dict[str, tuple[str, ...]] = field(default_factory=dict)  # of each node, by name, before folding
    producers: dict[str | None, str | None] = field(default_factory=dict)  # tensor -> node name, before folding
    folded_norms: dict[str, str] = field(default_factory=dict)  # name of a folded BatchNorm -> its successor


def normalise(model: ir.Model) -> Normalised:
    """Normalise `model` in place, by all passes of `PASSES`.

    An unexpected exception is a bug. On Python 3.11 and later it carries a note that names the pass.

    Raises:
        ModelError: The model contains something that trt-helper cannot judge.
    """
    state = _State(model)
    for graph_pass in PASSES:
        try:
            graph_pass(state)
        except TrtHelperError:
            raise
        except Exception as error:
            if sys.version_info >= (3, 11):
                error.add_note(f"while normalising the model, in the pass {graph_pass.__name__!r}")
            raise
    remaining = {node.name or "" for node in model.graph}
    return Normalised(
        model,
        _aliases(state, remaining),
        frozenset({state.folded_norms.get(name, name) for name in state.author_fp32} & remaining),
        state.io_types,
        state.was_half,
        state.tail,
    )


# ------------------------------------------------------------------------------------------------ passes


def inline_functions(state: _State) -> None:
    """Replace every call of a model-local function with the body of the function.

    Requires: a model that `load` accepted.
    Ensures: the model has no functions.
    """
    inline(state.model)


def expand_operators(state: _State) -> None:
    """Write operators of com.microsoft as standard ones, see `expanded`.

    Requires: functions are inlined.
    Ensures: no node is one that `expanded.EXPANDED` knows. Nodes of an expansion are called NODE/OPERATOR_NUMBER.
    """
    while any((node.domain, node.op_type) in EXPANDED for node in all_nodes(state.model)):
        name_nodes(state.model.graph)
        infer_what_is_known(state.model)
        expand(state.model)
        inline(state.model)


def cut_before_plugins(state: _State) -> None:
    """Cut the model before its custom operators, see `plugins`.

    Requires: functions are inlined, because a call of one looks like a custom operator.
    Ensures: every node is an operator of the ONNX standard. `tail` has what was cut off.
    """
    state.tail = cut_tail(state.model)


def refuse_unsupported(state: _State) -> None:
    """Refuse quantised models and random numbers: they have no FP32 reference here.

    Ensures: every node is a deterministic, unquantised operator of the ONNX standard. The model is unchanged.
    """
    for node in all_nodes(state.model):
        where = f"node {node.name or node.op_type!r}"
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


def make_names_unique(state: _State) -> None:
    """Name the nodes that have no name, and rename those that share one.

    Ensures: each node, also in subgraphs, has a name that no other node has. Names that were unique are kept.
    """
    name_nodes(state.model.graph)


def constants_to_initializers(state: _State) -> None:
    """Turn Constant nodes into initializers of the main graph.

    Ensures: no initializer is an input of the graph, no Constant node holds a dense tensor, and subgraphs have no
        initializers, except those that are outputs of a subgraph.
    """
    passes.RemoveInitializersFromInputsPass()(state.model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(state.model)
    passes.LiftSubgraphInitializersToMainGraphPass()(state.model)


def free_dimensions(state: _State) -> None:
    """Make negative dimensions of inputs and outputs, by which old exporters mean dynamic ones, dynamic.

    Ensures: no dimension of an input or output is negative.
    """
    for value in (*state.model.graph.inputs, *state.model.graph.outputs):
        if value.shape is not None and any(isinstance(size, int) and size < 0 for size in value.shape):
            value.shape = ir.Shape([None if isinstance(d, int) and d < 0 else d for d in value.shape])


def infer_types(state: _State) -> None:
    """Infer the types and shapes of all tensors.

    Ensures: every tensor that a node reads or that the graph returns has a type. Shapes may stay unknown.
    """
    infer_what_is_known(state.model)
    while sum(infer_by_schema(node, state.model) for node in all_nodes(state.model)):
        infer_what_is_known(state.model)
    for node in all_nodes(state.model):
        for value in node.outputs:
            if value.name and value.type is None and (value.uses() or value.is_graph_output()):
                raise ModelError(
                    f"the type of {value.name!r}, an output of {node.op_type} {node.name!r}, cannot be inferred",
                    fix="export the model again with type information (value_info)",
                )


def raise_ir_version(state: _State) -> None:
    """Raise the model to IR version 4, the first in which an initializer need not be an input of the graph.

    Ensures: the IR version is at least 4.
    """
    state.model.ir_version = max(state.model.ir_version, 4)


def record_half_precision(state: _State) -> None:
    """Record the inputs and outputs that are floats other than FP32, and whether the file computes in half precision.

    Requires: types are inferred, and half precision is not raised yet.
    Ensures: `io_types` and `was_half` are set. The model is unchanged.
    """
    graph = state.model.graph
    state.io_types = {v.name: v.dtype for v in (*graph.inputs, *graph.outputs) if v.name and v.dtype in NOT_FP32}
    state.was_half = computes_in_half(state.model)


def raise_to_fp32(state: _State) -> None:
    """Turn every FP16, BF16 and FP64 tensor into FP32, without changing a value stored in half precision.

    Requires: types are inferred.
    Ensures: no tensor, initializer or attribute has another float type. A Cast that would now be from FP32 to FP32 is
        an Identity. `author_fp32` names the layers that the author of a mixed file left in FP32.
    """
    if has_type(state.model, NOT_FP32):
        state.author_fp32 = author_fp32(state.model)
        to_fp32(state.model)


def record_names(state: _State) -> None:
    """Record the names of the main graph's nodes, and the consumers of each.

    Requires: names are unique, and nothing is folded yet.
    Ensures: `consumers` and `producers` are set. The model is unchanged.
    """
    graph = state.model.graph
    state.consumers = {
        node.name or "": tuple(user.name or "" for out in node.outputs for user, _ in out.uses()) for node in graph
    }
    state.producers = {out.name: node.name for node in graph for out in node.outputs}


def fold_constant_nodes(state: _State) -> None:
    """Compute in FP32 all tensors that depend on constants alone.

    Requires: half precision is raised to FP32, so that nothing is rounded before it is folded.
    Ensures: a node that reads only constants became an initializer, if onnxscript can compute it and the result
        has at most `GROWTH_LIMIT` elements. A node may have been replaced by one with another name.
    """
    if any(_is_list(node) for node in all_nodes(state.model)):
        raise_to(state.model, LISTS_OPSET, "a list of tensors")
    try:
        fold_constants(state.model, input_size_limit=FOLD_LIMIT, output_size_limit=GROWTH_LIMIT)
    except RuntimeError as error:  # onnxscript turns every mistake in one of its own rules into this
        refuse_sequences(state)
        raise ModelError(
            f"{first_line(error)}: {error.__cause__}",
            fix="export the model without this operator; onnxscript cannot fold it",
        ) from error


def fold_batchnorm(state: _State) -> None:
    """Fold each BatchNorm into the convolution or Gemm before it.

    A BatchNorm that cannot be folded becomes the scale and shift that TensorRT computes: the running mean and
    variance are merged into scale and bias, in FP32, before anything is rounded. (A running variance of 4.8e7 is
    infinite in FP16.)

    Requires: weights are FP32 initializers, and names are unique.
    Ensures: a BatchNorm of the main graph with constant parameters has mean 0, variance 1 and epsilon 0, or it is
        folded. Then `folded_norms` has its successor, which kept its own name and metadata.
    """
    graph = state.model.graph
    norms = {
        node.outputs[0].name: (node.name or "", getattr(node.inputs[0].producer(), "name", None))  # type: ignore[union-attr]
        for node in graph
        if node.op_type == "BatchNormalization"
    }
    if not norms:
        return
    origins = {node.name: dict(node.metadata_props) for node in graph}
    rewrite(state.model, BATCHNORM_RULES)
    for node in graph:
        norm, parent = norms.get(node.outputs[0].name, ("", None))
        if node.op_type == "BatchNormalization":
            _absorb_statistics(node)
        elif norm and parent:
            node.name = parent
            node.metadata_props.clear()
            node.metadata_props.update(origins.get(parent, {}))  # the convolution's module, not the norm's
            state.folded_norms[norm] = parent


def remove_unused_nodes(state: _State) -> None:
    """Remove the nodes and initializers that no output of the graph depends on.

    Ensures: each node has an output that another node reads or that the graph returns.
    """
    remove_unused(state.model)


def restore_names(state: _State) -> None:
    """Give each node that replaced another one while folding the name of the replaced one.

    The two are matched by the name of the tensor that they produce.

    Requires: `record_names` ran.
    Ensures: names are unique. A node that produces a recorded tensor has the recorded name, if it was free.
    """
    graph, recorded = state.model.graph, state.producers
    taken = {node.name for node in graph}
    for node in graph:
        if node.name in state.consumers:
            continue
        name = next((recorded[out.name] for out in node.outputs if out.name in recorded), None)
        if name and name not in taken:
            node.name = name
            taken.add(name)
    name_nodes(graph)


def refuse_sequences(state: _State) -> None:
    """Refuse lists of tensors and optional tensors: they cannot be cast, and TensorRT has neither.

    Requires: constants are folded, which removes lists of a known length.
    Ensures: no node reads or makes a list or an optional tensor. The model is unchanged.
    """
    for node in all_nodes(state.model):
        if _is_list(node):
            raise ModelError(
                f"node {node.name!r} is {node.op_type}: TensorRT has no sequences and no optional tensors",
                fix="export the model without lists of tensors",
            )


def complete_types(state: _State) -> None:
    """Infer types and shapes again if a tensor lacks them: folding may have made them known.

    Ensures: the same as `infer_types`.
    """
    if not is_inferred(state.model):
        infer_types(state)


def open_if(state: _State) -> None:
    """Open the branches of Ifs into the main graph, so that their layers are decided one by one, see `branches`.

    Ensures: no If of the main graph has floats in its branches.
    """
    open_branches(state.model)


def refuse_constant_outputs(state: _State) -> None:
    """Refuse a model without layers: all its outputs are constants.

    Requires: unused nodes are removed.
    Ensures: the main graph has at least one node.
    """
    if not len(state.model.graph):
        raise ModelError("every output is a constant", fix="there is nothing to decide in this model")


PASSES: tuple[Callable[[_State], None], ...] = (
    free_dimensions,
    inline_functions,
    expand_operators,
    cut_before_plugins,
    refuse_unsupported,
    make_names_unique,
    constants_to_initializers,
    infer_types,
    raise_ir_version,
    record_half_precision,
    raise_to_fp32,
    record_names,
    fold_constant_nodes,
    fold_batchnorm,
    remove_unused_nodes,
    restore_names,
    refuse_sequences,
    complete_types,
    refuse_constant_outputs,
    open_if,
)


# ------------------------------------------------------------------------------------------------ parts of the passes


def remove_unused(model: ir.Model) -> None:
    """Remove unused nodes and initializers, in place. An initializer that the graph returns stays."""
    passes.RemoveUnusedNodesPass()(model)
    for value in model.graph.outputs:
        constant = value.const_value is not None and value.producer() is None and not value.is_graph_input()
        if constant and value.name not in model.graph.initializers:
            model.graph.register_initializer(value)


def _is_list(node: ir.Node) -> bool:
    return node.op_type in LISTS or node.op_type.startswith(("Sequence", "Optional"))


def _drops_at_random(node: ir.Node) -> bool:
    """A Dropout that was exported in training mode."""
    if node.op_type != "Dropout" or len(node.inputs) < 3 or node.inputs[2] is None:  # noqa: PLR2004 - training_mode
        return False
    mode = ir.convenience.get_const_tensor(node.inputs[2])
    return mode is not None and bool(mode.numpy().any())


def _aliases(state: _State, remaining: set[str]) -> dict[str, str]:
    """The successor of each node that passes removed, where it has one.

    That is the nearest remaining consumer. Else the nearest remaining producer: a no-op before an output of the
    graph was merged into the layer that computes the output.
    """
    removed = [name for name in state.consumers if name not in remaining]
    producers = _reversed(state.consumers)
    found = {
        name: successor
        for name in removed
        if (successor := _nearest(name, state.consumers, remaining) or _nearest(name, producers, remaining))
    }
    return {**found, **state.folded_norms}


def _reversed(consumers: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """The producers of each node, from the consumers of each."""
    producers: dict[str, list[str]] = {name: [] for name in consumers}
    for name, names in consumers.items():
        for consumer in names:
            producers.setdefault(consumer, []).append(name)
    return {name: tuple(found) for name, found in producers.items()}


def _nearest(name: str, links: dict[str, tuple[str, ...]], remaining: set[str]) -> str | None:
    """The remaining node that is nearest to a removed one along `links`; breadth first."""
    queue, seen = list(links[name]), {name}
    while queue:
        candidate = queue.pop(0)
        if candidate in remaining:
            return candidate
        if candidate not in seen:
            seen.add(candidate)
            queue.extend(links.get(candidate, ()))
    return None


def _absorb_statistics(node: ir.Node) -> None:
    """Merge the constant mean and variance of a BatchNorm into its scale and bias."""
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
