"""Read and check an ONNX file, without changing the model.

External weights stay on disk (memory-mapped) until their values are needed, so a model of several GB loads fast.
External data outside the model's folder is refused here, before anything is read from it. (`onnx_ir` refuses it later,
when the data is opened.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from math import prod
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError, Message
from onnx_ir.passes.common import TopologicalSortPass

from trt_helper.errors import ModelError, first_line

# Errors of onnx.checker about models that can be used: nodes in another order, no shape of an output, no graph name.
HARMLESS = (
    "topologically sorted",
    "Field 'shape' of 'type' is required but missing",
    "Field 'name' of 'graph' is required to be non-empty",
    "No Op registered for",  # of ONNX Runtime, or a plugin: see `expanded` and `plugins`
)
EXPORT_AGAIN = "export the model again, or give the path of a valid .onnx file"
CHECKPOINTS = (b"PK", b"\x80\x02", b"\x80\x04")  # first bytes of zip archives and pickles; safetensors has { at byte 8


@dataclass(frozen=True, eq=False)
class Model:
    """The user's model, parsed and checked."""

    path: Path
    sha256: str  # of the file, followed by its external data files in the order of their names
    ir_model: ir.Model  # nodes in topological order, otherwise as in the file; never edited


def load(path: Path) -> Model:
    """Read and check the ONNX file `path`.

    Raises:
        ModelError: The file cannot be read or is not a valid ONNX model, or external data is missing, truncated or
            outside the model's folder.
    """
    proto = _parse(path)
    _require_no_recursion(proto, path)
    _require_tensors(proto, path)
    external = _external_files(proto, path)
    model = _deserialize(proto, path)
    _require_outputs(model, path)
    _require_producers(model, path)
    try:
        TopologicalSortPass()(model)
    except Exception as error:
        raise ModelError(f"{path}: the graph has a cycle", fix=EXPORT_AGAIN) from error
    _check(path, proto)
    return Model(path, _sha256([path, *external]), model)


def _parse(path: Path) -> onnx.ModelProto:
    if not path.is_file():
        fault = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise ModelError(f"{path} {fault}", fix="give the path of an .onnx file")
    if (printable := str(path).encode(errors="replace").decode()) != str(path):
        raise ModelError(f"{printable}: the name of the file is no UTF-8", fix="rename it: onnx takes no such path")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}", fix="check its permissions") from error
    if not data:
        raise ModelError(f"{path} is empty", fix=EXPORT_AGAIN)
    try:
        proto: onnx.ModelProto = onnx.ModelProto.FromString(data)
    except DecodeError as error:
        checkpoint = data[:2] in CHECKPOINTS or data[8:9] == b"{"
        raise ModelError(
            f"{path} is not an ONNX model, or it is truncated ({len(data)} bytes)",
            fix=EXPORT_AGAIN if not checkpoint else f"if it is a PyTorch checkpoint: trt-helper export {path} --help",
        ) from error
    if not proto.opset_import or not proto.graph.node:
        raise ModelError(f"{path} holds no ONNX graph ({len(data)} bytes)", fix=EXPORT_AGAIN)
    return proto


def _deserialize(proto: onnx.ModelProto, path: Path) -> ir.Model:
    try:
        model = ir.from_proto(proto)
    except Exception as error:  # onnx_ir has no error class for inconsistent models
        raise ModelError(f"{path} is not a sound ONNX graph: {first_line(error)}", fix=EXPORT_AGAIN) from error
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        ir.external_data.set_base_dir(graph, path.resolve().parent)
    return model


def _external_files(proto: onnx.ModelProto, path: Path) -> list[Path]:
    """The checked external data files, in the order of their names."""
    folder = path.resolve().parent
    found: dict[str, Path] = {}
    for tensor in _tensors(proto):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        location, end = _place(tensor, path)
        target = (folder / location).resolve()
        if not target.is_relative_to(folder):
            raise ModelError(
                f"{path}: the weights of {tensor.name!r} point outside the model's folder: {location!r}",
                fix="keep external data beside the model; do not trust this file",
            )
        if not target.is_file():
            raise ModelError(f"{path}: its external data {location!r} is missing", fix=f"put it into {folder}")
        if end > target.stat().st_size:
            raise ModelError(f"{path}: its external data {location!r} is truncated", fix=EXPORT_AGAIN)
        found[location] = target
    return [found[name] for name in sorted(found)]


