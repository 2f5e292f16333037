"""Rounding effects: first order says what injecting each rounding measures, and the price does not grow with layers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from support.overflowing_models import overflowing_norm
from support.zoo import Net

from trt_helper.emulator.emulator import Emulator
from trt_helper.onnx_model.graph import read_graph
from trt_helper.onnx_model.load import load
from trt_helper.search import tuning
from trt_helper.search.probe import Probe
from trt_helper.search.rounded_values import rounded_values
from trt_helper.search.rounding_effects import rounding_effects
from trt_helper.values import Plan, Tolerance

TOLERANCE = Tolerance(atol=1.0, rtol=0.0)


def probe_of(emulator, feed, tolerance=TOLERANCE, watched=tuning.WATCHED):
    return Probe(emulator, feed, emulator.run(Plan(), feed), tolerance, watched)


def saved(tmp_path, net, outputs, shape):
    path = tmp_path / "model.onnx"
    onnx.save(net.model("model", outputs, shape), path)
    return Emulator(read_graph(load(path)))


def test_errors_of_opposite_sign_that_do_not_cancel_are_left_alone(tmp_path):
    """2049 becomes 2048 and 4102 becomes 4104: on one number any two errors are parallel, but -1 and 2 leave 1."""
    net = Net(3)
    x = net.input("x", [1])
    y = net("Add", net("Mul", x, 2049.0, name="a"), net("Mul", x, 4102.0, name="b"), name="y")
    emulator = saved(tmp_path, net, [y], [1])
    found = rounding_effects(emulator, probe_of(emulator, {"x": np.ones(1, np.float32)}), 40)
    effects = {rounding.value: float(rounding.for_all_consumers[0]) for rounding in found}
    assert effects["a", "a"] == effects["", "a"] == -1
    assert effects["b", "b"] == effects["", "b"] == 2


@pytest.mark.parametrize(
    ("name", "part"),
    [("gelu_cube", 0.1), *((name, 0.02) for name in ("shared_initializer", "movement_between", "residual", "gru"))],
)
def test_effects_are_those_of_injecting_each_rounding(model_case, name, part):
    """To 2 % of the largest effect, for all consumers and for each; to 10 % where a cube makes it far from linear."""
    case = model_case(name)
    probe = probe_of(case.emulator, case.feed, Tolerance(1e-3, 0.0))
    found = {rounding.value: rounding for rounding in rounding_effects(case.emulator, probe, 40)}
    values = rounded_values(case.emulator)
    assert [value.name for value in values] == list(found)
    exact = {value.name: probe.errors(value.places)[:-1] for value in values}
    room = part * max(np.abs(errors).max() for errors in exact.values()) + 1e-9
    for value in values:
        rounding = found[value.name]
        np.testing.assert_allclose(rounding.for_all_consumers[:-1], exact[value.name], atol=room, rtol=0)
        for consumer, alone in zip(value.consumers, rounding.per_consumer, strict=len(rounding.per_consumer) > 0):
            expected = probe.errors([(value.tensor, consumer)])[:-1]
            np.testing.assert_allclose(alone[:-1], expected, atol=room, rtol=0)


def test_what_no_gradient_shows_is_measured(tmp_path):
    """A comparison far behind a rounding flips: 2049 becomes 2048, and the output goes from 1 to 0."""
    net = Net(0)
    x = net.input("x", [1])
    half = net("Mul", net("Add", x, 1.0, name="add"), 0.5, name="half")
    chosen = net("Where", net("Greater", half, 1024.25, name="compare"), 1.0, 0.0, name="choose")
    emulator = saved(tmp_path, net, [chosen], [1])
    probe = probe_of(emulator, {"x": np.full(1, 2048.0, np.float32)}, Tolerance(0.1, 0.0))
    effects = {rounding.value: rounding.for_all_consumers for rounding in rounding_effects(emulator, probe, 40)}
    assert effects["add", "add"] == pytest.approx([-10, 10])
    assert effects["x", ""] == pytest.approx([0, 0])


def test_an_overflow_that_a_tanh_absorbs_is_harmless(tmp_path):
    net = Net(0)
    x = net.input("x", [4])
    y = net("Tanh", net("Mul", x, 1e5, name="large"), name="y")
    emulator = saved(tmp_path, net, [y], [4])
    probe = probe_of(emulator, {"x": np.full(4, 2.0, np.float32)}, Tolerance(1e-3, 0.0))
    effects = {rounding.value: rounding.for_all_consumers for rounding in rounding_effects(emulator, probe, 40)}
    assert float(np.abs(effects["large", "large"]).max()) == 0


def test_passes_do_not_grow_with_layers(tmp_path):
    """Six products or sixty: the culprit is found, and a forward pass per layer would be some 60 more."""
    passes = {}
    for depth in (6, 60):
        path = tmp_path / f"{depth}.onnx"
        overflowing_norm(path, width=16, depth=depth)
        emulator = Emulator(read_graph(load(path)))
        feed = {"x": np.random.default_rng(1).standard_normal((64, 16)).astype(np.float32)}
        probe = probe_of(emulator, feed, Tolerance(0.05, 0.0))
        found = rounding_effects(emulator, probe, tuning.MOST_PASSES)
        worst = max(found, key=lambda rounding: float(np.abs(rounding.for_all_consumers).max()))
        assert worst.value[1] in {"square", "mean"}
        passes[depth] = probe.passes
    assert passes[60] <= passes[6] + 8
    assert max(passes.values()) <= tuning.MOST_PASSES_OF_A_SEARCH


def test_figures_stand_for_the_worst_elements_of_every_output(tmp_path):
    net = Net(0)
    x = net.input("x", [1000])
    outputs = [net("Mul", x, float(factor), name=f"by{factor}") for factor in (1, 10, 100)]
    emulator = saved(tmp_path, net, outputs, [1000])
    feed = {"x": np.random.default_rng(0).standard_normal(1000).astype(np.float32)}
    probe = probe_of(emulator, feed)
    assert probe.size == tuning.WATCHED
    seeds = probe.seeds()
    assert set(seeds) == set(outputs)
    largest = probe.errors_of(emulator.run(Plan(), feed))[-1]
    alone = [seed for seed in seeds["by100"] if np.count_nonzero(seed) == 1]
    assert alone
    worst = np.abs(emulator.run(Plan(), feed)["by100"] - probe.reference["by100"])
    assert largest == pytest.approx(float(worst.max()))
    assert {int(np.flatnonzero(seed)[0]) for seed in alone} <= set(np.argsort(-worst)[: 2 * tuning.WATCHED].tolist())


@pytest.mark.parametrize("op", ["Exp", "Sqrt", "Relu", "Softmax", "ReduceMax", "ReduceMean", "Reshape"])
def test_scalars_are_tensors_too(tmp_path, op):
    """0.1001 is 0.10010 in FP16; what comes of that, against the function itself."""
    net = Net(0)
    x = net.input("x", [] if op in ("Exp", "Sqrt", "Relu") else [1])
    read = [x, [1, 1]] if op == "Reshape" else [x]
    y = net("Mul", net(op, *read, name="op"), 3.0, name="y")
    emulator = saved(tmp_path, net, [y], None)
    feed = {"x": np.full([] if op in ("Exp", "Sqrt", "Relu") else [1], 0.1001, np.float32)}
    probe = probe_of(emulator, feed, Tolerance(1e-6, 0.0))
    effects = {rounding.value: rounding.for_all_consumers[0] for rounding in rounding_effects(emulator, probe, 40)}
    change = float(np.float16(0.1001)) - float(np.float32(0.1001))
    slope = {"Exp": np.exp(0.1001), "Sqrt": 0.5 / np.sqrt(0.1001), "Softmax": 0.0}.get(op, 1.0)
    assert effects["x", ""] == pytest.approx(3 * slope * change / 1e-6, rel=0.02, abs=0.2)


def test_a_plan_that_cannot_be_computed_is_looked_at_all_the_same(model_case):
    case = model_case("residual")
    probe = Probe(case.emulator, case.feed, {}, TOLERANCE, 4)
    assert probe.size == 4
    assert len(rounding_effects(case.emulator, probe, 40)) == len(rounded_values(case.emulator))


def test_passes_are_bounded_however_much_is_not_explained(tmp_path):
    """Sixty comparisons that flip: each would be measured alone, if there were passes for it."""
    net = Net(0)
    x = net.input("x", [1])
    outputs = []
    for index in range(60):
        half = net("Mul", net("Add", x, 1.0 + 2 * index, name=f"add{index}"), 0.5, name=f"half{index}")
        above = net("Greater", half, 1024.25 + index, name=f"compare{index}")
        outputs.append(net("Where", above, 1.0, 0.0, name=f"choose{index}"))
    emulator = saved(tmp_path, net, outputs, [1])
    feed = {"x": np.full(1, 2048.0, np.float32)}
    probe = probe_of(emulator, feed, Tolerance(0.1, 0.0))
    found = rounding_effects(emulator, probe, 10)
    effects = {effect.value: float(np.abs(effect.for_all_consumers).max()) for effect in found}
    assert probe.passes <= 10 + 2 + probe.size, "first order takes one pass for each figure at most"
    assert sum(error > 0 for error in effects.values()) >= 60, "none is called harmless"
    suspect = "add2", "add2"  # 2053 becomes 2052, and 1 becomes 0
    for suspects, expected in (([], pytest.approx(0, abs=5)), ([suspect], pytest.approx(10))):
        probe = probe_of(emulator, feed, Tolerance(0.1, 0.0))
        found = rounding_effects(emulator, probe, 0, suspects)
        (error,) = (effect.for_all_consumers for effect in found if effect.value == suspect)
        assert float(np.abs(error).max()) == expected, "a share of a group's error, or measured by itself"


def test_a_large_error_of_a_group_is_not_given_to_a_member_that_does_nothing(tmp_path):
    """exp is far from linear: the error is that of `steep`, also where no pass is left to measure it alone."""
    net = Net(0)
    x = net.input("x", [1])
    z = net.input("z", [1])
    steep = net("Exp", net("Mul", net("Sub", x, 0.1, name="sub"), 1e5, name="times"), name="steep")
    flat = net("Mul", z, 1e-3, name="flat")
    emulator = saved(tmp_path, net, [net("Add", steep, flat, name="y")], [1])
    feed = {"x": np.full(1, 0.1001, np.float32), "z": np.full(1, 0.1001, np.float32)}
    probe = probe_of(emulator, feed, Tolerance(1e-2, 0.0))
    effects = {rounding.value: rounding.for_all_consumers for rounding in rounding_effects(emulator, probe, 0)}
    assert float(np.abs(effects["x", ""]).max()) > 1e3
    assert float(np.abs(effects["z", ""]).max()) < 1e-2 * float(np.abs(effects["x", ""]).max())


def test_equal_errors_of_many_elements_do_not_add_up(tmp_path):
    """2051 becomes 2052 everywhere: the largest error is 1, and the figures of many elements are of that size."""
    net = Net(0)
    emulator = saved(tmp_path, net, [net("Mul", net.input("x", [1000]), 1.0, name="y")], [1000])
    feed = {"x": np.full(1000, 2051.0, np.float32)}
    probe = probe_of(emulator, feed)
    (value,) = (value for value in rounded_values(emulator) if value.tensor == "x")
    figures = probe.errors(value.places)[:-1]
    assert len(figures) == tuning.WATCHED
    assert 0.3 < np.sqrt(np.mean(figures**2)) < 2.5
