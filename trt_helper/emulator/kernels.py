"""Compute single layers in FP32, each in an ONNX Runtime session of its own.

Equal layers share one session: weights are inputs of the session and not stored in it. A session has one thread and
does not spin. Hundreds of sessions with ONNX Runtime's default threads are some 50 times slower.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from trt_helper.emulator.lowered_loops import Compute
from trt_helper.emulator.lowering import OPSET as STEPS_OPSET
from trt_helper.emulator.lowering import Steps, exact_sigmoid, lowered
from trt_helper.errors import ModelError, TrtHelperError, first_line
from trt_helper.onnx_model.branches import is_select
from trt_helper.onnx_model.graph import captured, subgraphs
from trt_helper.onnx_model.ort_session import session_options
from trt_helper.onnx_model.sigmoids import counts_relatively
from trt_helper.values import Array, Reading, ReducedPrecision

PLAIN = frozenset(  # attribute types whose values are equal if their `repr` is
    getattr(ir.AttributeType, kind + many) for kind in ("INT", "FLOAT", "STRING") for many in ("", "S")
)


class EmulationError(TrtHelperError):
    """A layer cannot be computed from its inputs."""


class Kernel:
    """Computes all layers of one kind. Inputs and outputs are in the order of the node's."""

    def __init__(self, session: ort.InferenceSession, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        self._session = session
        self._inputs = tuple(inputs)
        self._outputs = list(outputs)

    def run(self, feeds: Sequence[Array]) -> list[Array]:
        """The layer's outputs, without those that the node does not name.

        Args:
            feeds: The layer's inputs, without absent optional ones; then the tensors that its subgraphs read.

        Raises:
            EmulationError: ONNX Runtime cannot compute the layer from these inputs.
        """
        try:
            return self._session.run(self._outputs, dict(zip(self._inputs, feeds, strict=True)))  # type: ignore[no-any-return]
        except Exception as error:  # onnxruntime raises its own types, which it does not export
            raise EmulationError(
                f"ONNX Runtime cannot compute a layer: {first_line(error)}",
                fix="check the inputs' shapes and values; try the model in ONNX Runtime by itself",
            ) from error


@dataclass(frozen=True, eq=False, slots=True)
class LoopKernel:
    """Computes one layer in numpy, in the steps of a kernel. As `Kernel`."""

    node: ir.Node
    compute: Compute
    rounded: Callable[[Array], Array]

    def run(self, feeds: Sequence[Array]) -> list[Array]:
        """The layer's outputs, without those that the node does not name.

        Raises:
            EmulationError: the shapes do not fit.
        """
        given = iter(feeds)
        inputs = [next(given) if value is not None else None for value in self.node.inputs]
        try:
            with np.errstate(all="ignore"):
                results = self.compute(self.node, inputs, self.rounded)
        except ValueError as error:
            raise EmulationError(
                f"layer {self.node.name!r} ({self.node.op_type}) cannot be computed: {first_line(error)}",
                fix="check the inputs' shapes; try the model in ONNX Runtime by itself",
            ) from error
        return [np.asarray(result) for value, result in zip(self.node.outputs, results, strict=False) if value.name]


class SelectKernel:
    """Picks the results of the branch that is taken, see `onnx_model.branches`. As `Kernel`."""

    def run(self, feeds: Sequence[Array]) -> list[Array]:
        """The results of the first branch if the condition is true, else of the second.

        Args:
            feeds: The condition, the results of one branch, those of the other. Those of the other may be empty.
        """
        condition, *results = feeds
        half = len(results) // 2
        return results[:half] if condition.reshape(-1)[0] else results[half:]


class Kernels:
    """The kernels of one model. Each is created when it is first needed."""

    def __init__(self, model: ir.Model) -> None:
        self._opset = model.opset_imports.get("", 1)
        self._ir_version = min(model.ir_version, 10)
        self._kernels: dict[Hashable, Kernel] = {}
        self._options = session_options()
        self._rounders = {kind: Rounder(kind) for kind in ReducedPrecision}

    def of(self, node: ir.Node) -> Kernel | SelectKernel:
        """The kernel of `node`.

        Raises:
            ModelError: ONNX Runtime's CPU provider does not implement the operator for these types.
        """
        if is_select(node):
            return SelectKernel()
        exact = counts_relatively(node)
        key = _kind(node), exact
        if key not in self._kernels and exact:
            self._kernels[key] = self._of_steps(exact_sigmoid(node))
        if key not in self._kernels:
            self._kernels[key] = self._make(*_single_node(node), node)
        return self._kernels[key]

    def lowered(
        self, node: ir.Node, reduced: ReducedPrecision | None, reading: Reading = Reading.TYPICAL
    ) -> Kernel | LoopKernel | SelectKernel:
        """What computes `node` in the steps of a kernel of this precision; None is FP32. Equal to `of` for one step.

        Inputs are FP32 arrays with rounded values, and so are the results of all steps but the last.
        """
        found = lowered(node, self._opset, reduced, reading)
        if found is None:
            return self.of(node)
        if not isinstance(found, Steps):
            return LoopKernel(node, found, self._rounders[reduced] if reduced else lambda array: array)
        key = _kind(node), reduced, *(len(v.shape) for v in node.inputs[:1] if v is not None and v.shape is not None)
        if key not in self._kernels:
            self._kernels[key] = self._of_steps(found)
        return self._kernels[key]

    def _of_steps(self, steps: Steps) -> Kernel:
        _, inputs, outputs = _single_node(steps.node)
        last = onnx.helper.make_node("Identity", [steps.output], [outputs[0].name])
        graph = onnx.helper.make_graph([*steps.nodes, last], "layer", inputs, outputs[:1])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", STEPS_OPSET)], ir_version=8)
        session = ort.InferenceSession(model.SerializeToString(), self._options, providers=["CPUExecutionProvider"])
        return Kernel(session, [i.name for i in inputs], [outputs[0].name])

    def _make(
        self,
        proto: onnx.NodeProto,
        inputs: list[onnx.ValueInfoProto],
        outputs: list[onnx.ValueInfoProto],
        node: ir.Node,
    ) -> Kernel:
        graph = onnx.helper.make_graph([proto], "layer", inputs, outputs)
        model = onnx.helper.make_model(
            graph, opset_imports=[onnx.helper.make_opsetid("", self._opset)], ir_version=self._ir_version
        )
        try:
            session = ort.InferenceSession(model.SerializeToString(), self._options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises its own types, which it does not export
            raise ModelError(
                f"ONNX Runtime cannot compute layer {node.name!r} ({node.op_type}): {first_line(error)}",
                fix="export the model with operators that ONNX Runtime's CPU provider implements in FP32",
            ) from error
        return Kernel(session, [i.name for i in inputs], [o.name for o in outputs])


def _kind(node: ir.Node) -> Hashable:
    """The cache key of a kernel: operator, attributes, and the types of inputs and outputs."""
    if any(a.type not in PLAIN for a in node.attributes.values()):
        proto, inputs, outputs = _single_node(node)
        types = (value.SerializeToString(deterministic=True) for value in (*inputs, *outputs))
        return b"".join((proto.SerializeToString(deterministic=True), *types))
    attributes = tuple((name, repr(a.value)) for name, a in sorted(node.attributes.items()))
    read = tuple(value is not None and repr(value.type) for value in node.inputs)
    written = tuple(bool(value.name) and repr(value.type) for value in node.outputs)
    return node.op_type, attributes, read, written


def _single_node(
    node: ir.Node,
) -> tuple[onnx.NodeProto, list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
    """`node` with its inputs and outputs, under neutral names, so that equal layers give equal bytes.

    A node with subgraphs keeps all names, because its subgraphs read tensors by name.
    """
    proto = ir.to_proto(node)
    proto.ClearField("name")
    proto.ClearField("doc_string")
    proto.ClearField("metadata_props")
    read = [value for value in node.inputs if value is not None]
    written = [value for value in node.outputs if value.name]
    if subgraphs(node):
        read = list({value.name: value for value in (*read, *captured(node))}.values())
        return proto, [_info(v, v.name or "") for v in read], [_info(v, v.name or "") for v in written]
    del proto.input[:], proto.output[:]
    proto.input.extend("" if value is None else f"i{index}" for index, value in enumerate(node.inputs))
    proto.output.extend(f"o{index}" if value.name else "" for index, value in enumerate(node.outputs))
    inputs = [_info(value, f"i{index}") for index, value in enumerate(node.inputs) if value is not None]
    outputs = [_info(value, f"o{index}") for index, value in enumerate(node.outputs) if value.name]
    return proto, inputs, outputs


def _info(value: ir.Value, name: str) -> onnx.ValueInfoProto:
    """The type of a tensor without its shape, so that one session serves every shape."""
    info = onnx.ValueInfoProto(name=name)
    if value.type is not None:
        info.type.CopyFrom(ir.serde.serialize_type(value.type))
    return info


Settings = tuple[tuple[str, object], ...]
"""Attributes of a node, by name; lists are tuples."""


@lru_cache(maxsize=1024)
def operator_kernel(op: str, settings: Settings, inputs: int, outputs: int) -> Kernel:
    """The kernel of one operator of opset 13 on FP32 tensors, with all threads.

    Args:
        op: The operator.
        settings: Its attributes.
        inputs: The number of inputs.
        outputs: The number of outputs; those after the first are int64.

    Raises:
        EmulationError: ONNX Runtime does not implement the operator with these attributes.
    """
    names, made = [f"i{index}" for index in range(inputs)], [f"o{index}" for index in range(outputs)]
    node = onnx.helper.make_node(op, names, made, **dict(settings))  # type: ignore[arg-type]
    single, whole = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
    graph = onnx.helper.make_graph(
        [node],
        op,
        [onnx.helper.make_tensor_value_info(name, single, None) for name in names],
        [onnx.helper.make_tensor_value_info(name, whole if index else single, None) for index, name in enumerate(made)],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    try:
        session = ort.InferenceSession(
            model.SerializeToString(), session_options(threads=0), providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime raises its own types, which it does not export
        raise EmulationError(
            f"ONNX Runtime cannot compute {op}: {first_line(error)}", fix="use another version of onnxruntime"
        ) from error
    return Kernel(session, names, made)


class Rounder:
    """Rounds FP32 arrays to the nearest FP16 or BF16 value. The result is FP32 again.

    It runs a pair of casts on ONNX Runtime, which honours explicit casts at every optimisation level and is some 30
    times faster than numpy's `astype`.
    """

    def __init__(self, kind: ReducedPrecision = ReducedPrecision.FP16) -> None:
        reduced = onnx.TensorProto.FLOAT16 if kind is ReducedPrecision.FP16 else onnx.TensorProto.BFLOAT16
        single = onnx.TensorProto.FLOAT
        nodes = [
            onnx.helper.make_node("Cast", ["x"], ["h"], to=reduced),
            onnx.helper.make_node("Cast", ["h"], ["y"], to=single),
        ]
        infos = [onnx.helper.make_tensor_value_info(name, single, None) for name in "xy"]
        graph = onnx.helper.make_graph(nodes, "round", infos[:1], infos[1:])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
        self._session = ort.InferenceSession(
            model.SerializeToString(), session_options(), providers=["CPUExecutionProvider"]
        )

    def __call__(self, array: Array) -> Array:
        return self._session.run(["y"], {"x": array})[0]  # type: ignore[no-any-return]
