"""The evidence is taken from a few of many samples; the answer holds for all of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_budget import PINS, TOLERANCE
from test_journal import overflowing_norm

from trt_helper.graph import read_graph
from trt_helper.locate import locate
from trt_helper.model import load
from trt_helper.samples import Sample
from trt_helper.sensitivity import MOST_SAMPLES, looked_at


@given(st.integers(1, 500), st.data())
def test_the_worst_sample_is_looked_at_and_others_from_first_to_last(samples, data):
    worst = data.draw(st.integers(0, samples - 1))
    found = looked_at(samples, worst)
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
