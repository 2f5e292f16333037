"""The cause of each layer's harm, on models whose first wrong number is known by reasoning about FP16's format.

FP16 ends at 65504. It makes 0 of what is below 2^-25 (3e-8), and represents whole numbers only up to 2048.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from support.model_cases import save_case
from support.models import Case, f32, i64, normal, parsed

from trt_helper.emulator.causes import cause
from trt_helper.emulator.layer_errors import measure_layers
from trt_helper.values import Plan, Tolerance


@pytest.fixture
def causes(tmp_path):
    return partial(measured, tmp_path)


def measured(folder, text, feeds, *, opset=17, **weights):
    """Cause and sentence of each layer by name; `feeds` is one feed or several."""
    feeds = [feeds] if isinstance(feeds, dict) else feeds
    case = save_case(Case("model", parsed(text, opset=opset, **weights), feeds[0]), folder)
    reports = measure_layers(case.emulator, Plan(), feeds, Tolerance())
    return {report.layer.name: cause(report) for report in reports}


ROWS = np.array([[0.0, 0.0, 0.0, 0.0], [0.5, 1.0, -1.0, 2.0]], np.float32)

NORMALIZE = """g (float[2,4] x) => (float[2,4] y) {
    [l2] n = ReduceL2<axes=[1], keepdims=1>(x)
    [bound] c = Clip(n, tiny)
    [div] y = Div(x, c)
}"""


def test_zero_over_zero_is_a_division_and_the_bound_that_vanished_an_epsilon(causes):
    found = causes(NORMALIZE, {"x": ROWS}, tiny=np.float32(1e-12))
    assert found["div"] == ("division", "divides by 1e-12, in FP16 0: 0 becomes NaN")
    assert found["bound"] == ("epsilon", "the constant 1e-12 becomes 0 in FP16, and div divides by it")


def test_a_bound_that_fp16_holds_is_no_epsilon_that_is_lost(causes):
    """1e-3 is a normal FP16 number: the norm of the row of zeros becomes it, and 0/1e-3 is 0."""
    found = causes(NORMALIZE, {"x": ROWS}, tiny=np.float32(1e-3))
    assert {found[name][0] for name in ("div", "bound")} <= {"rounding", ""}


def test_an_epsilon_below_a_value_that_is_never_small_is_not_blamed(causes):
    found = causes(NORMALIZE, {"x": ROWS + 3}, tiny=np.float32(1e-12))
    assert {found[name][0] for name in ("div", "bound")} <= {"rounding", ""}


def test_an_epsilon_that_is_added_is_lost_where_the_variance_is_zero(causes):
    """sqrt(0 + 1e-12) is 1e-6 in FP32. In FP16 the sum is 0, and 1/sqrt(0) infinite."""
    text = """g (float[2,1] v, float[2,4] x) => (float[2,4] y) {
        [add] a = Add(v, eps)
        [root] s = Sqrt(a)
        [inverse] r = Reciprocal(s)
        [scale] y = Mul(x, r)
    }"""
    found = causes(text, {"v": f32(0, 1).reshape(2, 1), "x": ROWS}, eps=f32(1e-12))
    assert found["add"] == ("epsilon", "the constant 1e-12 becomes 0 in FP16, and inverse divides by it")
    assert found["root"] == ("underflow", "1e-12 becomes 0, so 1e-06 does, and inverse divides by it")
    assert found["inverse"][0] == "overflow"  # 1e6 itself is beyond 65504


def test_what_is_small_beside_the_epsilon_added_to_it_does_not_underflow(causes):
    """1e-9 becomes 0, but 1e-3 is added before anything is divided: the sum is right to six digits."""
    text = """g (float[3] x, float[3] v) => (float[3] y) {
        [scale] s = Mul(v, factor)
        [add] a = Add(s, eps)
        [root] r = Sqrt(a)
        [div] y = Div(x, r)
    }"""
    feed = {"x": f32(1, 1, 1), "v": f32(1e-3, 1e3, 700)}
    assert causes(text, feed, factor=f32(1e-6), eps=f32(1e-3))["scale"][0] == "rounding"
    found = causes(text, feed, factor=f32(1e-6), eps=f32(1e-9))
    assert found["scale"] == ("underflow", "1e-09 becomes 0, and div divides by it")


def test_one_over_the_root_of_what_underflowed_is_a_division(causes):
    """1e-9 is 0 in FP16, 1e-9^-0.5 is 31623 in FP32 and infinite in FP16."""
    text = "g (float[2] v) => (float[2] y) { [power] y = Pow(v, e) }"
    found = causes(text, {"v": f32(1e-9, 1)}, e=np.float32(-0.5))
    assert found["power"] == ("division", "divides by 1e-09, in FP16 0: 3.16e+04 becomes inf")


def test_a_division_by_what_keeps_few_bits_is_named_too(causes):
    """9e-8 lies between FP16's two smallest numbers, 6e-8 and 12e-8."""
    text = "g (float[1] x, float[1] d) => (float[1] y) { [div] y = Div(x, d) }"
    found = causes(text, {"x": f32(1e-4), "d": f32(9.5e-8)})
    assert found["div"][0] == "division"
    assert found["div"][1].startswith("divides by 9.5e-08, in FP16 1.19e-07")


