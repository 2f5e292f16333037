"""The evidence is taken from a few of many samples; the answer holds for all of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.cli_helpers import constant, model, node, value
from support.overflowing_norm import PINS, TOLERANCE, overflowing_norm

from trt_helper.inputs.samples import Sample
from trt_helper.onnx_model.graph import read_graph
from trt_helper.onnx_model.load import load
from trt_helper.search.locate import locate
from trt_helper.search.rounding_effects import samples_to_measure
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


@pytest.mark.parametrize("loud", [0, 7, 8, 22, 39])
def test_the_one_sample_of_forty_that_overflows_decides(tmp_path, loud):
    path = tmp_path / "model.onnx"
    overflowing_norm(path, width=32, depth=6)
    rng = np.random.default_rng(1)
    scales = [1.0 if index == loud else 1e-3 for index in range(40)]
    feeds = [{"x": (scale * rng.standard_normal((64, 32))).astype(np.float32)} for scale in scales]
    located = locate(read_graph(load(path)), [Sample(str(i), feed) for i, feed in enumerate(feeds)], TOLERANCE)
    assert located.pins == PINS
    assert located.before.sample == loud
    assert located.minimal


def two_ways(path):
    """The larger of two branches of equal value, each of which goes through 1e-8: harm comes only where both are 0."""
    nodes, steps = [], ("small", "small", "large", "large")
    for branch in "ab":
        names = ["x", *(f"{branch}{step}" for step in range(len(steps)))]
        nodes += [node("Mul", [names[i], step], [names[i + 1]], f"{branch}_{i}") for i, step in enumerate(steps)]
    nodes.append(node("Max", ["a3", "b3"], ["y"], "larger"))
    held = [constant("small", np.float32(1e-4)), constant("large", np.float32(1e4))]
    path.write_bytes(model(nodes, [value("x", [3])], [value("y", [3])], held).SerializeToString())
    return read_graph(load(path))


@pytest.mark.parametrize(("samples", "loud"), [(2, 1), (3, 1), (40, 22), (40, 38)])
def test_a_sample_among_quiet_ones_is_understood_as_if_it_were_alone(tmp_path, samples, loud):
    """Nothing goes wrong where x is 0. What two roundings do together is found on the sample that shows it."""
    graph, tolerance = two_ways(tmp_path / "model.onnx"), Tolerance(0.01, 0.0)
    quiet, one = ({"x": np.full(3, number, np.float32)} for number in (0.0, 1.0))
    alone = locate(graph, [Sample("alone", one)], tolerance)
    assert len(alone.trials) <= 6
    among = [Sample(str(index), one if index == loud else quiet) for index in range(samples)]
    located = locate(graph, among, tolerance)
    assert located.pins == alone.pins
    assert {name[0] for name in located.pins} in ({"a"}, {"b"})
    assert [trial.plan for trial in located.trials] == [trial.plan for trial in alone.trials]
