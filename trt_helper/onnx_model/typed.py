"""Render a graph and a plan as a strongly typed ONNX model.

The typed model is the one form in which a plan reaches ONNX Runtime and every TensorRT. It has casts exactly where
precision changes: one per tensor and direction, and none between two pinned layers. Each typed model is rendered from
a copy of the graph, which is never edited.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir

from trt_helper.errors import ModelError, first_line
from trt_helper.onnx_model.branches import close_branches
from trt_helper.onnx_model.graph import Graph, captured, subgraphs
from trt_helper.onnx_model.names import free_name, names_in
from trt_helper.onnx_model.normalise import remove_unused
from trt_helper.onnx_model.plugins import attach_tail
from trt_helper.onnx_model.precision import Precisions, assign
from trt_helper.system.files import cannot_write
from trt_helper.values import Plan, ReducedPrecision

FLOAT, HALF, BRAIN, DOUBLE = (
    ir.DataType.FLOAT,
    ir.DataType.FLOAT16,
    ir.DataType.BFLOAT16,
    ir.DataType.DOUBLE,
)
TYPES = {ReducedPrecision.FP16: HALF, ReducedPrecision.BF16: BRAIN}
SUFFIX = {FLOAT: "fp32", HALF: "fp16", BRAIN: "bf16", DOUBLE: "fp64"}
PROTOBUF_LIMIT = 1_800_000_000  # bytes; above it weights go into a file of their own


@dataclass(frozen=True, eq=False)
class TypedModel:
    """A strongly typed model in memory."""

    model: ir.Model
    plan: Plan
    casts: int  # Cast nodes that the plan added
    unrepresentable: tuple[str, ...]  # initializers with finite values beyond FP16's range, which became inf
    source: Path | None = None  # the user's file


def render(graph: Graph, plan: Plan) -> TypedModel:
    """The typed model of `graph` under `plan`. Graph inputs and outputs keep the names and types of the user's file."""
    return _Renderer(graph, assign(graph, plan)).render(plan)


