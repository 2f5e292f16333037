"""The reference: the outputs of the user's own file on the samples, with which all other outputs are compared.

The file runs as it is, as a whole, on ONNX Runtime's CPU provider without optimisation, but for sigmoids that this
provider gets wrong where it counts (`onnx_model.sigmoids`). This code shares nothing with
the emulator except ONNX Runtime, so a mistake in normalising shows up as a difference.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from onnx_ir.passes.common import ShapeInferencePass

from trt_helper.errors import InputError, ModelError, first_line
from trt_helper.inputs.sample import Sample, shape_text
from trt_helper.onnx_model.float_types import mentions, to_fp32
from trt_helper.onnx_model.functions import inline
from trt_helper.onnx_model.graph import Graph
from trt_helper.onnx_model.names import name_nodes
from trt_helper.onnx_model.ort_session import session_options
from trt_helper.onnx_model.plugins import cut_tail
from trt_helper.onnx_model.sigmoids import with_exact_sigmoids
from trt_helper.system.array_store import ArrayStore
from trt_helper.values import Array, Tensors

FLOATS = {"tensor(float16)": np.float16, "tensor(double)": np.float64}  # other inputs have the type of the feed


def references(graph: Graph, samples: Sequence[Sample], store: ArrayStore | None = None) -> list[Tensors]:
    """The outputs of the user's file, one dictionary per sample.

    Args:
        graph: Of the file.
        samples: The samples.
        store: Keeps the arrays. By default they stay in memory.

    Returns:
        Arrays by output name. FP16 and FP64 outputs are converted to FP32.

    Raises:
        ModelError: ONNX Runtime cannot load the file.
        InputError: The model does not run on a sample.
    """
    run, store = runner(graph), store or ArrayStore.within(None)
    found = []
    for sample in samples:
        outputs = run(sample)
        if not any(array.size for array in outputs.values()):
            raise InputError(
                f"every output for {sample.source} is empty: nothing can be judged by it",
                fix="leave this sample out; an input may be empty where an output is not",
            )
        found.append(store.keep_all(outputs))
    return found


def require_alike(graph: Graph, reference: Graph) -> None:
    """Check that `reference` has the same inputs and outputs as `graph`: names, types and fixed dimensions.

    Raises:
        InputError: They differ.
    """
    fix = "as --reference give the FP32 model that the other one was made from"
    for kind, ours, theirs in (
        ("inputs", graph.inputs, reference.inputs),
        ("outputs", graph.model.graph.outputs, reference.model.graph.outputs),
    ):
        here, there = ({value.name: value for value in values} for values in (ours, theirs))
        if here.keys() != there.keys():
            raise InputError(
                f"{reference.source.path} has the {kind} {_names(there)}, {graph.source.path} has {_names(here)}",
                fix=fix,
            )
        for name, value in here.items():
            if not _fits(value, there[name]):
                raise InputError(
                    f"{reference.source.path} has {name!r} as {_tensor_text(there[name])}, {graph.source.path} as "
                    f"{_tensor_text(value)}",
                    fix=fix,
                )


def _names(names: Iterable[str | None]) -> str:
    return ", ".join(map(repr, names))[:300]


def _fits(one: ir.Value, other: ir.Value) -> bool:
    if one.dtype != other.dtype:
        return False
    if one.shape is None or other.shape is None:
        return True
    fixed = ((a, b) for a, b in zip(one.shape, other.shape, strict=False) if isinstance(a, int) and isinstance(b, int))
    return len(one.shape) == len(other.shape) and all(a == b for a, b in fixed)


def _tensor_text(value: ir.Value) -> str:
    return f"{value.dtype.name.lower() if value.dtype else '?'} {shape_text(value.shape)}"


def half_warning(reference: Graph) -> str | None:
    """A warning for the user if a file given with --reference computes in half precision itself, else None."""
    if not reference.was_half:
        return None
    return f"{reference.source.path} computes in half precision itself: errors are those against that, not against FP32"


def runner(graph: Graph, *, optimised: bool = False) -> Callable[[Sample], Tensors]:
    """Load the user's file into an ONNX Runtime session.

    Args:
        graph: Of the file.
        optimised: Optimise the graph, as ONNX Runtime does by default.

    Returns:
        A function from a sample to the outputs by name. It raises InputError if the model does not run on the sample.

    Raises:
        ModelError: ONNX Runtime cannot load the file.
    """
    path = graph.source.path
    options = session_options(threads=os.cpu_count() or 1)
    if optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    try:
        session = ort.InferenceSession(loadable(graph), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own types, which it does not export
        raise ModelError(
            f"ONNX Runtime cannot load {path}: {first_line(error)}",
            fix="the FP32 reference runs there; export the model with operators that it implements",
        ) from error
    types = {value.name: value.type for value in session.get_inputs()}
    return lambda sample: _run(session, types, sample, graph.outputs)


def loadable(graph: Graph) -> str | bytes:
    """The path of the user's file, or a changed model in bytes.

    Nodes that share a name, which ONNX Runtime refuses, are renamed; sigmoids whose relative accuracy counts are
    computed exactly (`onnx_model.sigmoids`); a model with BF16, for which ONNX Runtime's CPU provider has few
    operators, is computed in FP32; custom operators at the end are cut off.
    """
    source = graph.source.ir_model
    model = with_exact_sigmoids(source)
    names = [node.name for node in ir.traversal.RecursiveGraphIterator(model.graph) if node.name]
    brain = mentions(model, ir.DataType.BFLOAT16)
    if len(set(names)) == len(names) and model is source and not brain and graph.tail is None:
        return str(graph.source.path)
    copy = model.clone() if model is source else model
    if graph.tail is not None:
        inline(copy)
        cut_tail(copy)
    name_nodes(copy.graph)
    if brain or graph.tail is not None:
        ShapeInferencePass(check_type=False, strict_mode=False, data_prop=False)(copy)
    if brain:
        to_fp32(copy)
    data: bytes = ir.to_proto(copy).SerializeToString()
    return data


def _run(session: ort.InferenceSession, types: dict[str, str], sample: Sample, names: Sequence[str]) -> Tensors:
    feed = {name: array.astype(FLOATS.get(types.get(name, ""), array.dtype)) for name, array in sample.feed.items()}
    try:
        outputs = session.run(list(names), feed)
    except Exception as error:  # onnxruntime raises its own types, which it does not export
        raise InputError(
            f"the model does not run on {sample.source}: {first_line(error)}",
            fix="check the inputs' shapes and values; try the model in ONNX Runtime by itself",
        ) from error
    return {name: _as_fp32(array) for name, array in zip(names, outputs, strict=True)}


def _as_fp32(array: Array) -> Array:
    array = np.asarray(array)
    return array.astype(np.float32) if array.dtype in (np.float16, np.float64) else array
