"""Compare tensors with their references: statistics of the absolute and the relative error.

abs = |found - reference| and rel = abs / |reference|, as in Polygraphy. A reference of 0 counts as 2.2e-16 in the
denominator, and an element without a difference has no error, whatever its reference. Elements that are not finite
are counted apart and are in no statistic.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from trt_helper.values import Array, TensorError, TensorName, Tolerance

MANY = 1 << 12  # elements from which a few of them are sorted first, to find bounds of the median
SPREAD = 1.5  # times sqrt(number of sorted elements): the rank of the median among them is this exact, 3 sigma
SAMPLED = 1 << 14  # elements that the medians of a large tensor are taken from where they need not be exact
POSITIONS = (np.arange(SAMPLED) + np.random.default_rng(0).random(SAMPLED)) / SAMPLED  # their positions, from 0 to 1
BLOCK = 1 << 15  # elements that are computed at once: they stay in a core's cache
SMALLEST = float(np.finfo(np.float64).eps)  # 2.2e-16 replaces a reference of 0, as in Polygraphy 0.53


def compare(
    name: TensorName, found: Array, reference: Array, tolerance: Tolerance, *, sampled: bool = False
) -> TensorError:
    """The error of `found` against `reference`.

    Args:
        name: Of the tensor. It selects the tolerance.
        found: Array of any shape and numeric type, or of strings.
        reference: Array of the same kind. If the shapes differ, all elements count as non-finite: a size may
            depend on values that FP16 changed.
        tolerance: Decides only which elements count as `outside`.
        sampled: Take the medians of more than 32,768 elements from 16,384 of them, one at a random position in
            each of 16,384 equal parts of the tensor. The rank of such a median is between 48.8 and 51.2 % (three
            sigma), whatever pattern the tensor has. All other figures stay exact.

    Returns:
        The errors. For strings the error of an element is 1 if it differs, else 0.
    """
    if found.shape != reference.shape:
        return _incomparable(name, found, reference)
    if reference.size == 0:
        return TensorError(name, 0, 0, 0, 0, 0, 0, (), 0, 0, 0)
    if reference.dtype.kind not in "fiub":
        return _compare_labels(name, found, reference)
    a, b = _as_float(found), _as_float(reference)
    with np.errstate(all="ignore"):
        a, b, shape = a.reshape(-1), b.reshape(-1), b.shape
        sampled = sampled and b.size > 2 * SAMPLED
        sums = some = _differences(a, b, tolerance.of(name), keep=not sampled)
        if not np.isfinite(sums.max):
            return _compare_partly(name, a, b, shape, tolerance)
        if sampled:
            at = (POSITIONS * b.size).astype(np.int64)
            some = _differences(a[at], b[at], tolerance.of(name))
        return _statistics(name, sums, (median(some.difference), median(some.relative)), shape)


def compare_all(
    found: Mapping[TensorName, Array], reference: Mapping[TensorName, Array], tolerance: Tolerance
) -> tuple[TensorError, ...]:
    """Compare each tensor of `reference`, in its order. All of them must be in `found`."""
    return tuple(compare(name, found[name], array, tolerance) for name, array in reference.items())


def worst(errors: Iterable[TensorError], tolerance: Tolerance) -> TensorError:
    """The error with the largest error ratio; the first one of equals."""
    return max(errors, key=lambda error: (error.error_ratio(tolerance), error.non_finite, error.max))


def median(values: Array) -> float:
    """The exact median of an array of numbers, none of them NaN, without sorting it.

    Floyd and Rivest's selection (1975): a few elements are sorted, and two of them bound the median. Then only the
    elements between the bounds are searched. If the bounds turn out to be wrong, all elements are.
    """
    flat = values.reshape(-1)
    if flat.size < MANY:
        return float(np.median(flat))
    some = np.sort(flat[:: int(flat.size ** (1 / 3))])
    margin = int(SPREAD * math.sqrt(some.size))
    low, high = some[some.size // 2 - margin], some[some.size // 2 + margin]
    above = flat > low
    between = np.compress(above & (flat < high), flat)
    up_to_low = flat.size - int(np.count_nonzero(above))
    first, last = (flat.size - 1) // 2 - up_to_low, flat.size // 2 - up_to_low  # ranks of the middle in `between`
    if first >= 0 and last < between.size:
        return float(np.mean(np.partition(between, (first, last))[[first, last]]))
    if last < 0 and np.count_nonzero(flat < low) <= (flat.size - 1) // 2:
        return float(low)  # many elements are equal to it, such as zeros
    return float(np.median(flat))


@dataclass(frozen=True, eq=False, slots=True)
class _Sums:
    """The figures from one pass over two tensors. If a difference is not finite, only `max` is set, and not finite."""

    max: float
    difference: Array  # |a - b| of every element, flat, if it was kept
    relative: Array  # |a - b| / |b| of every element, flat, if it was kept
    index: int = 0  # of the largest difference
    mean: float = 0.0
    max_rel: float = 0.0
    mean_rel: float = 0.0
    reference_max: float = 0.0  # largest magnitude of the reference
    outside: int = 0  # elements beyond both atol and rtol
    total: int = 0  # elements


def _differences(a: Array, b: Array, allowed: tuple[float, float], *, keep: bool = True) -> _Sums:
    """The figures of two flat tensors of one length, at least one element, block by block.

    `allowed` are atol and rtol. Without `keep` the arrays of differences are overwritten by each block.
    """
    size, (atol, rtol) = b.size, allowed
    dtype = np.result_type(a, b)
    difference, relative = (np.empty(size if keep else min(size, BLOCK), dtype) for _ in range(2))
    magnitude = np.empty(min(size, BLOCK), b.dtype)
    most, index, total, most_rel, total_rel, reference_max, outside = -1.0, 0, 0.0, 0.0, 0.0, 0.0, 0
    for start in range(0, size, BLOCK):
        here = b[start : start + BLOCK]
        first = start if keep else 0
        d, r, m = difference[first : first + here.size], relative[first : first + here.size], magnitude[: here.size]
        np.abs(np.subtract(a[start : start + BLOCK], here, out=d), out=d)
        at = int(d.argmax())
        top = float(d[at])
        if not math.isfinite(top):
            return _Sums(top, difference, relative)
        reference_max = max(reference_max, float(np.abs(here, out=m).max()))
        if not m.min():
            m += (m == 0) * b.dtype.type(SMALLEST)
        top_rel = float(np.divide(d, m, out=r).max())
        if top > atol and top_rel > rtol:
            outside += int(np.count_nonzero((d > atol) & (r > rtol)))
        if top > most:
            most, index = top, start + at
        most_rel = max(most_rel, top_rel)
        total += _sum(d)
        total_rel += _sum(r)
    means = total / size, total_rel / size
    return _Sums(most, difference, relative, index, means[0], most_rel, means[1], reference_max, outside, size)


def _sum(block: Array) -> float:
    """The sum of a block. numpy adds in pairs, which keeps six digits in FP32; a sum beyond FP32 is added in FP64."""
    total = float(block.sum())
    return total if math.isfinite(total) else float(block.sum(dtype=np.float64))


def _statistics(name: TensorName, sums: _Sums, medians: tuple[float, float], shape: tuple[int, ...]) -> TensorError:
    return TensorError(
        name=name,
        max=sums.max,
        mean=sums.mean,
        median=medians[0],
        max_rel=sums.max_rel,
        mean_rel=sums.mean_rel,
        median_rel=medians[1],
        worst=_unravel(sums.index, shape),
        outside=sums.outside,
        non_finite=0,
        total=sums.total,
        reference_max=sums.reference_max,
    )


def _compare_partly(name: TensorName, a: Array, b: Array, shape: tuple[int, ...], tolerance: Tolerance) -> TensorError:
    """Statistics over the elements that are finite on both sides. All others count as wrong unless they are equal."""
    finite = np.isfinite(a) & np.isfinite(b)
    wrong = ~finite & ~((a == b) | (np.isnan(a) & np.isnan(b)))
    count = int(np.count_nonzero(wrong))
    inner = TensorError(name, 0, 0, 0, 0, 0, 0, (), 0, 0, 0)
    if finite.any():
        sums = _differences(a[finite].astype(np.float64), b[finite].astype(np.float64), tolerance.of(name))
        inner = _statistics(name, sums, (median(sums.difference), median(sums.relative)), (sums.total,))
    index = 0 if not inner.worst else int(np.flatnonzero(finite)[inner.worst[0]])
    if count:
        index = int(np.argmax(wrong))
    outside = inner.outside + count
    return replace(inner, worst=_unravel(index, shape), outside=outside, non_finite=count, total=b.size)


def _compare_labels(name: TensorName, found: Array, reference: Array) -> TensorError:
    """Errors of strings: 1 for a different element, 0 for an equal one."""
    wrong = found != reference
    share = float(np.mean(wrong))
    index = int(np.argmax(wrong))
    outside = int(np.count_nonzero(wrong))
    largest = float(outside > 0)
    middle = float(np.median(wrong))
    where = _unravel(index, reference.shape)
    return TensorError(name, largest, share, middle, largest, share, middle, where, outside, 0, reference.size)


def _incomparable(name: TensorName, found: Array, reference: Array) -> TensorError:
    """The error of a tensor with another shape than its reference."""
    total = max(reference.size, 1)
    sizes = ("x".join(map(str, array.shape)) or "1" for array in (found, reference))
    return TensorError(name, 0, 0, 0, 0, 0, 0, (), total, total, total, resized=" instead of ".join(sizes))


def _as_float(array: Array) -> Array:
    """FP32 arrays as they are, all others as FP64, so that large integers keep their last digit."""
    return array if array.dtype == np.float32 else array.astype(np.float64)


def _unravel(index: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(index, shape))
