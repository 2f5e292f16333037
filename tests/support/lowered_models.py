"""A model of one operator for every row of the lowering, with inputs on which its steps show."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from support.models import Case

F = np.float32


@dataclass(frozen=True)
class OneOperator:
    """One node; arrays named x0, x1, ... are inputs of the model, `constants` are initializers behind them."""

    operator: str
    inputs: tuple[np.ndarray, ...]
    constants: tuple[np.ndarray, ...] = ()
    opset: int = 20
    attributes: dict = field(default_factory=dict)

    def model(self, kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
        """The model, with floats of this type."""
        names = [f"x{index}" for index in range(len(self.inputs))]
        constants = self.constants if kind == TensorProto.FLOAT else map(_half, self.constants)
        weights = [numpy_helper.from_array(array, f"c{index}") for index, array in enumerate(constants)]
        node = helper.make_node(self.operator, [*names, *(w.name for w in weights)], ["y"], "layer", **self.attributes)
        read = [helper.make_tensor_value_info(n, kind, list(x.shape)) for n, x in zip(names, self.inputs, strict=True)]
        graph = helper.make_graph([node], "one", read, [helper.make_tensor_value_info("y", kind, None)], weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=10)
        return onnx.shape_inference.infer_shapes(model)

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """All inputs of the node, as halves; but a BatchNorm is folded in FP32 before anything is rounded."""
        constants = self.constants if self.operator == "BatchNormalization" else tuple(map(_half, self.constants))
        return (*map(_half, self.inputs), *constants)

    def case(self) -> Case:
        feed = {f"x{index}": x.astype(np.float16).astype(F) for index, x in enumerate(self.inputs)}
        return Case(self.operator, self.model(), feed)


def _half(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float16) if array.dtype == F else array


def lowered_models() -> dict[str, OneOperator]:
    random = np.random.default_rng(0)

    def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (random.standard_normal(shape) * scale).astype(F)

    x = normal(4, 64, scale=3)
    last = np.array([-1])
    images = normal(2, 8, 4, 4) + 30
    channels = [normal(8), normal(8), normal(8) + 30, np.abs(normal(8)) + F(0.1)]
    recurrent = {g: (normal(1, g * 16, 8), normal(1, g * 16, 16), normal(1, 2 * g * 16)) for g in (4, 3, 1)}
    sequence = normal(3, 4, 8)
    models = [
        OneOperator("BatchNormalization", (images,), tuple(channels)),
        OneOperator("Conv", (normal(1, 3, 8, 8),), (normal(8, 3, 1, 1), normal(8))),
        OneOperator("CumSum", (np.abs(x),), (np.array(1),)),
        OneOperator("GRU", (sequence,), recurrent[3], attributes={"hidden_size": 16, "linear_before_reset": 1}),
        OneOperator("Gemm", (normal(1, 256),), (normal(256, 32), normal(32))),
        OneOperator("GroupNormalization", (images,), (normal(8), normal(8)), 21, {"num_groups": 2}),
        OneOperator("LSTM", (sequence,), recurrent[4], attributes={"hidden_size": 16}),
        OneOperator("LayerNormalization", (x,), (normal(64), normal(64))),
        OneOperator("MatMul", (normal(1, 256),), (normal(256, 32),)),
        OneOperator("Mean", (x, 2 * x, x[::-1].copy())),
        OneOperator("Mod", (x * 10, np.abs(x) + 1), attributes={"fmod": 1}),
        OneOperator("Pow", (x,), (np.array(3, F),)),
        OneOperator("RMSNormalization", (x,), (normal(64),), 23),
        OneOperator("RNN", (sequence,), recurrent[1], attributes={"hidden_size": 16}),
        OneOperator("ReduceLogSumExp", (x,), (last,)),
        OneOperator("ReduceSumSquare", (x,), (last,)),
        OneOperator("RotaryEmbedding", (normal(1, 2, 5, 16), normal(1, 5, 8), normal(1, 5, 8)), opset=23),
        OneOperator("Sum", (x, 2 * x, x[::-1].copy())),
        OneOperator("Swish", (x,), opset=24),
    ]
    pointwise = ("Elu", "Gelu", "HardSigmoid", "HardSwish", "LogSoftmax", "Mish", "Selu", "Sigmoid", "Softmax")
    models += [OneOperator(operator, (x,)) for operator in (*pointwise, "Softplus", "Softsign")]
    return {one.operator: one for one in models}
