"""The source of a fused kernel: which of its operations compute in FP32, in FP16, or in FP32 that was rounded."""

from __future__ import annotations

import pytest

from trt_helper.builder.kernel_source import KernelSource


def half(operation, *read):
    return f"__myln_{operation}___myln_half___myln_half({' , '.join(read)})"


def full(operation, *read):
    return f"__myln_{operation}___myln_float___myln_float({' , '.join(read)})"


UP, DOWN = "__myln_cast<__myln_float, __myln_half>({})", "__myln_cast<__myln_half, __myln_float>({})"


LOAD_HALF, LOAD_FULL = "((__myln_half*)__v90)[(0 + ({}))]", "((__myln_float*)__v91)[(0 + ({}))]"


def source(*statements, kept=""):
    """A kernel whose value __v1, __v2, ... are these, and which stores or returns `kept`."""
    lines = [f"  __v{number} = {text};" for number, text in enumerate(statements, 1)]
    return "{\n" + "\n".join([*lines, kept]) + "\n}"


def test_an_operation_counts_in_the_type_that_its_call_spells():
    text = source(LOAD_HALF.format("__v5"), half("mul", "__v1", "__v1"), UP.format("__v2"), full("exp", "__v3"))
    assert KernelSource(f"{text} ((__myln_float*)__v9)[0] = __v4;").count() == {("mul", "FP16"): 1, ("exp", "FP32"): 1}


def test_a_choice_and_a_comparison_count_in_the_type_of_their_values_and_not_of_the_condition():
    """As TensorRT-RTX 1.4.0 and 1.7.1 spell `Where` and `Greater`: result, then what is read."""
    text = source(
        LOAD_HALF.format("0"),
        LOAD_FULL.format("0"),
        "__myln_gtr___myln_bool___myln_half(__v1 , __v1)",
        "__myln_gtr___myln_bool___myln_float(__v2 , __v2)",
        "__myln_select___myln_half___myln_bool(__v3 , __v1 , __v1)",
        "__myln_select___myln_float___myln_bool(__v4 , __v2 , __v2)",
        kept="return __v6;",
    )
    assert KernelSource(text).count() == {
        ("gtr", "FP16"): 1,
        ("gtr", "FP32"): 1,
        ("select", "FP16"): 1,
        ("select", "FP32"): 1,
    }


def test_fp32_that_is_copied_on_its_way_is_followed():
    steps = [LOAD_FULL.format("0"), "__v1", "__v2", full("exp", "__v3"), "__v4", "__v5", DOWN.format("__v6")]
    assert KernelSource(source(*steps)).count() == {("exp", "FP32"): 1}
    steps[0] = LOAD_HALF.format("0")
    steps[1] = UP.format("__v1")
    assert KernelSource(source(*steps)).count() == {("exp", "ROUNDED"): 1}
    assert KernelSource(source(*steps[:6], full("log", "__v6"), DOWN.format("__v7"))).count()["exp", "FP32"] == 1


def test_fp32_between_two_roundings_is_told_from_fp32_that_is_kept():
    lines = [LOAD_HALF.format("0"), UP.format("__v1"), full("exp", "__v2"), DOWN.format("__v3")]
    assert KernelSource(source(*lines)).count() == {("exp", "ROUNDED"): 1}
    assert KernelSource(source(*lines, kept="return __v3;")).count() == {("exp", "FP32"): 1}
    assert KernelSource(source(*lines[:3], full("log", "__v3"), DOWN.format("__v4"))).count() == {
        ("exp", "FP32"): 1,
        ("log", "FP32"): 1,
    }


def test_numbers_and_scalar_arguments_do_not_make_a_rounded_operation_fp32():
    lines = [LOAD_HALF.format("0"), UP.format("__v1")]
    for number in ("0x1.4f8b58p-17f", "-0x1p+3f", "(1.500000000e+00)", "*(__myln_float*)live_inouts[4]"):
        text = source(*lines, number, full("mul", "__v2", "__v3"), DOWN.format("__v4"))
        assert KernelSource(text).count() == {("mul", "ROUNDED"): 1}, number


def test_an_fp32_tensor_that_is_read_makes_it_fp32():
    text = source(LOAD_HALF.format("0"), UP.format("__v1"), LOAD_FULL.format("0"), full("mul", "__v2", "__v3"))
    assert KernelSource(f"{text} __v9 = {DOWN.format('__v4')};").count() == {("mul", "FP32"): 1}


def test_what_a_later_phase_computes_again_counts_once():
    again = source(LOAD_HALF.format("__v70"), half("exp", "__v1"), LOAD_HALF.format("__v71"), half("exp", "__v3"))
    assert KernelSource(again).count() == {("exp", "FP16"): 1}
    other = again.replace("__v90)[(0 + (__v71", "__v92)[(0 + (__v71")  # another tensor
    assert KernelSource(other).count() == {("exp", "FP16"): 2}


def test_scalar_arguments_are_different_values():
    text = source(
        "*(__myln_half*)live_inouts[4]",
        "*(__myln_half*)live_inouts[5]",
        LOAD_HALF.format("0"),
        half("mul", "__v3", "__v1"),
        half("mul", "__v3", "__v2"),
    )
    assert KernelSource(text).count() == {("mul", "FP16"): 2}


def test_the_lanes_of_a_vector_are_one_value():
    text = (
        "{ __v1 = ((__myln_vtype<__myln_half,2,4>*)__v90)[(0)];\n"
        f"__v2.values[0] = {half('exp', '__v1.values[0]')};\n__v2.values[1] = {half('exp', '__v1.values[1]')};\n}}"
    )
    assert KernelSource(text).count() == {("exp", "FP16"): 1}


@pytest.mark.parametrize("one", ["0x1p+0f", "(1.000000000e+00)"])  # 1.7 and 1.4
def test_a_quotient_that_is_made_as_a_product_is_as_rounded_as_what_it_reads(one):
    lines = [LOAD_HALF.format("0"), UP.format("__v1"), one, full("div", "__v3", "__v2"), full("mul", "__v2", "__v4")]
    assert KernelSource(source(*lines, DOWN.format("__v5"))).count()["mul", "ROUNDED"] == 1
    lines[1] = LOAD_FULL.format("0")
    assert KernelSource(source(*lines, DOWN.format("__v5"))).count()["mul", "FP32"] == 1
