"""Gradients agree with difference quotients of whole models in ONNX Runtime; what has none is not called zero."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from support.independent import run_on_ort
from support.model_cases import save_case
from support.operator_cases import cases
from support.zoo import Net

from trt_helper.emulator.emulator import Emulator
from trt_helper.emulator.gradients import sweep_back
from trt_helper.onnx_model.graph import read_graph
from trt_helper.onnx_model.load import load

STEP = 2.0**-7
OPAQUE = {"ArgMax", "ArgMin", "Ceil", "Floor", "Round", "Sign", "Greater", "Less", "LSTM", "GRU", "RNN", "If", "TopK"}
WITH_A_KINK_AT_INTEGERS = {"Elu", "LeakyRelu", "Selu"}
KNOWN = {
    *("Add", "Sub", "Mul", "Div", "Pow", "Sqrt", "Exp", "Log", "Erf", "Tanh", "Sigmoid", "Relu", "LeakyRelu", "PRelu"),
    *("Clip", "Max", "Min", "Where", "MatMul", "Gemm", "Einsum", "Conv", "ConvTranspose", "AveragePool", "MaxPool"),
    *(
        "GlobalAveragePool",
        "GlobalMaxPool",
        "ReduceSum",
        "ReduceMean",
        "ReduceMax",
        "ReduceL2",
        "Softmax",
        "LogSoftmax",
    ),
    *("LayerNormalization", "InstanceNormalization", "BatchNormalization", "Reshape", "Transpose", "Concat", "Split"),
    *("Slice", "Gather", "GatherElements", "GatherND", "Pad", "Expand", "Tile", "DepthToSpace", "SpaceToDepth"),
    *("LogSoftmax", "Squeeze", "Unsqueeze", "ScatterND", "Resize"),
}


def gradients_of_inputs(case, weights):
    """The gradient of the sum of all outputs times `weights`, by input; those that are not known are missing."""
    layers = case.emulator.layers_backwards(case.emulator.all_values(case.feed))
    steps = sweep_back(layers, {name: array[None] for name, array in weights.items()})
    try:
        while True:
            next(steps)
    except StopIteration as end:
        return {name: gradient[0] for name, gradient in end.value.items()}


def slope(case, weights, name, direction):
    """The difference quotient of the same sum along `direction`."""
    ends = []
    for sign in (1, -1):
        moved = {**case.feed, name: (case.feed[name] + sign * STEP * direction).astype(np.float32)}
        outputs = run_on_ort(case.path, moved)
        ends.append(sum(float((outputs[out].astype(np.float64) * w).sum()) for out, w in weights.items()))
    return (ends[0] - ends[1]) / (2 * STEP)


@pytest.mark.parametrize("operator", sorted(cases()))
def test_a_gradient_is_the_slope_of_the_model(tmp_path, operator):
    case = save_case(cases()[operator], tmp_path)
    if operator in WITH_A_KINK_AT_INTEGERS:
        case.feed = {name: array + np.float32(0.1) for name, array in case.feed.items()}
    try:
        outputs = run_on_ort(case.path, case.feed)
        case.emulator.reference(case.feed)
    except Exception as error:
        pytest.skip(f"cannot be run: {str(error)[:60]}")
    generator = np.random.default_rng(0)
    weights = {
        name: generator.standard_normal(array.shape).astype(np.float32)
        for name, array in [*outputs.items()][:1]
        if array.dtype == np.float32
    }
    if not weights:
        pytest.skip("no output is FP32")
    found = gradients_of_inputs(case, weights)
    assert not (operator in OPAQUE and found), "no gradient exists here"
    assert found or operator not in KNOWN
    for name, gradient in found.items():
        assert gradient.shape == case.feed[name].shape
        direction = np.sign(generator.standard_normal(gradient.shape))
        expected = slope(case, weights, name, direction)
        if not np.isfinite(expected):
            pytest.skip("at the edge of what it is defined for")
        assert float((gradient.astype(np.float64) * direction).sum()) == pytest.approx(
            expected, rel=0.03, abs=0.02 * float(np.abs(gradient).max(initial=0)) + 1e-4
        ), name


@pytest.mark.parametrize("operator", ["Greater", "Floor"])
def test_what_lies_before_a_step_is_not_known(tmp_path, operator):
    """A gradient of zero would say that nothing comes of it."""
    net = Net(0)
    x = net.input("x", [1])
    half = net("Mul", net("Add", x, 1.0, name="add"), 0.5, name="half")
    if operator == "Greater":
        net("Where", net("Greater", half, 1024.25, name="step"), x, 0.0, name="y")
    else:
        net("Mul", net("Floor", half, name="step"), 2.0, name="y")
    path = tmp_path / "model.onnx"
    onnx.save(net.model("model", ["y"], [1]), path)
    emulator = Emulator(read_graph(load(path)))
    layers = emulator.layers_backwards(emulator.all_values({"x": np.full(1, 2048.0, np.float32)}))
    known = {step.layer.node.name: step.known for step in sweep_back(layers, {"y": np.ones((1, 1), np.float32)})}
    assert known == {"y": True, "step": operator == "Floor", "half": False, "add": False}
