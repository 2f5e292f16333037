"""The emulator against two other evaluations of the file that it speaks for."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.independent import as_half, run_in_half, run_on_ort, run_with_pairs
from support.models import Case, f32, normal, parsed
from support.subjects import MODELS, Subject, put

from trt_helper.emulator.emulator import Emulator
from trt_helper.emulator.kernels import EmulationError, Kernels, Rounder
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


# ----------------------------------------------------------------------------------------------- kernels

TWINS = {  # layers that differ in one thing only
    "what is read": "y = Cast<to = 1>(x) z = Cast<to = 1>(i)",
    "an attribute": "y = Concat<axis = 0>(x, x) z = Concat<axis = 1>(x, x)",
    "a number of attributes": "y = LeakyRelu<alpha = 0.1>(x) z = LeakyRelu<alpha = 0.1000001>(x)",
    "a tensor": "y = ConstantOfShape<value = float[1] {1}>(i) z = ConstantOfShape<value = float[1] {2}>(i)",
    "what is written": "y, p = MaxPool<kernel_shape = [2]>(q) z = MaxPool<kernel_shape = [2]>(q)",
}


@pytest.mark.parametrize("what", TWINS)
def test_layers_that_differ_in_one_thing_have_kernels_of_their_own(what):
    text = f"g (float[2, 3] x, int64[2] i, float[1, 2, 3] q) => (float[a] y, float[b] z) {{ {TWINS[what]} }}"
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    kernels = Kernels(model)
    assert len({kernels.of(node) for node in model.graph}) == 2


# --------------------------------------------------------------------------- the file and the emulator


@every_model
def test_the_emulator_says_what_the_typed_file_computes(subject, name):
    """Bit for bit, for every plan: same kernels, same roundings."""
    subject = subject(name)
    for why, plan in subject.plans().items():
        assert_same(subject.emulator.run(plan, subject.feed), run_with_pairs(subject.write(plan), subject.feed), why)


@pytest.mark.parametrize("name", sorted(MODELS.keys() - NOT_IN_HALF))
def test_real_half_arithmetic_gives_nearly_the_same_and_infinity_in_the_same_places(subject, name):
    subject = subject(name)
    plan = Plan()
    exact = run_in_half(subject.write(plan), subject.feed)
    for output, found in subject.emulator.run(plan, subject.feed).items():
        if found.dtype.kind != "f":
            np.testing.assert_array_equal(found, exact[output])
            continue
        finite = np.isfinite(found)
        np.testing.assert_array_equal(np.isfinite(exact[output]), finite)
        scale = np.abs(found[finite]).max(initial=0)
        np.testing.assert_allclose(exact[output][finite], found[finite], rtol=0, atol=HALF_SUMS * scale)


@every_model
def test_with_everything_pinned_the_users_own_file_is_matched(subject, name):
    subject = subject(name)
    model = MODELS[name]().model
    for node in model.graph.node:
        node.name = ""  # ONNX Runtime refuses two nodes of one name
    found = run_with_pairs(subject.write(subject.graph.all_pinned()), subject.feed)
    for output, expected in run_on_ort(model, subject.feed).items():
        if name in LAST_BITS:
            np.testing.assert_allclose(found[output], expected, rtol=1e-6, atol=1e-6)
        elif name in HALF_STEP:
            np.testing.assert_allclose(found[output], expected, rtol=HALF_STEP[name], atol=1e-4)
        else:
            np.testing.assert_array_equal(found[output], expected)


@every_model
def test_the_reference_is_the_all_pinned_plan(subject, name):
    """But for outputs that are half for the user: the reference does not round them."""
    subject = subject(name)
    expected = {
        name: as_half(array) if name in subject.graph.half_io else array
        for name, array in subject.emulator.reference(subject.feed).items()
    }
    assert_same(subject.emulator.run(subject.graph.all_pinned(), subject.feed), expected)


# ----------------------------------------------------------------------------------------- random models

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
    subject = put(Case("random", model, {"x": normal(4, 4, seed=1, scale=3)}), tmp_path)
    for _ in range(2):
        plan = Plan.of(data.draw(st.sets(st.sampled_from(subject.graph.candidates or ("",)))) - {""})
        assert_same(subject.emulator.run(plan, subject.feed), run_with_pairs(subject.write(plan), subject.feed))
    control = subject.emulator.run(subject.graph.all_pinned(), subject.feed)
    assert_same(control, run_on_ort(model, subject.feed))


# --------------------------------------------------------------------------------- what FP16 means here


def there_and_back(folder) -> Subject:
    model = parsed(
        """g (float[1] x) => (float[1] y) {
          [up] a = Mul(x, k) [up2] b = Mul(a, k) [down] c = Div(b, k) [down2] y = Div(c, k)
        }""",
        k=f32(300),
    )
    return put(Case("there_and_back", model, {"x": f32(2)}), folder)


def test_an_overflow_between_two_layers_is_seen_by_all_three(tmp_path):
    """2 * 300 * 300 passes 65504. ONNX Runtime on the typed file itself answers 2: it drops the roundings."""
    subject = there_and_back(tmp_path)
    path = subject.write(Plan())
    assert subject.emulator.run(Plan(), subject.feed)["y"] == np.inf
    assert run_with_pairs(path, subject.feed)["y"] == np.inf
    assert run_in_half(path, subject.feed)["y"] == np.inf


def test_the_two_layers_around_the_overflow_cure_it_and_neither_alone_does(tmp_path):
    subject = there_and_back(tmp_path)
    results = {
        pins: float(subject.emulator.run(Plan.of(pins), subject.feed)["y"][0])
        for pins in (("up2", "down"), ("up2",), ("down",))
    }
    assert results == {("up2", "down"): 2.0, ("up2",): np.inf, ("down",): np.inf}


def test_layernorm_is_cured_by_its_overflowing_chain(subject):
    """The variance of some 1.6e5 needs every layer up to the root that brings it back."""
    subject = subject("layernorm_overflow")
    reference = subject.emulator.reference(subject.feed)["y"]
    chain = ("square", "variance", "epsilon", "root")
    assert np.abs(subject.emulator.run(subject.graph.plan(chain), subject.feed)["y"] - reference).max() < 2e-3
    for missing in chain[:-1]:
        plan = subject.graph.plan({*chain} - {missing})
        broken = subject.emulator.run(plan, subject.feed)["y"]
        assert not np.abs(broken - reference).max() < 0.05, missing


def test_a_whole_number_above_2048_loses_its_last_digit_and_another_is_picked(subject):
    subject = subject("top_k")
    half = subject.emulator.run(Plan(), subject.feed)
    pinned = subject.emulator.run(subject.graph.plan(["layer"]), subject.feed)
    assert (pinned["next"].tolist(), half["next"].tolist()) == ([[6]], [[5]])
    assert (pinned["where"].tolist(), half["where"].tolist()) == ([[5, 4]], [[4, 5]])
    assert pinned["whole"].tolist() == [[1, 2049, 2048, 3, 2049, 2050]]
    assert half["whole"].tolist() == [[1, 2048, 2048, 3, 2050, 2050]]


def test_a_half_output_is_rounded_even_when_its_layer_is_pinned(subject):
    subject = subject("all_half")
    found = subject.emulator.run(subject.graph.all_pinned(), subject.feed)["y"]
    np.testing.assert_array_equal(found, found.astype(np.float16).astype(np.float32))


def test_a_run_changes_neither_feed_nor_later_runs(subject):
    subject = subject("gelu_cube")
    before = {name: array.copy() for name, array in subject.feed.items()}
    first = subject.emulator.run(Plan(), subject.feed)
    subject.emulator.run(subject.graph.all_pinned(), subject.feed)
    list(subject.emulator.walk(Plan(), subject.feed))
    assert_same(subject.emulator.run(Plan(), subject.feed), first)
    assert_same(subject.feed, before)


def test_threads_share_one_emulator(subject):
    subject = subject("residual")
    fresh = Emulator(subject.graph)
    plans = list(subject.plans().values()) * 4
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda plan: fresh.run(plan, subject.feed), plans))
    for plan, outputs in zip(plans, found, strict=True):
        assert_same(outputs, subject.emulator.run(plan, subject.feed))


# ---------------------------------------------------------------------------------------------- kernels


def test_a_layer_that_cannot_compute_what_it_is_fed_says_so(subject):
    subject = subject("shared_initializer")
    with pytest.raises(EmulationError, match="cannot compute a layer") as error:
        subject.emulator.run(Plan(), {"x": np.zeros((2, 5), np.float32)})
    assert error.value.exit_status == 3


def test_equal_layers_share_a_kernel_and_others_do_not(subject):
    nodes = subject("unnamed_and_doubly_named").graph.nodes
    shared = subject("shared_initializer").graph
    kernels = Kernels(shared.model)
    assert kernels.of(shared.nodes["one"]) is kernels.of(shared.nodes["two"])
    assert kernels.of(shared.nodes["one"]) is not kernels.of(nodes["twin"])


def halves() -> np.ndarray:
    """All 65536 half-precision numbers as FP32."""
    return np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32)


def around(values: np.ndarray) -> np.ndarray:
    """The values and their neighbours in FP32."""
    down, up = np.float32(-np.inf), np.float32(np.inf)
    with np.errstate(invalid="ignore"):
        return np.concatenate([values, np.nextafter(values, down), np.nextafter(values, up)])


def test_rounding_is_ieee_half_for_every_half_every_tie_and_their_neighbours():
    """Against numpy; signs of zero included, of NaN only that it is one."""
    ordered = np.unique(halves()[np.isfinite(halves())])
    ties = ((ordered[1:].astype(np.float64) + ordered[:-1]) / 2).astype(np.float32)
    given = np.concatenate([around(halves()), around(ties)])
    with np.errstate(over="ignore"):
        expected = given.astype(np.float16).astype(np.float32)
    found = Rounder()(given)
    numbers = ~np.isnan(given)
    np.testing.assert_array_equal(found[numbers].view(np.uint32), expected[numbers].view(np.uint32))
    assert np.isnan(found[~numbers]).all()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (65504.0, 65504.0),
        (65519.996, 65504.0),
        (65520.0, np.inf),
        (-65520.0, -np.inf),
        (2049.0, 2048.0),  # tie to even
        (2051.0, 2052.0),  # tie to even
        (2.0**-24, 2.0**-24),  # smallest subnormal
        (2.0**-25, 0.0),  # tie to even
        (1.0001 * 2.0**-25, 2.0**-24),
        (1e-12, 0.0),  # a typical epsilon
        (-1e9, -np.inf),  # a typical mask
        (np.inf, np.inf),
    ],
)
def test_rounding_of(given, expected):
    assert Rounder()(f32(given)).tolist() == [expected]


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_rounding_twice_is_rounding_once(values):
    rounding = Rounder()
    once = rounding(f32(*values))
    np.testing.assert_array_equal(rounding(once), once)