def test_the_logarithm_of_what_underflows_is_a_logarithm(causes):
    """ln(1e-9) is -20.7; FP16 makes 0 of 1e-9."""
    found = causes("g (float[2] x) => (float[2] y) { [log] y = Log(x) }", {"x": f32(1e-9, 0.5)})
    assert found["log"] == ("logarithm", "the logarithm of 1e-09, in FP16 0: -20.7 becomes -inf")


def test_a_value_that_a_logarithm_reads_underflows(causes):
    text = """g (float[2] x) => (float[2] y) {
        [exp] e = Exp(x)
        [log] y = Log(e)
    }"""
    found = causes(text, {"x": f32(-20, 1)})
    assert found["exp"] == ("underflow", "2.06e-09 becomes 0, and log takes its logarithm")
    assert found["log"][0] == "logarithm"


def test_a_log_softmax_underflows_inside(causes):
    """The smallest result is -60: exp(-60) is 1e-26, of which FP16 makes 0, though 60 is no large number."""
    found = causes("g (float[1,3] x) => (float[1,3] y) { [ls] y = LogSoftmax<axis=1>(x) }", {"x": f32(0, 60, 1)[None]})
    assert found["ls"] == ("logarithm", "exp(-60) is 0 in FP16, and its logarithm -inf")


VARIANCE = """g (float[4,64] x) => (float[4,64] y) {
    [square] xx = Mul(x, x)
    [mean_of_squares] q = ReduceMean<axes=[1], keepdims=1>(xx)
    [mean] m = ReduceMean<axes=[1], keepdims=1>(x)
    [square_of_mean] mm = Mul(m, m)
    [subtract] v = Sub(q, mm)
    [bound] b = Relu(v)
    [root] s = Sqrt(b)
    [product] p = MatMul(x, w)
    [div] y = Div(p, s)
}"""


def test_what_cancels_and_the_layers_whose_rounding_it_amplifies_are_a_cancellation(causes):
    """Around 10 the squares are 100, where FP16's steps are 1/16; a deviation of 0.1 has a variance of 0.01."""
    x = 10 + normal(4, 64, scale=0.1)
    found = causes(VARIANCE, {"x": x}, w=normal(64, 64))
    for name in ("square", "mean_of_squares", "mean", "square_of_mean", "subtract"):
        assert found[name][0] == "cancellation", name
    for name in ("square", "mean_of_squares", "mean", "square_of_mean"):
        assert found[name][1].endswith("; subtract cancels the leading digits")
    assert found["product"][0] == "rounding"


def test_rows_that_cancel_are_found_among_rows_that_do_not(causes):
    """The other rows have a variance of 100 around 0; only the first one is 10 and nearly constant."""
    x = normal(4, 64, scale=10)
    x[0] = 10 + normal(64, scale=0.05)
    found = causes(VARIANCE, {"x": x}, w=normal(64, 64))
    assert found["subtract"][0] == "cancellation"
    assert found["square"][1].endswith("; subtract cancels the leading digits")


def test_a_sum_that_is_as_large_as_its_operands_is_rounding(causes):
    """Also where single elements cancel: nothing divides by them."""
    text = "g (float[64,64] a, float[64,64] b) => (float[64,64] y) { [add] y = Add(a, b) }"
    found = causes(text, {"a": normal(64, 64), "b": normal(64, 64, seed=1)})
    assert found["add"][0] == "rounding"


