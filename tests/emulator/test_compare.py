"""The figures of a comparison, against figures by hand and Polygraphy's."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from support.models import f32, i64

from trt_helper.emulator.compare import compare, compare_all, median, worst
from trt_helper.values import Statistic, TensorError, Tolerance

LOOSE = Tolerance(atol=1e-3, rtol=1e-3)
NAN, INF = np.nan, np.inf


def error(found, reference, tolerance=LOOSE) -> TensorError:
    return compare("y", np.asarray(found), np.asarray(reference), tolerance)


def figures(e: TensorError) -> tuple[float, ...]:
    return (e.max, e.mean, e.median, e.max_rel, e.mean_rel, e.median_rel)


# ---------------------------------------------------------------------------------------------- by hand


def test_figures_of_four_numbers():
    """Differences 0, 1, 2, 5 on references 1, 2, 4, 20."""
    e = error(f32(1, 3, 2, 25).reshape(2, 2), f32(1, 2, 4, 20).reshape(2, 2))
    assert figures(e) == (5, 2, 1.5, 0.5, (0 + 0.5 + 0.5 + 0.25) / 4, 0.375)
    assert (e.worst, e.outside, e.non_finite, e.total, e.reference_max) == ((1, 1), 3, 0, 4, 20)


def test_equal_tensors_have_no_error():
    e = error(f32(1, -2, 0), f32(1, -2, 0))
    assert figures(e) == (0,) * 6
    assert e.passes(Tolerance(atol=0, rtol=0))
    assert e.error_ratio(Tolerance(atol=0, rtol=0)) == 0


def test_a_reference_of_zero_makes_the_relative_error_huge_and_only_where_there_is_a_difference():
    e = error(f32(0, 1e-4), f32(0, 0))
    assert e.max == pytest.approx(1e-4)
    assert e.max_rel == pytest.approx(1e-4 / 2.0**-52, rel=1e-6)
    assert e.mean_rel == pytest.approx(e.max_rel / 2)
    assert e.outside == 0  # within atol
    assert e.passes(LOOSE)


def test_a_tiny_reference_is_no_zero():
    assert error(f32(3e-30), f32(1e-30)).max_rel == pytest.approx(2)


def test_an_infinity_where_the_reference_is_finite_fails_whatever_the_tolerance():
    e = error(f32(1, INF, 3), f32(1, 2, 3))
    assert (e.non_finite, e.worst, e.outside, figures(e)) == (1, (1,), 1, (0,) * 6)
    for stat in Statistic:
        tolerance = Tolerance(atol=INF, rtol=INF, stat=stat)
        assert not e.passes(tolerance)
        assert e.error_ratio(tolerance) == INF


@pytest.mark.parametrize(
    ("found", "reference", "wrong"),
    [
        ((NAN, 1), (NAN, 1), 0),
        ((INF, -INF), (INF, -INF), 0),
        ((INF, 1), (-INF, 1), 1),
        ((NAN, 1), (INF, 1), 1),
        ((INF, 1), (NAN, 1), 1),
        ((1, NAN), (NAN, 1), 2),
        ((1, 2), (INF, NAN), 2),
        ((NAN, NAN), (1, 2), 2),
    ],
)
def test_what_is_not_finite_must_be_so_at_the_same_place_and_with_the_same_sign(found, reference, wrong):
    e = error(f32(*found), f32(*reference))
    assert e.non_finite == wrong
    assert e.passes(LOOSE) == (wrong == 0)


def test_statistics_leave_out_what_is_not_finite_but_keep_the_place_of_the_worst():
    """An infinity on both sides comes first; the worst finite difference stands behind it."""
    e = error(f32(INF, NAN, 1, 5).reshape(2, 2), f32(INF, NAN, 1, 2).reshape(2, 2))
    assert (e.max, e.mean, e.non_finite, e.worst, e.total, e.reference_max) == (3, 1.5, 0, (1, 1), 4, 2)


def test_the_first_non_finite_place_is_the_worst_even_beside_a_large_difference():
    e = error(f32(1e9, 0, NAN, NAN), f32(0, 0, 0, 0))
    assert (e.worst, e.non_finite, e.max, e.outside) == ((2,), 2, 1e9, 3)


def test_a_difference_too_large_for_single_precision_is_finite():
    e = error(f32(3e38), f32(-3e38))
    assert e.non_finite == 0
    assert e.max == pytest.approx(6e38)


def test_a_scalar_has_an_empty_index():
    assert error(np.float32(2), np.float32(1)).worst == ()
    assert error(np.float32(INF), np.float32(1)).worst == ()
    assert error(np.float32(INF), np.float32(INF)).non_finite == 0


def test_integers_differ_by_their_distance_and_large_ones_keep_the_last_digit():
    e = error(i64(2**40 + 1, 5), i64(2**40, 7))
    assert (e.max, e.mean, e.worst) == (2, 1.5, (1,))
    assert error(np.uint8([0]), np.uint8([255])).max == 255


def test_booleans_differ_by_one():
    e = error(np.array([True, False, True]), np.array([True, True, False]))
    assert (e.max, e.mean, e.outside) == (1, pytest.approx(2 / 3), 2)


def test_strings_are_right_or_wrong():
    e = error(np.array(["a", "b", "c"], object), np.array(["a", "x", "c"], object))
    assert (e.max, e.worst, e.outside, e.total) == (1, (1,), 1, 3)
    assert not e.passes(LOOSE)
    assert error(np.array(["a"], object), np.array(["a"], object)).passes(LOOSE)


def test_an_empty_tensor_passes_and_one_of_another_shape_never_does():
    assert error(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32)).passes(Tolerance(0, 0))
    for found, reference in (((0, 3), (0, 4)), ((2,), (3,)), ((1, 2), (2,)), ((2,), (0,))):
        e = error(np.zeros(found, np.float32), np.zeros(reference, np.float32))
        assert not e.passes(Tolerance(INF, INF))
        assert e.error_ratio(Tolerance(INF, INF)) == INF


# ------------------------------------------------------------------------------------ passing and excess


@pytest.mark.parametrize(("stat", "passes"), [("max", False), ("mean", False), ("median", True), ("elemwise", False)])
def test_a_median_passes_where_one_element_is_far_off(stat, passes):
    e = error(f32(1, 1, 1, 1, 9), f32(1, 1, 1, 1, 1))
    assert e.passes(Tolerance(stat=Statistic(stat))) == passes
    assert (e.error_ratio(Tolerance(stat=Statistic(stat))) <= 1) == passes


def test_absolute_or_relative_is_enough_and_elemwise_asks_it_of_every_element():
    """1e6 is off by 100 (relative 1e-4), 0 by 1e-4: no single tolerance of the maxima covers both."""
    found, reference = f32(1e6 + 100, 1e-4), f32(1e6, 0)
    e = error(found, reference)
    assert not e.passes(LOOSE)
    assert e.passes(Tolerance(1e-3, 1e-3, Statistic.ELEMWISE))
    assert e.passes(Tolerance(atol=100, rtol=0))
    assert not e.passes(Tolerance(atol=99.9, rtol=1))


def test_an_output_may_have_its_own_tolerance():
    own = Tolerance(atol=0, rtol=0, per_output={"y": (0.5, 0)})
    e = compare("y", f32(1.25), f32(1), own)
    assert e.passes(own)
    assert e.error_ratio(own) == 0.5
    assert e.outside == 0
    assert not compare("z", f32(1.25), f32(1), own).passes(own)


def test_a_tolerance_of_zero_is_exceeded_without_end():
    assert error(f32(1.5), f32(1)).error_ratio(Tolerance(0, 0)) == math.inf


def test_the_worst_is_furthest_beyond_the_tolerance_and_the_first_of_equals():
    errors = [error(f32(found), f32(1)) for found in (1.0, 1.5, 2.0, 2.0)]
    assert worst(errors, LOOSE) is errors[2]
    broken = error(f32(NAN), f32(1))
    assert worst([*errors, broken], LOOSE) is broken


def test_all_tensors_are_compared_in_the_order_of_the_reference():
    reference = {"b": f32(1), "a": f32(2)}
    found = {"a": f32(2), "b": f32(4), "more": f32(0)}
    assert [(e.name, e.max) for e in compare_all(found, reference, LOOSE)] == [("b", 3), ("a", 0)]


# -------------------------------------------------------------------------------------------- Polygraphy


@pytest.mark.parametrize("stat", ["max", "mean", "median", "elemwise"])
@pytest.mark.parametrize(("atol", "rtol"), [(1e-3, 1e-3), (0.02, 1e-5), (1e-5, 0.02)])
def test_polygraphy_says_the_same(stat, atol, rtol):
    """On values of all sizes, some of them 0, some equal; close enough that either verdict comes up."""
    comparator = pytest.importorskip("polygraphy.comparator", reason="pip install polygraphy to compare with it")
    logger = pytest.importorskip("polygraphy.logger")
    generator = np.random.default_rng([len(stat), int(1e6 * rtol)])
    reference = (generator.standard_normal((3, 4, 2)) * 10.0 ** generator.integers(-20, 3, (3, 4, 2))).astype(
        np.float32
    )
    reference.flat[::7] = 0
    found = reference + generator.choice(f32(0, 0, 1e-4, 0.01), (3, 4, 2))

    check = comparator.SimpleCompareFunc(atol=atol, rtol=rtol, check_error_stat=stat)
    results = [comparator.IterationResult(outputs={"y": array}) for array in (found, reference)]
    with logger.G_LOGGER.verbosity(logger.G_LOGGER.CRITICAL):
        theirs = check(*results)["y"]
    tolerance = Tolerance(atol, rtol, Statistic(stat))
    ours = error(found, reference, tolerance)
    assert ours.passes(tolerance) == bool(theirs)
    np.testing.assert_allclose(
        figures(ours),
        (
            *(theirs.max_absdiff, theirs.mean_absdiff, theirs.median_absdiff),
            *(theirs.max_reldiff, theirs.mean_reldiff, theirs.median_reldiff),
        ),
        rtol=1e-6,
    )


@pytest.mark.parametrize("size", [1, 2, 3, 4_095, 4_096, 8_191, 16_384, 16_385, 100_001])
@pytest.mark.parametrize("kind", ["normal", "zeros", "two values", "heavy tail", "equal", "large where looked at"])
def test_the_median_is_exact_whatever_the_size(size, kind):
    random = np.random.default_rng(size)
    values = {
        "normal": np.abs(random.standard_normal(size)),
        "zeros": np.zeros(size),
        "two values": (random.random(size) > 0.5) * 1.0,
        "heavy tail": np.abs(random.standard_cauchy(size)),
        "equal": np.full(size, 0.1),
        "large where looked at": np.where(np.arange(size) % int(size ** (1 / 3)) == 0, 9, np.arange(size) / size),
    }[kind].astype(np.float32)
    assert median(values) == np.median(values)


# ------------------------------------------------------------------------------------------- large tensors

LARGE = 7 * 16_384  # three blocks and a half; an even stride would be 7


def pairs():
    """A reference and what was found, in every pattern that an even stride could fall in step with."""
    random = np.random.default_rng(0)
    reference = random.standard_normal(LARGE).astype(np.float32)
    noise = (np.abs(random.standard_normal(LARGE)) * 1e-3).astype(np.float32)
    place = np.arange(LARGE)
    return {
        "noise": noise,
        **{f"every {n}th is far off": np.where(place % n == 0, noise + 1, noise) for n in (2, 3, 5, 7)},
        "sorted": np.sort(noise),
        "one row of many": np.where(place < LARGE // 3, 0, noise),
    }, reference


@pytest.mark.parametrize("pattern", pairs()[0])
def test_sampled_medians_rank_near_the_middle_and_all_else_is_exact(pattern):
    reference = pairs()[1]
    found = reference + pairs()[0][pattern]
    exact, sampled = (compare("y", found, reference, Tolerance(), sampled=sampled) for sampled in (False, True))
    difference = np.abs(found - reference)
    for value, of in ((sampled.median, difference), (sampled.median_rel, difference / np.abs(reference))):
        assert np.mean(of < value) <= 0.512
        assert np.mean(of <= value) >= 0.488
    assert sampled.median != exact.median or pattern != "noise"
    same = {"median": 0.0, "median_rel": 0.0}
    assert dataclasses.replace(exact, **same) == dataclasses.replace(sampled, **same)


def test_small_tensors_are_not_sampled():
    random = np.random.default_rng(0)
    reference, found = random.standard_normal((2, 32_768)).astype(np.float32)
    assert compare("y", found, reference, Tolerance(), sampled=True) == compare("y", found, reference, Tolerance())


@pytest.mark.parametrize("worst_at", [0, 40_000, LARGE - 1])
def test_figures_of_many_blocks_are_those_of_the_whole(worst_at):
    reference = np.random.default_rng(1).standard_normal(LARGE).astype(np.float32)
    reference[::7] = 0
    found = reference.astype(np.float16).astype(np.float32)
    found[worst_at] = reference[worst_at] + 9
    error = compare("y", found.reshape(1, -1), reference.reshape(1, -1), Tolerance(1e-4, 1e-4))
    a, b = found.astype(np.float64), reference.astype(np.float64)
    difference = np.abs(a - b)
    relative = difference / np.where(b == 0, np.finfo(np.float64).eps, np.abs(b))
    assert error.worst == (0, worst_at)
    assert error.outside == np.count_nonzero((difference > 1e-4) & (relative > 1e-4)) > 1000
    assert error.reference_max == np.abs(b).max()
    expected = [statistic(of) for of in (difference, relative) for statistic in (np.max, np.mean, np.median)]
    figures = [error.max, error.mean, error.median, error.max_rel, error.mean_rel, error.median_rel]
    np.testing.assert_allclose(figures, expected, rtol=1e-5)


def test_an_infinity_in_a_late_block_is_found():
    reference = np.ones(LARGE, np.float32)
    found = reference.copy()
    found[-1] = np.inf
    error = compare("y", found, reference, Tolerance(), sampled=True)
    assert (error.non_finite, error.worst, error.max) == (1, (LARGE - 1,), 0)


def test_a_sum_beyond_single_precision_has_a_finite_mean():
    reference = np.zeros(1000, np.float32)
    assert compare("y", reference + np.float32(1e38), reference, Tolerance()).mean == pytest.approx(1e38)


def test_double_precision_is_kept_whichever_side_has_it():
    exact = 2.0**25 + 1  # needs 26 bits
    single, double = np.zeros(4, np.float32), np.full(4, exact)
    assert compare("y", double, single, Tolerance()).max == compare("y", single, double, Tolerance()).max == exact
