"""Read and check an ONNX file, without changing the model.

External weights stay on disk (memory-mapped) until their values are needed, so a model of several GB loads fast.
External data outside the model's folder is refused here, before anything is read from it. (`onnx_ir` refuses it later,
when the data is opened.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx_ir.passes.common import TopologicalSortPass

from trt_helper.errors import ModelError, first_line

# Errors of onnx.checker about models that can be used: nodes in another order, an output without a shape.
HARMLESS = ("topologically sorted", "Field 'shape' of 'type' is required but missing")
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
    model = _deserialize(proto, path)
    external = _external_files(model, path)
    _require_outputs(model, path)
    _require_producers(model, path)
    try:
        TopologicalSortPass()(model)
    except Exception as error:
        raise ModelError(f"{path}: the graph has a cycle", fix=EXPORT_AGAIN) from error
    _check(path)
    return Model(path, _sha256([path, *external]), model)


def _parse(path: Path) -> onnx.ModelProto:
    if not path.is_file():
        fault = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise ModelError(f"{path} {fault}", fix="give the path of an .onnx file")
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
    ir.external_data.set_base_dir(model.graph, path.resolve().parent)
    return model


def _external_files(model: ir.Model, path: Path) -> list[Path]:
    """The checked external data files, in the order of their names."""
    folder = path.resolve().parent
    found: dict[str, Path] = {}
    for tensor in _tensors(model):
        if isinstance(tensor, ir.ExternalTensor):
            target = (folder / tensor.location).resolve()
            if not target.is_relative_to(folder):
                raise ModelError(
                    f"{path}: the weights of {tensor.name!r} point outside the model's folder: {tensor.location!r}",
                    fix="keep external data beside the model; do not trust this file",
                )
            if not target.is_file():
                raise ModelError(
                    f"{path}: its external data {tensor.location!r} is missing", fix=f"put it into {folder}"
                )
            if (tensor.offset or 0) + (tensor.length or tensor.nbytes) > target.stat().st_size:
                raise ModelError(f"{path}: its external data {tensor.location!r} is truncated", fix=EXPORT_AGAIN)
            found[str(tensor.location)] = target
    return [found[name] for name in sorted(found)]


def _tensors(model: ir.Model) -> Iterator[object]:
    for graph in model.graphs():
        yield from (value.const_value for value in graph.initializers.values())
        for node in graph:
            yield from (a.value for a in node.attributes.values() if a.type is ir.AttributeType.TENSOR)


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


def _check(path: Path) -> None:
    try:
        onnx.checker.check_model(str(path))
    except (onnx.checker.ValidationError, RuntimeError, ValueError) as error:
        text = first_line(error)
        if any(harmless in text for harmless in HARMLESS):
            return
        raise ModelError(f"{path}: {text}", fix=EXPORT_AGAIN) from error


def _sha256(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
