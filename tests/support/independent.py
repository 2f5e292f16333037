"""Judges of an ONNX file that share no code with trt_helper.

`run_with_pairs` computes in FP32 and puts a Cast(FP16) -> Cast(FP32) pair behind every tensor that the
file declares half: ONNX Runtime's CPU provider honours such pairs, while it runs FP16 nodes in FP32 and
drops the roundings between them. `run_in_half` lets numpy compute in real half precision.

`all_half_but` puts such pairs into an FP32 file, around every layer that is not kept in FP32, so that nothing of
trt_helper decides what is rounded.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

MOVING = frozenset(["Concat", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape", "Slice", "Split", "Squeeze"])
MOVING |= {"Tile", "Transpose", "Unsqueeze"}
FLOAT, HALF, BRAIN = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16
Feed = Mapping[str, np.ndarray]


def run_on_ort(model: onnx.ModelProto | Path, feed: Feed) -> Feed:
    """ONNX Runtime's CPU provider, every optimisation off; halves and doubles come back as FP32.

    A file runs as a user would run it. A model in memory has its weights fed: as initializers they are
    packed beforehand, which can change the last bit of a product.
    """
    if not isinstance(model, Path):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        model, feed = copy, {**feed, **_weights_as_inputs(copy.graph, (FLOAT,))}
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    given = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = ort.InferenceSession(given, options, providers=["CPUExecutionProvider"])
    types = {value.name: value.type for value in session.get_inputs()}
    names = [value.name for value in session.get_outputs()]
    results = session.run(names, {name: _typed(array, types[name]) for name, array in feed.items()})
    return dict(zip(names, map(as_single, results), strict=True))


def _typed(array: np.ndarray, kind: str) -> np.ndarray:
    return array.astype(np.float16) if kind == "tensor(float16)" else array


def as_single(array: np.ndarray) -> np.ndarray:
    array = np.asarray(array)
    return array.astype(np.float32) if array.dtype in (np.float16, np.float64) else array


def run_in_half(path: Path, feed: Feed) -> Feed:
    """numpy in the types that the file declares, so also sums inside a layer are half."""
    session = ReferenceEvaluator(str(path))
    types = element_types(onnx.load(path))
    typed = {name: array.astype(np.float16) if types[name] == HALF else array for name, array in feed.items()}
    with np.errstate(all="ignore"):
        results = session.run(None, typed)
    return dict(zip(session.output_names, map(as_single, results), strict=True))


def run_with_pairs(path: Path, feed: Feed) -> Feed:
    """ONNX Runtime on `path` rewritten in FP32 with a pair of casts behind every half tensor."""
    model = onnx.load(path)
    return run_on_ort(model, {**feed, **with_pairs(model)})


def with_pairs(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Rewrite `model` in place, BF16 as well; returns its float weights, which become inputs."""
    types = element_types(model)
    nodes: list[onnx.NodeProto] = []
    rounded: dict[str, str] = {}
    for value in model.graph.input:
        if types.get(value.name) == HALF:
            rounded[value.name] = _pair(value.name, nodes)
    _put_pairs(model.graph, nodes, types, rounded)
    return _weights_as_inputs(model.graph, (FLOAT, HALF, BRAIN))


def _put_pairs(
    graph: onnx.GraphProto, nodes: list[onnx.NodeProto], types: dict[str, int], rounded: dict[str, str]
) -> None:
    """Rewrite a graph and the branches of its Ifs; `nodes` come first, `rounded` has what stands for a tensor."""
    for node in graph.node:
        if node.op_type == "If":
            for attribute in node.attribute:
                _put_pairs(attribute.g, [], types, rounded)
        else:
            _require_no_half_inside(node)
        node.input[:] = [rounded.get(name, name) for name in node.input]
        for attribute in node.attribute:
            _raise(attribute)
        for index, name in enumerate(node.output):
            if types.get(name) in (HALF, BRAIN):
                node.output[index] = f"{name}__raw"
        nodes.append(node)
        for name in node.output:
            if name.endswith("__raw"):
                out = name.removesuffix("__raw")
                _pair(name, nodes, out, kind=types[out])
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type in (HALF, BRAIN):
            value.type.tensor_type.elem_type = FLOAT


def all_half_but(model: onnx.ModelProto, kept: Collection[str]) -> onnx.ModelProto:
    """A copy of an FP32 model: all float tensors that layers outside `kept` read or write are rounded to FP16.

    A layer that only moves values passes them on as they are: it follows those that made them and those that read
    them. Of Resize's inputs only the first is a tensor of the layer.
    """
    types = element_types(model)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    nodes: list[onnx.NodeProto] = []
    rounded: dict[str, str] = {}

    def read(name: str) -> str:
        if types.get(name) != FLOAT:
            return name
        if name not in rounded and name in weights:
            rounded[name] = f"{name}__rounded"
            array = as_half(numpy_helper.to_array(weights[name]))
            copy.graph.initializer.append(numpy_helper.from_array(array, rounded[name]))
        elif name not in rounded:
            rounded[name] = _pair(name, nodes)
        return rounded[name]

    for node in copy.graph.node:
        computes = node.op_type not in MOVING and node.name not in kept
        if computes:
            count = 1 if node.op_type == "Resize" else len(node.input)
            node.input[:count] = [read(name) for name in node.input[:count]]
        written = [name for name in node.output if computes and types.get(name) == FLOAT]
        node.output[:] = [f"{name}__raw" if name in written else name for name in node.output]
        nodes.append(node)
        for name in written:
            rounded[name] = _pair(f"{name}__raw", nodes, name)
    del copy.graph.node[:], copy.graph.value_info[:]
    copy.graph.node.extend(nodes)
    return copy


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every tensor of the main graph and of branches, by ONNX's own inference."""
    types: dict[str, int] = {}
    waiting = [onnx.shape_inference.infer_shapes(model, strict_mode=True).graph]
    while waiting:
        graph = waiting.pop()
        types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
        for value in (*graph.input, *graph.value_info, *graph.output):
            types[value.name] = value.type.tensor_type.elem_type
        waiting += [attribute.g for node in graph.node if node.op_type == "If" for attribute in node.attribute]
    return types