def test_what_a_subtraction_leaves_as_zero_is_a_cancellation_and_no_underflow(causes):
    """4000.5 is 4000 in FP16, whose numbers near 0.5 are fine."""
    found = causes("g (float[2] x) => (float[2] y) { [offset] y = Sub(x, c) }", {"x": f32(4000.5, 3999.5)}, c=f32(4000))
    assert found["offset"] == ("cancellation", "reads up to 4e+03, leaves up to 0.5")


def test_one_minus_a_sigmoid_cancels_before_its_logarithm_is_taken(causes):
    """sigmoid(10) is 1 - 4.5e-5; in FP16 it is 1, so that 0 is left."""
    text = """g (float[2] x) => (float[2] y) {
        [sigmoid] s = Sigmoid(x)
        [rest] r = Sub(one, s)
        [log] y = Log(r)
    }"""
    found = causes(text, {"x": f32(10, 0)}, one=np.float32(1))
    assert found["rest"] == ("cancellation", "of 1 it leaves 4.54e-05, in FP16 0")
    assert found["sigmoid"][0] == "cancellation"
    assert found["sigmoid"][1].endswith("; rest cancels the leading digits")


def test_a_coordinate_beyond_2048_loses_its_fraction(causes):
    """4001.7 rounds to 4002, whose floor is another one."""
    found = causes("g (float[2] x) => (float[2] y) { [floor] y = Floor(x) }", {"x": f32(4001.7, 1)})
    assert found["floor"] == ("coordinate", "reads positions or phases up to 4e+03, only whole numbers beyond 2048")


def test_integers_beyond_2048_are_named_where_they_become_floats(causes):
    text = "g (int64[4] i, float[4] x) => (float[4] y) { [cast] f = Cast<to=1>(i) [add] y = Mul(f, x) }"
    found = causes(text, {"i": i64(1, 2, 2048, 2049), "x": f32(1, 1, 1, 0.5)})
    assert found["cast"] == ("integer", "2049 becomes 2048: FP16 has every whole number only up to 2048")
    assert causes(text, {"i": i64(1, 2, 2047, 2048), "x": f32(1, 1, 1, 0.5)})["cast"] == ("", "")


@pytest.mark.parametrize("op", ["Add", "Mul"])
def test_whole_numbers_beyond_2048_that_a_layer_computes_are_integers(causes, op):
    """4001 lies between 4000 and 4002, as does 1.0 * 4001."""
    other = {"Add": 4000.0, "Mul": 4001.0}[op]
    found = causes(f"g (float[2] x) => (float[2] y) {{ [op] y = {op}(x, c) }}", {"x": f32(1, 0)}, c=np.float32(other))
    assert found["op"] == ("integer", "4001 becomes 4000: FP16 has every whole number only up to 2048")


def test_large_numbers_with_fractions_are_no_integers(causes):
    text = "g (float[3] x) => (float[3] y) { [add] y = Add(x, c) }"
    assert causes(text, {"x": f32(1, 0, 0.3)}, c=np.float32(4000))["add"][0] == "rounding"


def test_the_phases_of_positions_are_a_coordinate_with_the_layer_that_reads_them(causes):
    """1000 * 0.9 and the like: FP16's steps are 1/2 there, and half a radian changes a sine."""
    text = """g (float[8,1] p) => (float[8,4] y) {
        [phase] a = MatMul(p, f)
        [turn] t = Transpose<perm=[1,0]>(a)
        [sin] s = Sin(t)
        [cos] c = Cos(t)
        [sum] z = Add(s, c)
        [back] y = Transpose<perm=[1,0]>(z)
    }"""
    positions = np.linspace(1000, 1900, 8, dtype=np.float32)[:, None].round()
    found = causes(text, {"p": positions}, f=f32(0.93, 0.31, 0.17, 0.011)[None])
    assert found["phase"][0] == "coordinate"
    assert found["phase"][1].endswith(("for sin", "for cos"))
    assert (found["sin"][0], found["cos"][0], found["sum"][0]) == ("coordinate", "coordinate", "rounding")


@pytest.mark.parametrize("value", [-1e9, -3.4e38])
def test_a_mask_is_infinite_and_a_row_that_it_hides_is_nan(causes, value):
    """In FP32 a row of masks is a uniform softmax; in FP16 -inf - -inf is NaN."""
    text = """g (float[2,4] x, bool[2,4] hide) => (float[2,4] y) {
        [where] m = Where(hide, mask, x)
        [softmax] y = Softmax<axis=1>(m)
    }"""
    hide = np.array([[True] * 4, [True, False, False, False]])
    found = causes(text, {"x": ROWS, "hide": hide}, mask=np.float32(value))
    assert found["where"] == ("mask", f"the mask value {value:.3g} becomes -inf")
    assert found["softmax"] == ("mask", f"the mask value {value:.3g} becomes -inf, which makes 0.25 NaN")


