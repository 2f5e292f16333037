"""Layers whose sums are large or long: right as long as kernels accumulate in FP32, wrong where one does not."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np

from trt_helper.emulator.causes import HALF_MAX
from trt_helper.emulator.emulator import Emulator
from trt_helper.emulator.gradients import EvaluatedLayer
from trt_helper.emulator.kernels import EmulationError
from trt_helper.values import Array, LayerName, TensorName

LONG = 2048  # equal terms; half has 11 bits, so that a total of so many does not change when one more is added


@dataclass(frozen=True, slots=True)
class PartialSum:
    """A layer with a sum that half precision cannot accumulate.

    Attributes:
        layer: its name.
        op: its operator.
        terms: the number of terms of each of its sums.
        largest: the largest sum of the magnitudes of its terms: no partial sum is larger.
    """

    layer: LayerName
    op: str
    terms: int
    largest: float

    @property
    def overflows(self) -> bool:
        """Whether a partial sum may pass the largest half."""
        return self.largest > HALF_MAX


def partial_sums(emulator: Emulator, kept: Collection[LayerName], feed: Mapping[TensorName, Array]) -> list[PartialSum]:
    """The layers whose partial sums may pass 65504, or that add up so many terms that small ones are lost.

    A layer whose result itself passes 65504 is not among them: that is seen without looking inside.

    Args:
        emulator: of the graph.
        kept: layers that are not FP16.
        feed: one sample.

    Returns:
        In topological order.
    """
    values = emulator.all_values(feed)
    found = []
    for layer in emulator.layers_backwards(values):
        name = layer.node.name or ""
        if layer.node.op_type in SUMS and name in emulator.graph.candidates and name not in kept:
            terms, largest = _sum_of(layer)
            result = layer.outputs[0]
            within = result is not None and float(np.abs(result).max(initial=0.0)) <= HALF_MAX
            if within and (largest > HALF_MAX or (terms > LONG and layer.node.op_type in LONG_ONES)):
                found.append(PartialSum(name, layer.node.op_type, terms, largest))
    return found[::-1]


def _sum_of(layer: EvaluatedLayer) -> tuple[int, float]:
    """The number of terms, and the largest sum of their magnitudes; nothing where it cannot be computed."""
    try:
        return SUMS[layer.node.op_type](layer)
    except (EmulationError, IndexError, ValueError):
        return 0, 0.0


def _magnitudes(layer: EvaluatedLayer) -> float:
    """The largest output of the layer for the magnitudes of its inputs."""
    inputs = [abs(array) if array is not None and array.dtype.kind == "f" else array for array in layer.inputs]
    return float(np.abs(layer.run(inputs)[0]).max(initial=0.0))


def _of_product(layer: EvaluatedLayer) -> tuple[int, float]:
    a, transposed = layer.input(0), layer.node.attributes.get_int("transA", 0)
    return a.shape[0 if transposed else -1], _magnitudes(layer)


def _of_convolution(layer: EvaluatedLayer) -> tuple[int, float]:
    return int(np.prod(layer.input(1).shape[1:])), _magnitudes(layer)


def _of_reduction(layer: EvaluatedLayer) -> tuple[int, float]:
    result = layer.output()
    terms = layer.input(0).size // max(result.size, 1)
    times = terms if layer.node.op_type in ("ReduceMean", "GlobalAveragePool") else 1
    return terms, times * _magnitudes(layer)


def _of_softmax(layer: EvaluatedLayer) -> tuple[int, float]:
    x, axis = layer.input(0), layer.node.attributes.get_int("axis", -1)
    powers = np.exp(x - x.max(axis=axis, keepdims=True))
    return x.shape[axis], float(powers.sum(axis=axis).max(initial=0.0))


def _of_square(layer: EvaluatedLayer) -> tuple[int, float]:
    result = layer.output()
    squares = np.square(result) if layer.node.op_type == "ReduceL2" else result
    return layer.input(0).size // max(result.size, 1), float(squares.max(initial=0.0))


SUMS: Mapping[str, Callable[[EvaluatedLayer], tuple[int, float]]] = {
    **dict.fromkeys(("Gemm", "MatMul"), _of_product),
    "Conv": _of_convolution,
    **dict.fromkeys(("GlobalAveragePool", "ReduceL1", "ReduceMean", "ReduceSum"), _of_reduction),
    **dict.fromkeys(("ReduceL2", "ReduceSumSquare"), _of_square),
    "Softmax": _of_softmax,
}
LONG_ONES = SUMS.keys() - {"Gemm", "MatMul", "Conv"}  # terms of a product have either sign, and cancel