def casts(model: onnx.ModelProto) -> list[tuple[str, str, tuple[str, ...]]]:
    """(maker, type, readers) of every float cast in the main graph; "" makes an input and reads an output."""
    readers: dict[str, set[str]] = {value.name: {""} for value in model.graph.output}
    makers = {name: node.name for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        for name in _read_names(node):
            readers.setdefault(name, set()).add(node.name)
    kinds = {FLOAT: "fp32", HALF: "fp16", BRAIN: "bf16"}
    return sorted(
        (makers.get(node.input[0], ""), kinds[to], tuple(sorted(readers.get(node.output[0], ()))))
        for node in model.graph.node
        if node.op_type == "Cast" and (to := node.attribute[0].i) in kinds
    )


def _read_names(node: onnx.NodeProto) -> Iterator[str]:
    """What a node reads, its subgraphs included."""
    yield from node.input
    for attribute in node.attribute:
        yield from (value.name for value in attribute.g.output)
        for inner in attribute.g.node:
            yield from _read_names(inner)


def every_tensor(path: Path, feed: Feed) -> Feed:
    """All tensors and weights of an FP32 file, by name."""
    model = onnx.load(path)
    types = element_types(model)
    known = {value.name for value in model.graph.output}
    for node in model.graph.node:
        new = [name for name in node.output if name and name not in known]
        model.graph.output.extend(helper.make_tensor_value_info(name, types[name], None) for name in new)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return {**feed, **weights, **run_on_ort(model, feed)}


def with_one_pair(model: onnx.ModelProto, tensor: str, reader: str) -> onnx.ModelProto:
    """An FP32 copy in which only `reader` reads `tensor` rounded; "" is the graph's output."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    nodes: list[onnx.NodeProto] = []
    for node in copy.graph.node:
        if node.name == reader and tensor in node.input:
            rounded = _pair(tensor, nodes)
            node.input[:] = [rounded if name == tensor else name for name in node.input]
        nodes.append(node)
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy


def alone_in_half(model: onnx.ModelProto, layer: str, feed: Feed, half: Iterable[str]) -> Feed:
    """One node on reference inputs: the inputs named in `half` and all float results are rounded.

    `feed` holds every tensor and weight of the FP32 model by name.
    """
    node = next(node for node in model.graph.node if node.name == layer)
    types = {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in feed.items()}
    given = {name: as_half(feed[name]) if name in set(half) else feed[name] for name in node.input if name}
    infos = [helper.make_tensor_value_info(name, types[name], None) for name in given]
    wanted = [name for name in node.output if name in feed]
    results = [helper.make_tensor_value_info(name, types[name], None) for name in wanted]
    graph = helper.make_graph([node], "alone", infos, results)
    single = helper.make_model(graph, opset_imports=model.opset_import, ir_version=8)
    found = run_on_ort(single, given)
    return {name: as_half(array) if types[name] == FLOAT else array for name, array in found.items()}


def as_half(array: np.ndarray) -> np.ndarray:
    """What a half tensor keeps of FP32 values; numpy rounds to nearest, ties to even, and overflows to inf."""
    if array.dtype != np.float32:
        return array
    with np.errstate(over="ignore"):
        return array.astype(np.float16).astype(np.float32)


def _pair(name: str, nodes: list[onnx.NodeProto], out: str = "", *, kind: int = HALF) -> str:
    out = out or f"{name}__rounded"
    nodes.append(helper.make_node("Cast", [name], [f"{name}__half"], to=kind))
    nodes.append(helper.make_node("Cast", [f"{name}__half"], [out], to=FLOAT))
    return out


def _raise(attribute: onnx.AttributeProto) -> None:
    if attribute.name in ("to", "dtype") and attribute.i in (HALF, BRAIN):
        attribute.i = FLOAT
    elif attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == HALF:
        attribute.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(attribute.t).astype(np.float32)))


def _require_no_half_inside(node: onnx.NodeProto) -> None:
    for attribute in node.attribute:
        for value in (*attribute.g.input, *attribute.g.output, *attribute.g.value_info):
            assert value.type.tensor_type.elem_type != HALF, f"{node.name}: half inside a subgraph"
        for inner in attribute.g.node:
            assert not any(a.name == "to" and a.i == HALF for a in inner.attribute), f"{inner.name} casts to half"
            _require_no_half_inside(inner)


def _weights_as_inputs(graph: onnx.GraphProto, kinds: Sequence[int]) -> dict[str, np.ndarray]:
    named = {value.name for value in (*graph.input, *graph.output)}
    weights: dict[str, np.ndarray] = {}
    kept: list[onnx.TensorProto] = []
    for tensor in graph.initializer:
        if tensor.data_type not in kinds:
            kept.append(tensor)
            continue
        array = numpy_helper.to_array(tensor).astype(np.float32)
        if tensor.name in named:
            kept.append(numpy_helper.from_array(array, tensor.name))
            continue
        weights[tensor.name] = array
        graph.input.append(helper.make_tensor_value_info(tensor.name, FLOAT, tensor.dims))
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return weights