@pytest.mark.parametrize("value", [-1e9, -3.4e38])
def test_a_mask_times_zero_is_nan(causes, value):
    """What is not hidden is 0 times the mask: 0 in FP32, NaN with -inf."""
    text = """g (float[2,4] keep, float[2,4] x) => (float[2,4] y) {
        [hide] h = Sub(one, keep)
        [times] m = Mul(h, mask)
        [add] y = Add(x, m)
    }"""
    found = causes(text, {"keep": np.ones((2, 4), np.float32), "x": ROWS}, one=np.float32(1), mask=np.float32(value))
    assert found["times"][0] == "mask"
    assert found["times"][1].startswith(f"the mask value {value:.3g} becomes -inf, which makes")
    assert found["add"][0] in ("", "rounding")


def test_a_bound_beyond_fp16_is_no_mask(causes):
    text = "g (float[2] x) => (float[2] y) { [bound] y = Clip(x, low) }"
    assert causes(text, {"x": f32(1, -3)}, low=np.float32(-1e6))["bound"][0] == "constant"
    assert causes(text, {"x": f32(1, -9e5)}, low=np.float32(-1e6))["bound"][0] == "overflow"


def test_a_large_negative_factor_is_no_mask(causes):
    text = "g (float[2] x) => (float[2] y) { [scale] y = Mul(x, c) }"
    assert causes(text, {"x": f32(1e-3, 2e-3)}, c=np.float32(-1e6))["scale"][0] == "constant"


def test_large_numbers_that_no_constant_put_there_are_an_overflow(causes):
    text = "g (float[2,4] x) => (float[2,4] y) { [softmax] y = Softmax<axis=1>(x) }"
    assert causes(text, {"x": np.full((2, 4), -1e9, np.float32)})["softmax"][0] == "overflow"


def test_a_finite_result_beyond_65504_is_an_overflow(causes):
    text = "g (float[2] x) => (float[2] y) { [square] y = Mul(x, x) }"
    assert causes(text, {"x": f32(300, 2)})["square"] == ("overflow", "values up to 9e+04, FP16 ends at 65504")


def test_a_divisor_beyond_65504_is_an_overflow_though_the_result_is_finite(causes):
    text = "g (float[2] x, float[2] d) => (float[2] y) { [div] y = Div(x, d) }"
    assert causes(text, {"x": f32(30000, 2), "d": f32(70000, 1)})["div"][0] == "overflow"


def test_a_step_inside_of_a_kernel_that_overflows_is_said_to_be_inside(causes):
    """GELU is x * (1 + erf) / 2: for 40000 the product is 80000, the result 40000 again."""
    found = causes("g (float[2] x) => (float[2] y) { [gelu] y = Gelu(x) }", {"x": f32(40000, 1)}, opset=20)
    assert found["gelu"] == ("overflow", "a step inside passes 65504, where values reach 4e+04")


def test_a_positive_constant_beyond_65504_is_a_constant(causes):
    text = "g (float[2] x) => (float[2] y) { [scale] y = Mul(x, c) }"
    assert causes(text, {"x": f32(1e-3, 0)}, c=np.float32(1e6))["scale"] == ("constant", "1 of its weights pass 65504")


def test_squares_that_become_zero_are_an_underflow(causes):
    found = causes("g (float[2] x) => (float[2] y) { [square] y = Mul(x, x) }", {"x": f32(1e-5, 1e-6)})
    assert found["square"][0] == "underflow"


def test_plain_rounding_is_rounding(causes):
    found = causes(
        "g (float[4,8] x) => (float[4,8] y) { [product] y = MatMul(x, w) }", {"x": normal(4, 8)}, w=normal(8, 8)
    )
    assert found["product"][0] == "rounding"


def test_the_worst_sample_names_the_cause(causes):
    """Only the second sample has a row of zeros."""
    found = causes(NORMALIZE, [{"x": ROWS + 3}, {"x": ROWS}, {"x": ROWS - 4}], tiny=np.float32(1e-12))
    assert found["div"][0] == "division"
    assert found["bound"][0] == "epsilon"
