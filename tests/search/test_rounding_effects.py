"""Rounding effects: the samples on which they are measured, and errors of opposite sign."""

from __future__ import annotations

import numpy as np
import onnx
from hypothesis import given
from hypothesis import strategies as st
from support.zoo import Net

from trt_helper.emulator.emulator import Emulator
from trt_helper.onnx_model.graph import read_graph
from trt_helper.onnx_model.load import load
from trt_helper.search.rounding_effects import rounding_effects, samples_to_measure
from trt_helper.search.tuning import MOST_SAMPLES
from trt_helper.values import Tolerance


@given(st.integers(1, 500), st.data())
def test_the_worst_sample_is_measured_and_others_from_first_to_last(samples, data):
    worst = data.draw(st.integers(0, samples - 1))
    found = samples_to_measure(samples, worst)
    assert found == sorted(set(found))
    assert set(found) <= set(range(samples))
    assert worst in found
    assert len(found) <= MOST_SAMPLES
    if samples > MOST_SAMPLES:
        assert found[0] == 0
        assert found[-1] == samples - 1
        assert max(np.diff(found)) <= np.ceil((samples - 1) / (MOST_SAMPLES - 2))
    else:
        assert found == list(range(samples))


def test_errors_of_opposite_sign_that_do_not_cancel_are_left_alone(tmp_path):
    """2049 becomes 2048 and 4102 becomes 4104: on one number any two errors are parallel, but -1 and 2 leave 1."""
    net = Net(3)
    x = net.input("x", [1])
    y = net("Add", net("Mul", x, 2049.0, name="a"), net("Mul", x, 4102.0, name="b"), name="y")
    path = tmp_path / "model.onnx"
    onnx.save(net.model("model", [y], [1]), path)
    emulator = Emulator(read_graph(load(path)))
    found, _ = rounding_effects(emulator, [{"x": np.ones(1, np.float32)}], Tolerance(atol=1.0, rtol=0.0))
    effects = {rounding.value: float(rounding.for_all_consumers[0]) for rounding in found}
    assert effects["a", "a"] == effects["", "a"] == -1
    assert effects["b", "b"] == effects["", "b"] == 2
