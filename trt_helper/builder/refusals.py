"""Which nodes of a model the installed TensorRT will refuse, known before a search rather than after it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import onnx
import onnx_ir as ir

from trt_helper.builder.build import PACKAGE, PACKAGE_VARIABLE
from trt_helper.errors import TrtHelperError
from trt_helper.onnx_model.graph import Graph
from trt_helper.onnx_model.typed import render, state_conditions, write
from trt_helper.system.child_process import ChildDiedError, Limits, NotImportableError, run
from trt_helper.values import Plan

# Built by TensorRT-RTX 1.7.1 in every usual form, see docs/operators.md: nothing has to be asked about them.
TAKEN = frozenset((
    "Abs", "Acos", "Acosh", "Add", "And", "ArgMax", "ArgMin", "Asin", "Asinh", "Atan", "Atanh", "AveragePool",
    "BatchNormalization", "Cast", "Ceil", "Celu", "Clip", "Concat", "Constant", "ConstantOfShape", "Conv",
    "ConvTranspose", "Cos", "Cosh", "CumSum", "DepthToSpace", "Div", "Dropout", "Elu", "Equal", "Erf", "Exp",
    "Expand", "Flatten", "Floor", "GRU", "Gather", "GatherElements", "GatherND", "Gelu", "Gemm",
    "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "Greater", "GreaterOrEqual", "GridSample",
    "HardSigmoid", "HardSwish", "Identity", "InstanceNormalization", "IsInf", "IsNaN", "LSTM",
    "LayerNormalization", "LeakyRelu", "Less", "LessOrEqual", "Log", "LogSoftmax", "MatMul", "Max", "MaxPool",
    "Mean", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "OneHot", "Or", "PRelu", "Pad", "Pow", "Range",
    "Reciprocal", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
    "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Relu", "Reshape", "Resize", "Round",
    "ScatterElements", "ScatterND", "Selu", "Shape", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Size",
    "Slice", "Softmax", "Softplus", "Softsign", "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sub", "Sum",
    "Tan", "Tanh", "ThresholdedRelu", "Tile", "TopK", "Transpose", "Trilu", "Unsqueeze", "Where", "Xor",
))  # fmt: skip
USUAL = frozenset((ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL))
LARGEST = 1 << 28  # bytes of weights; a larger model is not written only to be parsed
SECONDS = 120.0  # for the child process


@dataclass(frozen=True, slots=True)
class Refusal:
    """A node that the builder refuses, and what it says."""

    layer: str
    op: str
    says: str
    builder: str


def may_refuse(graph: Graph) -> bool:
    """Whether anything in the model is worth asking about: an operator or a type that a builder may not have."""
    if graph.tail is not None or not TAKEN.issuperset(layer.op for layer in graph.layers):
        return True
    values = (out for node in graph.nodes.values() for out in node.outputs)
    return any(value.dtype not in USUAL for value in values if value.name)


def refusals(graph: Graph, *, tensorrt: bool = False) -> tuple[Refusal, ...]:
    """The nodes that the installed builder refuses; none where no builder is installed or it cannot be asked.

    Args:
        graph: Of the model.
        tensorrt: Ask TensorRT 10 or 11, not TensorRT-RTX.
    """
    weights = sum(v.const_value.nbytes for v in graph.model.graph.initializers.values() if v.const_value is not None)
    if find_spec(PACKAGE[tensorrt]) is None or weights > LARGEST:
        return ()
    try:
        with tempfile.TemporaryDirectory(prefix="trt-helper-") as folder:
            typed = render(graph, Plan())
            state_conditions(typed.model)
            write(typed, Path(folder) / "model.onnx")
            ops = {layer.op for layer in graph.layers}
            probes = {op: Path(folder) / f"{op}.onnx" for op in PROBES if op in ops}
            for op, path in probes.items():
                onnx.save(PROBES[op](), path)
            result = run(
                f"{__package__}.parse_child",
                {"model": str(Path(folder) / "model.onnx"), "probes": {op: str(path) for op, path in probes.items()}},
                limits=Limits(SECONDS, None),
                on_event=lambda _event: None,
                leftover=Path(folder) / "nothing",
                environment={PACKAGE_VARIABLE: PACKAGE[tensorrt]},
            )
    except (TrtHelperError, ChildDiedError, NotImportableError, OSError):
        return ()  # the conversion will say what is wrong
    builder = result["builder"]
    refused = [Refusal(layer, op, says, builder) for layer, op, says in result["refused"]]
    unbuilt: Mapping[str, str] = result["unbuilt"]
    layers = [layer for layer in graph.layers if layer.op in unbuilt]
    return (*refused, *(Refusal(layer.name, layer.op, unbuilt[layer.op], builder) for layer in layers))


def in_one_line(found: tuple[Refusal, ...]) -> str:
    """What will be refused, in one sentence."""
    first = found[0]
    more = f", and {len(found) - 1} more nodes" if len(found) > 1 else ""
    return f"{first.builder} will refuse {first.layer!r} ({first.op}){more}: {first.says}"


def _nms() -> onnx.ModelProto:
    """TensorRT-RTX 1.4.0 and 1.7.1 parse it, and have no kernel for it."""
    value, kinds = onnx.helper.make_tensor_value_info, onnx.TensorProto
    numbers = {"most": (kinds.INT64, 3), "iou": (kinds.FLOAT, 0.5), "score": (kinds.FLOAT, 0.1)}
    node = onnx.helper.make_node("NonMaxSuppression", ["boxes", "scores", *numbers], ["y"])
    graph = onnx.helper.make_graph(
        [node],
        "probe",
        [value("boxes", kinds.FLOAT, [1, 6, 4]), value("scores", kinds.FLOAT, [1, 1, 6])],
        [value("y", kinds.INT64, ["n", 3])],
        [onnx.helper.make_tensor(name, kind, [1], [number]) for name, (kind, number) in numbers.items()],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


PROBES = {"NonMaxSuppression": _nms}
"""Operators that a parser takes and a builder may not build, as docs/operators.md has measured, and a model of each."""
