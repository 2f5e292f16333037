"""Small versions of `benchmarks/hazard_models.py`: what is planted is needed, and is all that is needed.

Judged by pairs of casts around the layers that are not kept, on ONNX Runtime: nothing of trt_helper takes part.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx
import pytest
from hazard_models import MODELS
from hazards import HazardModel
from made import Network
from support.independent import all_half_but, as_half
from support.zoo_judge import distance, session_of

SCALE = 0.1
SAMPLES = 2
APART = 3  # the tolerance is so far below the error of pure FP16


class Judge:
    def __init__(self, made: HazardModel) -> None:
        self.made = made
        self.model = onnx.load(made.path)
        self.feeds = made.feeds(SAMPLES)
        self.references = self.outputs(self.model)

    def outputs(self, model: onnx.ModelProto) -> list[list[np.ndarray]]:
        session = session_of(model)
        return [session.run(None, feed) for feed in self.feeds]

    def error(self, kept: Collection[str]) -> float:
        """Worst absolute error, inf where an output is not finite."""
        found = self.outputs(all_half_but(self.model, kept))
        return max(map(distance, found, self.references))


@pytest.fixture(scope="module", params=MODELS)
def judge(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Judge:
    return Judge(MODELS[request.param](tmp_path_factory.mktemp(request.param) / "model.onnx", SCALE))


def test_pure_fp16_is_far_off_and_the_planted_layers_suffice(judge):
    onnx.checker.check_model(judge.model, full_check=True)
    assert judge.error(()) >= APART * judge.made.atol
    assert judge.error(judge.made.kept) <= judge.made.atol


def test_no_group_and_no_single_planted_layer_can_be_left_out(judge):
    singles = (frozenset([name]) for name in judge.made.kept)
    parts = {part for part in (*judge.made.planted, *singles) if part}
    enough = {tuple(sorted(part)) for part in parts if judge.error(judge.made.kept - part) <= judge.made.atol}
    assert not enough


def test_samples_differ_and_come_again(judge):
    one, other = judge.made.feeds(2)
    again = judge.made.feeds(1)[0]
    assert any(not np.array_equal(one[name], other[name]) for name in one)
    assert all(np.array_equal(one[name], again[name]) for name in one)


def test_casts_stay_and_a_kept_layer_is_not_rounded(tmp_path: Path):
    """x + 1/3, then times 1/3; 1/3 has no exact FP16 value."""
    net = Network()
    third = net.number(1 / 3)
    added = net.node("Add", "x", third)
    net.save(tmp_path / "m.onnx", (64,), net.node("Mul", added, third))
    model, x = onnx.load(tmp_path / "m.onnx"), np.random.default_rng(0).random(64).astype(np.float32)
    add, mul = (node.name for node in model.graph.node)
    exact, rounded = np.float32(1 / 3), as_half(np.array([1 / 3], np.float32))
    half_sum = as_half(as_half(x) + rounded)
    expected = {
        (add, mul): (x + exact) * exact,
        (mul,): half_sum * exact,
        (add,): as_half(as_half(x + exact) * rounded),
        (): as_half(half_sum * rounded),
    }
    for kept, values in expected.items():
        assert np.array_equal(session_of(all_half_but(model, kept)).run(None, {"x": x})[0], values)
    assert len({values.tobytes() for values in expected.values()}) == 4
