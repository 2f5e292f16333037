"""The emulator against two other evaluations of the typed file that it stands for."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.independent import as_half, run_in_half, run_on_ort, run_with_pairs
from support.model_cases import MODELS, ModelCase, save_case
from support.models import Case, f32, normal, parsed
from support.rewritable_models import range_model

from trt_helper.emulator.emulator import Emulator
from trt_helper.onnx_model.typed import render, write
from trt_helper.values import Plan

every_model = pytest.mark.parametrize("name", MODELS)


# Folding and numpy's own sine change the last bits of FP32; everything else is equal bit for bit.
LAST_BITS = {"conv_bn_relu", "gemm_bn_transposed_conv_bn", "made_of_shapes"}


# The user's file runs its halves in FP32 on the CPU, rounded where they leave the model.
HALF_STEP = {"mixed_softmax": 2.0**-10, "all_half": 2.0**-10}


# onnx's own evaluator cannot: a Loop whose body gives a scan output.
NOT_IN_HALF = {"loop_float_state"}


# Sums inside a layer are half there: some 10 terms of 2**-11 each, over at most 9 layers.
HALF_SUMS = 0.01


def assert_same(found, expected, why=""):
    assert list(found) == list(expected), why
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=f"{why}: {name}", strict=True)


# -------------------------------------------------------------------------------------------- the file and the emulator


@every_model
def test_the_emulator_says_what_the_typed_file_computes(model_case, name):
    """Bit for bit, for every plan: same kernels, same roundings."""
    case = model_case(name)
    for why, plan in case.plans().items():
        assert_same(case.one_step.run(plan, case.feed), run_with_pairs(case.write(plan), case.feed), why)


@pytest.mark.parametrize("name", sorted(MODELS.keys() - NOT_IN_HALF))
def test_real_half_arithmetic_gives_nearly_the_same_and_infinity_in_the_same_places(model_case, name):
    case = model_case(name)
    plan = Plan()
    exact = run_in_half(case.write(plan), case.feed)
    for output, found in case.emulator.run(plan, case.feed).items():
        if found.dtype.kind != "f":
            np.testing.assert_array_equal(found, exact[output])
            continue
        finite = np.isfinite(found)
        np.testing.assert_array_equal(np.isfinite(exact[output]), finite)
        scale = np.abs(found[finite]).max(initial=0)
        np.testing.assert_allclose(exact[output][finite], found[finite], rtol=0, atol=HALF_SUMS * scale)


@every_model
def test_with_everything_pinned_the_users_own_file_is_matched(model_case, name):
    case = model_case(name)
    model = MODELS[name]().model
    for node in model.graph.node:
        node.name = ""  # ONNX Runtime refuses two nodes of one name
    found = run_with_pairs(case.write(case.graph.all_pinned()), case.feed)
    for output, expected in run_on_ort(model, case.feed).items():
        if name in LAST_BITS:
            np.testing.assert_allclose(found[output], expected, rtol=1e-6, atol=1e-6)
        elif name in HALF_STEP:
            np.testing.assert_allclose(found[output], expected, rtol=HALF_STEP[name], atol=1e-4)
        else:
            np.testing.assert_array_equal(found[output], expected)


@every_model
def test_the_reference_is_the_all_pinned_plan(model_case, name):
    """But for outputs that are half for the user: the reference does not round them."""
    case = model_case(name)
    expected = {
        name: as_half(array) if case.graph.io_types.get(name) is ir.DataType.FLOAT16 else array
        for name, array in case.emulator.reference(case.feed).items()
    }
    assert_same(case.emulator.run(case.graph.all_pinned(), case.feed), expected)


UNARY = ("Tanh", "Exp", "Neg", "Sigmoid", "Identity", "Transpose", "Softmax", "Abs")


BINARY = ("Add", "Mul", "Sub", "Max", "Concat")


WEIGHTED = ("MatMul", "Gather", "Where")


@st.composite
def random_models(draw) -> onnx.ModelProto:
    """A network of 4x4 tensors: every layer reads earlier ones, any tensor may be an output."""
    known = ["x"]
    lines = []
    for index in range(draw(st.integers(1, 9))):
        op = draw(st.sampled_from(UNARY + BINARY + WEIGHTED))
        a, b = draw(st.sampled_from(known)), draw(st.sampled_from(known))
        out = f"t{index}"
        lines.append(
            {
                "Concat": f"[n{index}c] j{index} = Concat <axis=0> ({a}, {b})\n"
                f"[n{index}] {out} = Slice(j{index}, two, six)",
                "MatMul": f"[n{index}] {out} = MatMul({a}, w)",
                "Gather": f"[n{index}] {out} = Gather({a}, order)",
                "Where": f"[n{index}] {out} = Where(mask, {a}, w)",
            }.get(op, f"[n{index}] {out} = {op}({a}{f', {b}' if op in BINARY else ''})")
        )
        known.append(out)
    outputs = draw(st.lists(st.sampled_from(known[1:]), min_size=1, max_size=3, unique=True))
    results = ", ".join(f"float[4,4] {out}" for out in outputs)
    return parsed(
        f"g (float[4,4] x) => ({results}) {{ {' '.join(lines)} }}",
        w=normal(4, 4, scale=30),
        mask=np.eye(4) > 0,
        order=np.array([2, 0, 3, 3]),
        two=np.array([2]),
        six=np.array([6]),
    )


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(model=random_models(), data=st.data())
def test_any_network_under_any_plan_is_judged_as_its_typed_file(tmp_path, model, data):
    case = save_case(Case("random", model, {"x": normal(4, 4, seed=1, scale=3)}), tmp_path)
    for _ in range(2):
        plan = Plan.of(data.draw(st.sets(st.sampled_from(case.graph.candidates or ("",)))) - {""})
        assert_same(case.one_step.run(plan, case.feed), run_with_pairs(case.write(plan), case.feed))
    control = case.emulator.run(case.graph.all_pinned(), case.feed)
    assert_same(control, run_on_ort(model, case.feed))


# ----------------------------------------------------------------------------------------------------------------- BF16


@pytest.mark.parametrize("bf16", [["up"], ["abs"], ["up", "abs"], ["up", "abs", "down"], ["down", "relu"]])
@pytest.mark.parametrize("fp32", [[], ["relu"], ["abs"]])
def test_bf16_is_emulated_as_the_typed_file_computes_it(tmp_path, bf16, fp32):
    graph = range_model(tmp_path)
    plan = graph.plan(fp32, bf16)
    path = tmp_path / "typed.onnx"
    write(render(graph, plan), path)
    feed = {"x": np.random.default_rng(1).normal(size=(4, 8)).astype(np.float32)}
    np.testing.assert_array_equal(
        next(iter(Emulator(graph).run(plan, feed).values())), *run_with_pairs(path, feed).values()
    )


def test_bf16_holds_the_range_and_eight_bits(tmp_path):
    graph = range_model(tmp_path)
    feed = {"x": np.random.default_rng(1).normal(size=(4, 8)).astype(np.float32)}
    (exact,) = run_on_ort(graph.source.path, feed).values()
    plan = graph.plan([], ["up", "abs", "down"])
    found = next(iter(Emulator(graph).run(plan, feed).values()))
    assert not np.isfinite(next(iter(Emulator(graph).run(Plan(), feed).values()))).all()
    relative = np.abs(found - exact).max() / np.abs(exact).max()
    assert 2.0**-12 < relative < 2.0**-6


# --------------------------------------------------------------------------------------- what FP16 does to known models


def there_and_back(folder) -> ModelCase:
    model = parsed(
        """g (float[1] x) => (float[1] y) {
          [up] a = Mul(x, k) [up2] b = Mul(a, k) [down] c = Div(b, k) [down2] y = Div(c, k)
        }""",
        k=f32(300),
    )
    return save_case(Case("there_and_back", model, {"x": f32(2)}), folder)


def test_an_overflow_between_two_layers_is_seen_by_all_three(tmp_path):
    """2 * 300 * 300 passes 65504. ONNX Runtime on the typed file itself answers 2: it drops the roundings."""
    model_case = there_and_back(tmp_path)
    path = model_case.write(Plan())
    assert model_case.emulator.run(Plan(), model_case.feed)["y"] == np.inf
    assert run_with_pairs(path, model_case.feed)["y"] == np.inf
    assert run_in_half(path, model_case.feed)["y"] == np.inf


def test_pinning_both_layers_around_the_overflow_repairs_it_and_neither_alone_does(tmp_path):
    model_case = there_and_back(tmp_path)
    results = {
        pins: float(model_case.emulator.run(Plan.of(pins), model_case.feed)["y"][0])
        for pins in (("up2", "down"), ("up2",), ("down",))
    }
    assert results == {("up2", "down"): 2.0, ("up2",): np.inf, ("down",): np.inf}


def test_layernorm_is_repaired_by_pinning_its_overflowing_chain(model_case):
    """The variance of some 1.6e5 needs every layer up to the root that brings it back."""
    case = model_case("layernorm_overflow")
    reference = case.emulator.reference(case.feed)["y"]
    chain = ("square", "variance", "epsilon", "root")
    assert np.abs(case.emulator.run(case.graph.plan(chain), case.feed)["y"] - reference).max() < 2e-3
    for missing in chain[:-1]:
        plan = case.graph.plan({*chain} - {missing})
        broken = case.emulator.run(plan, case.feed)["y"]
        assert not np.abs(broken - reference).max() < 0.05, missing


def test_a_whole_number_above_2048_loses_its_last_digit_and_another_is_picked(model_case):
    case = model_case("top_k")
    half = case.emulator.run(Plan(), case.feed)
    pinned = case.emulator.run(case.graph.plan(["layer"]), case.feed)
    assert (pinned["next"].tolist(), half["next"].tolist()) == ([[6]], [[5]])
    assert (pinned["where"].tolist(), half["where"].tolist()) == ([[5, 4]], [[4, 5]])
    assert pinned["whole"].tolist() == [[1, 2049, 2048, 3, 2049, 2050]]
    assert half["whole"].tolist() == [[1, 2048, 2048, 3, 2050, 2050]]


def test_a_half_output_is_rounded_even_when_its_layer_is_pinned(model_case):
    case = model_case("all_half")
    found = case.emulator.run(case.graph.all_pinned(), case.feed)["y"]
    np.testing.assert_array_equal(found, found.astype(np.float16).astype(np.float32))


# ----------------------------------------------------------------------------------------------------------------- runs


def test_a_run_changes_neither_feed_nor_later_runs(model_case):
    case = model_case("gelu_cube")
    before = {name: array.copy() for name, array in case.feed.items()}
    first = case.emulator.run(Plan(), case.feed)
    case.emulator.run(case.graph.all_pinned(), case.feed)
    list(case.emulator.walk(Plan(), case.feed))
    assert_same(case.emulator.run(Plan(), case.feed), first)
    assert_same(case.feed, before)


def test_threads_share_one_emulator(model_case):
    case = model_case("residual")
    fresh = Emulator(case.graph)
    plans = list(case.plans().values()) * 4
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda plan: fresh.run(plan, case.feed), plans))
    for plan, outputs in zip(plans, found, strict=True):
        assert_same(outputs, case.emulator.run(plan, case.feed))