class _Renderer:
    """The copy of the graph that is being typed, and the casts and reduced initializers made so far."""

    def __init__(self, graph: Graph, precisions: Precisions) -> None:
        self.source = graph
        self.precisions = precisions
        self.model = graph.model.clone()
        self.graph = self.model.graph
        self.casts: dict[tuple[str, ir.DataType], ir.Value] = {}
        self.unrepresentable: list[str] = []
        self.taken = names_in(self.graph)

    def render(self, plan: Plan) -> TypedModel:
        order = list(self.graph)
        for value in self._values():
            if reduced := self.precisions.tensors.get(value.name or ""):
                value.type = ir.TensorType(TYPES[reduced])
        for value in self.graph.inputs:
            if self.source.io_types.get(value.name or "") is DOUBLE:
                value.type = ir.TensorType(DOUBLE)
        for node in order:
            self._type_attributes(node)
            self._type_inputs(node)
        for index, value in enumerate(self.graph.outputs):
            self._type_output(index, value)
        remove_unused(self.model)
        casts = self._count_casts()
        close_branches(self.model)
        if self.source.tail is not None:
            attach_tail(self.model, self.source.tail)
        self.graph.name = self.graph.name or "model"  # the checker wants one
        return TypedModel(self.model, plan, casts, tuple(self.unrepresentable), self.source.source.path)

    def _values(self) -> Iterator[ir.Value]:
        yield from self.graph.inputs
        yield from self.graph.initializers.values()
        for node in self.graph:
            yield from node.outputs

    def _count_casts(self) -> int:
        return sum(node.op_type == "Cast" for node in self.graph) - sum(
            node.op_type == "Cast" for node in self.source.model.graph
        )

    def _type_inputs(self, node: ir.Node) -> None:
        follow = self.source.ports[node.name or ""].inputs
        reduced = self.precisions.layers.get(node.name or "")
        for index, value in enumerate(node.inputs):
            if value is None or value.dtype not in SUFFIX:
                continue
            wanted = TYPES[reduced] if reduced and index in follow else FLOAT
            node.replace_input_with(index, self._as(value, wanted))
        for value in captured(node):
            if value.dtype in (HALF, BRAIN):
                _replace_in_subgraphs(node, value, self._as(value, FLOAT))

    def _as(self, value: ir.Value, wanted: ir.DataType) -> ir.Value:
        """`value` in the wanted type: itself, the reduced copy of an initializer, or the one cast of this tensor."""
        if value.dtype is wanted:
            return value
        key = (value.name or "", wanted)
        if key not in self.casts:
            if value.const_value is not None and value.is_initializer():
                self.casts[key] = self._reduced_copy(value, wanted)
            else:
                self.casts[key] = self._cast(value, wanted)
        return self.casts[key]

    def _reduced_copy(self, value: ir.Value, wanted: ir.DataType) -> ir.Value:
        array = value.const_value.numpy()  # type: ignore[union-attr]
        reduced, exact = round_to_half(array) if wanted is HALF else (array.astype(ml_dtypes.bfloat16), True)
        if not exact:
            self.unrepresentable.append(value.name or "")
        copy = ir.Value(
            name=self._name(f"{value.name}_{SUFFIX[wanted]}"),
            const_value=ir.Tensor(reduced),
            type=ir.TensorType(wanted),
            shape=ir.Shape(reduced.shape),
        )
        self.graph.register_initializer(copy)
        return copy

    def _cast(self, value: ir.Value, wanted: ir.DataType) -> ir.Value:
        suffix = f"to_{SUFFIX[wanted]}"
        out = ir.Value(name=self._name(f"{value.name}_{suffix}"), type=ir.TensorType(wanted), shape=value.shape)
        node = ir.Node(
            "",
            "Cast",
            [value],
            [ir.AttrInt64("to", wanted)],
            outputs=[out],
            name=self._name(f"{value.name}_{suffix}_cast"),
        )
        producer = value.producer()
        if producer is not None:
            self.graph.insert_after(producer, node)
        else:
            self.graph.insert_before(self.graph[0], node)
        return out

    def _type_output(self, index: int, value: ir.Value) -> None:
        """Give a graph output the name and type that it has in the user's file."""
        name = value.name or ""
        wanted = self.source.io_types.get(name, FLOAT)
        if value.dtype not in SUFFIX or value.dtype is wanted:
            return
        typed = self._as(value, wanted)
        value.name = self._name(f"{name}_inner")
        typed.name = name
        self.graph.outputs[index] = typed

    def _type_attributes(self, node: ir.Node) -> None:
        """Adapt the attributes of operators that state the type of their result there."""
        dtype = node.outputs[0].dtype
        if node.name not in self.precisions.layers or dtype not in (HALF, BRAIN):
            return
        if node.op_type == "Cast":
            node.attributes["to"] = ir.AttrInt64("to", dtype)
        elif node.op_type == "ConstantOfShape":
            given = node.attributes.get("value")
            array = given.as_tensor().numpy() if given is not None else np.zeros(1, np.float32)
            node.attributes["value"] = ir.AttrTensor("value", ir.Tensor(round_to_half(array)[0]))

    def _name(self, wanted: str) -> str:
        return free_name(wanted, self.taken)


def round_to_half(array: np.ndarray) -> tuple[np.ndarray, bool]:
    """`array` rounded to FP16: to nearest, ties to even, infinite beyond 65504.

    Returns:
        The FP16 array, and whether all finite values stayed finite.
    """
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    return half, bool(np.array_equal(np.isfinite(half), np.isfinite(array)))


def _replace_in_subgraphs(node: ir.Node, value: ir.Value, replacement: ir.Value) -> None:
    inner_nodes = {id(inner) for subgraph in subgraphs(node) for inner in ir.traversal.RecursiveGraphIterator(subgraph)}
    for user, index in tuple(value.uses()):
        if id(user) in inner_nodes:
            user.replace_input_with(index, replacement)
    for subgraph in subgraphs(node):
        for index, out in enumerate(subgraph.outputs):
            if out is value:
                subgraph.outputs[index] = replacement


