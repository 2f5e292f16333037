"""From what single roundings do to the order of pins; exact by construction."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx
import pytest
from zoo import Net

from trt_helper.emulator.emulator import Emulator
from trt_helper.onnx_model.graph import read_graph
from trt_helper.onnx_model.load import load
from trt_helper.search.error_model import Conflict, Foresight, Rounding
from trt_helper.search.rounding_effects import roundings
from trt_helper.values import Plan, Statistic, Tolerance


def vector(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)


def travelling(maker: str, reader: str, error: np.ndarray) -> Rounding:
    return Rounding(frozenset({maker}), (reader,), error)


def weights(layer: str, error: np.ndarray) -> Rounding:
    return Rounding(frozenset({layer}), (), error)


def test_a_value_between_two_layers_is_exact_only_when_both_are_pinned():
    foresight = Foresight(["a", "b"], [travelling("a", "b", vector(3.0, 0.0))])
    assert foresight.error(Plan()) == pytest.approx(3.0)
    assert foresight.error(Plan.of(["a"])) == pytest.approx(3.0)
    assert foresight.error(Plan.of(["b"])) == pytest.approx(3.0)
    assert foresight.error(Plan.of(["a", "b"])) == 0


def test_errors_of_different_roundings_add_by_squares():
    foresight = Foresight(["a", "b"], [weights("a", vector(3.0)), weights("b", vector(-4.0))])
    assert foresight.error(Plan()) == pytest.approx(5.0)


def test_the_same_rounding_before_and_after_a_relu_counts_once():
    chain = [travelling("conv", "relu", vector(2.0, 1.0)), travelling("relu", "next", vector(2.0, 1.0))]
    foresight = Foresight(["conv", "relu", "next"], chain)
    assert foresight.error(Plan()) == pytest.approx(2.0)
    assert foresight.error(Plan.of(["conv", "relu"])) == pytest.approx(2.0)
    assert foresight.error(Plan.of(["conv", "relu", "next"])) == 0


def test_a_value_that_its_maker_rounds_is_rounded_for_all_readers_at_once():
    """Rounded for both, x - mean(x) stays consistent; rounded for one of them, it does not."""
    value = Rounding(frozenset({"x"}), ("mean", "sub"), vector(0.1), (vector(8.0), vector(-8.0)))
    foresight = Foresight(["x", "mean", "sub"], [value])
    assert foresight.error(Plan()) == pytest.approx(0.1)
    assert foresight.error(Plan.of(["x"])) == pytest.approx(0.1)
    assert foresight.error(Plan.of(["mean"])) == pytest.approx(0.1)
    assert foresight.error(Plan.of(["x", "mean"])) == pytest.approx(8.0)
    assert foresight.error(Plan.of(["x", "mean", "sub"])) == 0


def test_a_graph_input_is_rounded_by_its_readers_only():
    foresight = Foresight(["a"], [Rounding(frozenset(), ("a",), vector(5.0))])
    assert foresight.error(Plan()) == pytest.approx(5.0)
    assert foresight.error(Plan.of(["a"])) == 0


def test_the_order_puts_what_has_to_move_together_first():
    layers = ["in", "square", "mean", "rsqrt", "out"]
    roundings = [
        travelling("in", "square", vector(0.3)),
        travelling("square", "mean", vector(900.0)),
        travelling("mean", "rsqrt", vector(1000.0)),
        travelling("rsqrt", "out", vector(0.4)),
    ]
    guess = Foresight(layers, roundings).guess()
    assert set(guess.order[:3]) == {"square", "mean", "rsqrt"}
    assert guess.errors[3] == pytest.approx(0.5)
    assert guess.errors[0] > 900
    assert guess.errors[len(layers)] == 0


def test_foreseen_errors_are_those_of_the_plans_in_the_order():
    generator = np.random.default_rng(3)
    layers = [f"n{index}" for index in range(12)]
    roundings = [weights(name, generator.normal(size=5)) for name in layers]
    roundings += [travelling(a, b, generator.normal(size=5)) for a, b in pairwise(layers)]
    roundings.append(
        Rounding(frozenset({"n0"}), ("n5", "n9"), generator.normal(size=5), tuple(generator.normal(size=(2, 5))))
    )
    foresight = Foresight(layers, roundings)
    guess = foresight.guess()
    for k, error in enumerate(guess.errors):
        assert error == pytest.approx(foresight.error(Plan.of(guess.order[:k])), abs=1e-9)


def test_what_is_missed_least_comes_first():
    foresight = Foresight(
        ["a", "b", "c"], [weights("a", vector(2.0)), weights("b", vector(9.0)), weights("c", vector(0.5))]
    )
    without = foresight.guess().without(Plan.of(["a", "b", "c"]))
    assert without == {"a": pytest.approx(2.0), "b": pytest.approx(9.0), "c": pytest.approx(0.5)}


def test_opposite_effects_cancel():
    """Two sides of a difference: either rounding alone does harm, both together do none."""
    up, down = weights("a", vector(4.0, -1.0)), weights("b", vector(-4.0, 1.0))
    foresight = Foresight(["a", "b", "c"], [up, down, weights("c", vector(0.0, 30.0))])
    assert foresight.error(Plan()) == pytest.approx(30.0)
    assert foresight.error(Plan.of(["c"])) == 0
    assert foresight.error(Plan.of(["a", "c"])) == pytest.approx(4.0)
    guess = foresight.guess()
    assert guess.order[0] == "c"
    assert guess.errors[1] == pytest.approx(0.0)
    assert guess.errors[2] == pytest.approx(4.0)


def test_errors_of_opposite_sign_that_do_not_cancel_are_left_alone(tmp_path):
    """2049 becomes 2048 and 4102 becomes 4104: on one number any two errors are parallel, but -1 and 2 leave 1."""
    net = Net(3)
    x = net.input("x", [1])
    y = net("Add", net("Mul", x, 2049.0, name="a"), net("Mul", x, 4102.0, name="b"), name="y")
    path = tmp_path / "model.onnx"
    onnx.save(net.model("model", [y], [1]), path)
    emulator = Emulator(read_graph(load(path)))
    found, _ = roundings(emulator, [{"x": np.ones(1, np.float32)}], Tolerance(atol=1.0, rtol=0.0))
    effects = {rounding.value: float(rounding.together[0]) for rounding in found}
    assert effects["a", "a"] == effects["", "a"] == -1
    assert effects["b", "b"] == effects["", "b"] == 2


def test_effects_that_are_not_finite_never_cancel():
    overflow = [weights("a", vector(1e4)), weights("b", vector(-1e4))]
    assert Foresight(["a", "b"], overflow).error(Plan()) > 1e4


def test_a_conflict_is_put_down_to_the_party_that_takes_fewer_pins():
    """`left` is one layer, `right` three whose values stand in for each other."""
    quiet = vector(0.0)
    roundings = [
        Rounding(frozenset({maker}), (reader,), quiet, (), (maker, maker))
        for maker, reader in [("left", "gate"), ("right_1", "right_2"), ("right_2", "right_3"), ("right_3", "gate")]
    ]
    right = tuple((name, name) for name in ("right_1", "right_2", "right_3"))
    conflict = Conflict((right, (("left", "left"),)), vector(50.0))
    layers = ["right_1", "left", "right_2", "right_3", "gate"]
    guess = Foresight(layers, roundings, conflicts=[conflict]).guess()
    assert set(guess.order[:2]) == {"left", "gate"}
    assert guess.errors[1] == pytest.approx(50.0)
    assert guess.errors[2] == 0


def test_the_statistic_decides_what_an_error_is():
    errors = [weights("a", vector(4.0, 0.0, 0.0, 0.0))]
    assert Foresight(["a"], errors, Statistic.MAX).error(Plan()) == pytest.approx(4.0)
    assert Foresight(["a"], errors, Statistic.MEAN).error(Plan()) == pytest.approx(1.0)
    assert Foresight(["a"], errors, Statistic.MEDIAN).error(Plan()) == 0


def test_many_layers_without_effect_cost_no_time_to_order():
    layers = [f"n{index}" for index in range(5000)]
    roundings = [weights(name, vector(1e-6)) for name in layers] + [weights("n77", vector(50.0))]
    guess = Foresight(layers, roundings).guess()
    assert guess.order[0] == "n77"
    assert len(guess.order) == 5000