def _place(tensor: onnx.TensorProto, path: Path) -> tuple[str, int]:
    """The location of external data, and the byte where it ends."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    try:
        bits = ir.DataType(tensor.data_type).bitwidth
        size = -(-prod(tensor.dims) * bits // 8)
        return entries["location"], int(entries.get("offset", 0)) + int(entries.get("length", 0) or size)
    except (KeyError, ValueError, TypeError) as error:
        raise ModelError(
            f"{path}: it is not said where the weights of {tensor.name!r} are", fix=EXPORT_AGAIN
        ) from error


def _tensors(message: Message) -> Iterator[onnx.TensorProto]:
    """Every tensor wherever it hangs: in graphs, attributes, sparse tensors, functions, training information."""
    waiting = [message]
    while waiting:
        for field, content in waiting.pop().ListFields():
            if field.type != field.TYPE_MESSAGE:
                continue
            for item in content if isinstance(content, Sequence) else (content,):
                if isinstance(item, onnx.TensorProto):
                    yield item
                else:
                    waiting.append(item)


def _require_tensors(proto: onnx.ModelProto, path: Path) -> None:
    """Refuse inputs and outputs that are no tensors, or tensors of strings: TensorRT has neither."""
    values = [("input", value) for value in proto.graph.input] + [("output", value) for value in proto.graph.output]
    for which, value in values:
        if (kind := _kind(value.type)) not in ("tensor", ""):
            raise ModelError(
                f"{path}: the {which} {value.name!r} is {kind}, and TensorRT has only tensors of numbers",
                fix="export the model without it"
                + (": zipmap=False in skl2onnx" if "map" in kind else ", or cut it off with onnx.utils.extract_model"),
            )


def _kind(kind: onnx.TypeProto) -> str:
    """What a value is, in words; empty where the file does not say."""
    which = kind.WhichOneof("value") or ""
    if which == "sequence_type":
        return f"a sequence of {_kind(kind.sequence_type.elem_type).removeprefix('a ') or 'tensor'}s"
    if which == "optional_type":
        return "optional"
    if which == "map_type":
        return "a map"
    if which == "sparse_tensor_type":
        return "a sparse tensor"
    strings = which == "tensor_type" and kind.tensor_type.elem_type == onnx.TensorProto.STRING
    return "a tensor of strings" if strings else which.removesuffix("_type")


def _require_no_recursion(proto: onnx.ModelProto, path: Path) -> None:
    """Refuse functions that call themselves, directly or through others: they have no end when they are inlined."""
    calls = {_id(function): {_id(node) for node in _nodes(function.node)} for function in proto.functions}
    try:
        TopologicalSorter(calls).prepare()
    except CycleError as error:
        raise ModelError(f"{path}: the function {error.args[1][0][1]!r} calls itself", fix=EXPORT_AGAIN) from error


def _id(one: onnx.FunctionProto | onnx.NodeProto) -> tuple[str, str, str]:
    name = one.name if isinstance(one, onnx.FunctionProto) else one.op_type
    return one.domain, name, one.overload


def _nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """The nodes, and those of all graphs in their attributes."""
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        yield node
        for attribute in node.attribute:
            for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                waiting.extend(graph.node)


def _require_outputs(model: ir.Model, path: Path) -> None:
    if not model.graph.outputs:
        raise ModelError(f"{path}: the graph has no outputs", fix=EXPORT_AGAIN)


def _require_producers(model: ir.Model, path: Path) -> None:
    """Refuse a model that reads or returns a tensor that is no input, no initializer and no output of a node."""
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        for value in node.inputs:
            if value is None or value.producer() or value.is_graph_input() or value.is_initializer():
                continue
            raise ModelError(
                f"{path}: node {node.name or node.op_type!r} reads {value.name!r}, which nothing produces",
                fix=EXPORT_AGAIN,
            )
    for value in model.graph.outputs:
        if not (value.producer() or value.is_graph_input() or value.is_initializer()):
            raise ModelError(f"{path}: nothing produces the output {value.name!r}", fix=EXPORT_AGAIN)


def _check(path: Path, proto: onnx.ModelProto) -> None:
    try:
        onnx.checker.check_model(str(path))
    except (onnx.checker.ValidationError, RuntimeError, ValueError) as error:
        _require_harmless(error, path)
        _check_parts(path, proto)  # the checker stops at its first complaint


def _check_parts(path: Path, proto: onnx.ModelProto) -> None:
    """Check each node, function and tensor by itself."""
    context = onnx.checker.C.CheckerContext()
    context.ir_version = proto.ir_version
    context.opset_imports = {opset.domain: opset.version for opset in proto.opset_import}
    inside = (tensor for tensor in _tensors(proto) if tensor.data_location != onnx.TensorProto.EXTERNAL)
    for check, parts in (
        (onnx.checker.check_tensor, inside),
        (onnx.checker.check_node, proto.graph.node),
        (onnx.checker.check_function, proto.functions),
    ):
        for part in parts:
            try:
                check(part, context)
            except (onnx.checker.ValidationError, RuntimeError, ValueError) as error:
                _require_harmless(error, path)


def _require_harmless(error: Exception, path: Path) -> None:
    text = first_line(error)
    if not any(harmless in text for harmless in HARMLESS):
        raise ModelError(f"{path}: {text}", fix=EXPORT_AGAIN) from error


def _sha256(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