def write(typed: TypedModel, path: Path) -> None:
    """Write the typed model to a temporary file, check that strictly, and then move it to `path`.

    Weights of more than 1.8 GB in total are written to `<path>.data` beside it.

    Raises:
        OutputError: The folder cannot be written.
        ModelError: The result is not a valid strongly typed model.
    """
    large = sum(value.const_value.nbytes for value in typed.model.graph.initializers.values() if value.const_value)
    data = f"{path.name}.data" if large > PROTOBUF_LIMIT else None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".trt-helper-") as folder:
            written = Path(folder) / path.name
            if data is None:  # or the written file would refer to the user's external data files
                ir.external_data.load_to_model(typed.model)
            ir.save(typed.model, written, external_data=data)
            try:
                _check_written(written, typed.model)
            except ModelError as error:
                raise _of_the_file(typed.source) or error from error
            for file in (data, path.name):
                if file:
                    (Path(folder) / file).replace(path.parent / file)
    except OSError as error:
        raise cannot_write(path, error) from error


def _of_the_file(path: Path | None) -> ModelError | None:
    """The error to raise if the user's file itself is not valid; None if it is, so that the fault is here."""
    if path is None:
        return None
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, RuntimeError) as error:
        said = re.sub(r"\[\w+\] (?:Inference error\(s\): )?", "", first_line(error))
        return ModelError(
            f"{path} is not valid ONNX: {said}", fix="export the model again; its types or shapes are wrong"
        )
    return None


def _check_written(path: Path, model: ir.Model) -> None:
    """Check the file; if that fails, without the shapes of the tensors inside, which some exporters state wrong.

    Outputs whose rank is not known are left out of what is checked: the checker wants a shape.
    """
    shaped = {value.name for value in model.graph.outputs if value.shape is not None}
    if not shaped:
        return
    checked = path
    if len(shaped) < len(model.graph.outputs):
        copy = onnx.load(path, load_external_data=False)
        kept = [value for value in copy.graph.output if value.name in shaped]
        del copy.graph.output[:]
        copy.graph.output.extend(kept)
        checked = path.with_name(f"checked-{path.name}")
        onnx.save(copy, checked)
    try:
        check(checked)
    except ModelError as error:
        proto = onnx.load(path, load_external_data=False)
        for value in proto.graph.value_info:
            value.type.tensor_type.ClearField("shape")
        onnx.save(proto, path)
        try:
            check(path)
        except ModelError:
            raise error from None


def check(path: Path) -> None:
    """Check an ONNX file with onnx.checker's full check, which infers every type strictly.

    Raises:
        ModelError: The file is not a valid ONNX model.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, RuntimeError) as error:
        raise ModelError(
            f"the typed model is not valid: {first_line(error)}",
            fix="please report it: this is a limit of trt-helper; pinning the layer that is named may avoid it",
        ) from error


CONDITION = 1  # the second input of a Loop and of its body; the first result of the body


def state_conditions(model: ir.Model) -> None:
    """Give every Loop without a condition input one that is always true, in place.

    In ONNX a Loop with a trip count may omit its condition, and then the condition that its body returns is ignored.
    TensorRT-RTX 1.7.1 and 1.4.0 refuse such a Loop if its body reads the condition ("Node input was not registered").
    """
    for node in list(ir.traversal.RecursiveGraphIterator(model.graph)):
        if node.op_type == "Loop" and node.inputs[CONDITION] is None and node.graph is not None:
            node.replace_input_with(CONDITION, _constant_true(node))
            _return_condition(node.attributes["body"].as_graph())


def _constant_true(loop: ir.Node) -> ir.Value:
    """The output of a new Constant node before `loop`."""
    name = free_name(f"{loop.name}_condition", names_in(loop.graph))  # type: ignore[arg-type]
    value = ir.Value(name=name, type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape(()))
    node = ir.Node("", "Constant", [], [ir.AttrTensor("value", ir.Tensor(np.array(True)))], outputs=[value], name=name)
    loop.graph.insert_before(loop, node)  # type: ignore[union-attr]
    return value


def _return_condition(body: ir.Graph) -> None:
    """Make the body of a Loop return the condition that it was given."""
    name = free_name(f"{body.inputs[CONDITION].name}_kept", names_in(body))
    kept = ir.Value(name=name, type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape(()))
    body.append(ir.Node("", "Identity", [body.inputs[CONDITION]], outputs=[kept], name=name))
    body.outputs[0] = kept
