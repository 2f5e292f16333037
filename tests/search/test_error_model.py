"""The error model: from what single roundings do to the error of a plan and to the order of pins."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from trt_helper.search.error_model import Conflict, ErrorModel, RoundingEffect
from trt_helper.values import Plan, Statistic


def vector(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)


def travelling(producer: str, consumer: str, error: np.ndarray) -> RoundingEffect:
    return RoundingEffect(frozenset({producer}), (consumer,), error)


def weights(layer: str, error: np.ndarray) -> RoundingEffect:
    return RoundingEffect(frozenset({layer}), (), error)


def test_a_value_between_two_layers_is_exact_only_when_both_are_pinned():
    model = ErrorModel(["a", "b"], [travelling("a", "b", vector(3.0, 0.0))])
    assert model.error(Plan()) == pytest.approx(3.0)
    assert model.error(Plan.of(["a"])) == pytest.approx(3.0)
    assert model.error(Plan.of(["b"])) == pytest.approx(3.0)
    assert model.error(Plan.of(["a", "b"])) == 0


def test_errors_of_different_roundings_add_by_squares():
    model = ErrorModel(["a", "b"], [weights("a", vector(3.0)), weights("b", vector(-4.0))])
    assert model.error(Plan()) == pytest.approx(5.0)


def test_the_same_rounding_before_and_after_a_relu_counts_once():
    chain = [travelling("conv", "relu", vector(2.0, 1.0)), travelling("relu", "next", vector(2.0, 1.0))]
    model = ErrorModel(["conv", "relu", "next"], chain)
    assert model.error(Plan()) == pytest.approx(2.0)
    assert model.error(Plan.of(["conv", "relu"])) == pytest.approx(2.0)
    assert model.error(Plan.of(["conv", "relu", "next"])) == 0


def test_a_value_that_its_maker_rounds_is_rounded_for_all_readers_at_once():
    """Rounded for both, x - mean(x) stays consistent; rounded for one of them, it does not."""
    value = RoundingEffect(frozenset({"x"}), ("mean", "sub"), vector(0.1), (vector(8.0), vector(-8.0)))
    model = ErrorModel(["x", "mean", "sub"], [value])
    assert model.error(Plan()) == pytest.approx(0.1)
    assert model.error(Plan.of(["x"])) == pytest.approx(0.1)
    assert model.error(Plan.of(["mean"])) == pytest.approx(0.1)
    assert model.error(Plan.of(["x", "mean"])) == pytest.approx(8.0)
    assert model.error(Plan.of(["x", "mean", "sub"])) == 0


def test_a_graph_input_is_rounded_by_its_readers_only():
    model = ErrorModel(["a"], [RoundingEffect(frozenset(), ("a",), vector(5.0))])
    assert model.error(Plan()) == pytest.approx(5.0)
    assert model.error(Plan.of(["a"])) == 0


def test_the_order_puts_what_has_to_move_together_first():
    layers = ["in", "square", "mean", "rsqrt", "out"]
    rounding_effects = [
        travelling("in", "square", vector(0.3)),
        travelling("square", "mean", vector(900.0)),
        travelling("mean", "rsqrt", vector(1000.0)),
        travelling("rsqrt", "out", vector(0.4)),
    ]
    prediction = ErrorModel(layers, rounding_effects).prediction()
    assert set(prediction.order[:3]) == {"square", "mean", "rsqrt"}
    assert prediction.errors[3] == pytest.approx(0.5)
    assert prediction.errors[0] > 900
    assert prediction.errors[len(layers)] == 0


def test_predicted_errors_are_those_of_the_plans_in_the_order():
    generator = np.random.default_rng(3)
    layers = [f"n{index}" for index in range(12)]
    rounding_effects = [weights(name, generator.normal(size=5)) for name in layers]
    rounding_effects += [travelling(a, b, generator.normal(size=5)) for a, b in pairwise(layers)]
    rounding_effects.append(
        RoundingEffect(frozenset({"n0"}), ("n5", "n9"), generator.normal(size=5), tuple(generator.normal(size=(2, 5))))
    )
    model = ErrorModel(layers, rounding_effects)
    prediction = model.prediction()
    for k, error in enumerate(prediction.errors):
        assert error == pytest.approx(model.error(Plan.of(prediction.order[:k])), abs=1e-9)


def test_what_is_missed_least_comes_first():
    model = ErrorModel(
        ["a", "b", "c"], [weights("a", vector(2.0)), weights("b", vector(9.0)), weights("c", vector(0.5))]
    )
    without = model.prediction().without(Plan.of(["a", "b", "c"]))
    assert without == {"a": pytest.approx(2.0), "b": pytest.approx(9.0), "c": pytest.approx(0.5)}


def test_opposite_effects_cancel():
    """Two sides of a difference: either rounding alone does harm, both together do none."""
    up, down = weights("a", vector(4.0, -1.0)), weights("b", vector(-4.0, 1.0))
    model = ErrorModel(["a", "b", "c"], [up, down, weights("c", vector(0.0, 30.0))])
    assert model.error(Plan()) == pytest.approx(30.0)
    assert model.error(Plan.of(["c"])) == 0
    assert model.error(Plan.of(["a", "c"])) == pytest.approx(4.0)
    prediction = model.prediction()
    assert prediction.order[0] == "c"
    assert prediction.errors[1] == pytest.approx(0.0)
    assert prediction.errors[2] == pytest.approx(4.0)


def test_effects_that_are_not_finite_never_cancel():
    overflow = [weights("a", vector(1e4)), weights("b", vector(-1e4))]
    assert ErrorModel(["a", "b"], overflow).error(Plan()) > 1e4


def test_a_conflict_is_put_down_to_the_party_that_takes_fewer_pins():
    """`left` is one layer, `right` three whose values stand in for each other."""
    quiet = vector(0.0)
    rounding_effects = [
        RoundingEffect(frozenset({producer}), (consumer,), quiet, (), (producer, producer))
        for producer, consumer in [
            ("left", "gate"),
            ("right_1", "right_2"),
            ("right_2", "right_3"),
            ("right_3", "gate"),
        ]
    ]
    right = tuple((name, name) for name in ("right_1", "right_2", "right_3"))
    conflict = Conflict((right, (("left", "left"),)), vector(50.0))
    layers = ["right_1", "left", "right_2", "right_3", "gate"]
    prediction = ErrorModel(layers, rounding_effects, conflicts=[conflict]).prediction()
    assert set(prediction.order[:2]) == {"left", "gate"}
    assert prediction.errors[1] == pytest.approx(50.0)
    assert prediction.errors[2] == 0


def test_the_statistic_decides_what_an_error_is():
    errors = [weights("a", vector(4.0, 0.0, 0.0, 0.0))]
    assert ErrorModel(["a"], errors, Statistic.MAX).error(Plan()) == pytest.approx(4.0)
    assert ErrorModel(["a"], errors, Statistic.MEAN).error(Plan()) == pytest.approx(1.0)
    assert ErrorModel(["a"], errors, Statistic.MEDIAN).error(Plan()) == 0


def test_many_layers_without_effect_cost_no_time_to_order():
    layers = [f"n{index}" for index in range(5000)]
    rounding_effects = [weights(name, vector(1e-6)) for name in layers] + [weights("n77", vector(50.0))]
    prediction = ErrorModel(layers, rounding_effects).prediction()
    assert prediction.order[0] == "n77"
    assert len(prediction.order) == 5000
