"""The cost model, against sums done by hand."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from support.zoo import Net

from trt_helper.emulator.emulator import Emulator
from trt_helper.onnx_model.cost import Gpu, operations, pin_costs, seconds
from trt_helper.onnx_model.graph import Graph, read_graph
from trt_helper.onnx_model.load import load
from trt_helper.search.error_model import ErrorModel, RoundingEffect
from trt_helper.values import Plan

GPU = Gpu("made up", half=1e12, single=1e11, bandwidth=1e9)


@pytest.fixture
def graph(tmp_path) -> Graph:
    """A 3x3 convolution from 8 to 16 channels on 10x10, two pointwise layers, a product of 16 by 4."""
    net = Net(1)
    h = net("Conv", net.input("x", [1, 8, 10, 10]), net.normal(16, 8, 3, 3), pads=[1, 1, 1, 1], name="conv")
    h = net("Tanh", net("Relu", h, name="relu"), name="tanh")
    h = net("MatMul", net("GlobalMaxPool", h, name="pool"), net.normal(1, 4), name="product")
    path = tmp_path / "model.onnx"
    onnx.save(net.model("model", [h], [1, 16, 1, 4]), path)
    return read_graph(load(path))


def shapes_of(graph: Graph) -> dict[str, tuple[int, ...]]:
    return Emulator(graph).shapes({"x": np.zeros((1, 8, 10, 10), np.float32)})


def test_operations_are_those_of_the_textbook(graph):
    shapes = shapes_of(graph)
    found = {layer.name: operations(graph, layer, shapes) for layer in graph.layers}
    assert found["conv"] == 2 * 16 * 10 * 10 * 8 * 3 * 3
    assert found["product"] == 2 * 16 * 4 * 1
    assert found["relu"] == 16 * 10 * 10


def test_a_kernel_takes_as_long_as_its_traffic_when_that_is_longer(graph):
    """Conv moves 800 + 1152 + 1600 elements, the pool 1600 + 16, the product 16 + 4 + 64; the model's input is FP32."""
    halves = 2 * (1152 + 1600) + 2 * (1600 + 16) + 2 * (16 + 4 + 64)
    found = seconds(graph, Plan(), shapes_of(graph), GPU)
    assert found == pytest.approx((4 * 800 + halves) / GPU.bandwidth)
    everything = seconds(graph, graph.all_pinned(), shapes_of(graph), GPU)
    assert everything == pytest.approx((4 * 800 + 2 * halves) / GPU.bandwidth)


def test_a_pin_is_paid_by_its_own_layer_and_by_the_casts_around_it(graph):
    shapes = shapes_of(graph)
    found = pin_costs(graph, shapes, GPU)
    for name in graph.candidates:
        more = seconds(graph, Plan.of([name]), shapes, GPU) - seconds(graph, Plan(), shapes, GPU)
        assert found[name] == pytest.approx(more, abs=1e-12), name
    assert found["tanh"] == pytest.approx(((2 + 4) * 1600 + 2 * 1600) / GPU.bandwidth), (
        "its input, and what the pool reads"
    )
    assert found["product"] < found["tanh"]


def test_of_two_pins_that_help_alike_the_cheaper_one_is_kept():
    """Either layer keeps the value from being rounded; only its maker or its reader has to be pinned."""
    same = np.array([9.0])
    rounding_effects = [RoundingEffect(frozenset({name}), (), same) for name in ("a", "b")]
    for cheap, dear in (("a", "b"), ("b", "a")):
        prediction = ErrorModel(["a", "b"], rounding_effects, pin_costs={dear: 2.0, cheap: 1.0}).prediction()
        assert prediction.order[0] == cheap
        assert next(iter(prediction.without(Plan.of(["a", "b"])))) == dear
