"""Two tensors go in, their difference comes out: where they are not finite first, then how far apart.

abs = |found - reference|, rel = abs / |reference|, as Polygraphy has them (a zero of the reference
counts as 2.2e-16 in the denominator; no difference is no error, whatever the reference).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from trt_helper.kernels import Array
from trt_helper.values import TensorError, TensorName, Tolerance

MANY = 1 << 14  # elements from which counting beats numpy's partition
SMALLEST = np.finfo(np.float64).eps  # 2.2e-16 stands for a reference of 0, as in Polygraphy 0.53


def compare(name: TensorName, found: Array, reference: Array, tolerance: Tolerance) -> TensorError:
    """How far `found` is from `reference`; arrays of any shape and numeric type, or of strings."""
    if found.shape != reference.shape:  # a size that depends on values that FP16 changed
        return _incomparable(name, reference)
    if reference.size == 0:
        return TensorError(name, 0, 0, 0, 0, 0, 0, (), 0, 0, 0)
    if reference.dtype.kind not in "fiub":
        return _compare_labels(name, found, reference)
    a, b = _as_float(found), _as_float(reference)
    with np.errstate(all="ignore"):
        difference = np.abs(a - b)
        finite = np.isfinite(difference)
        if not finite.all():
            return _compare_partly(name, a, b, finite, tolerance)
        return _statistics(name, difference, b, tolerance)


def compare_all(
    found: Mapping[TensorName, Array], reference: Mapping[TensorName, Array], tolerance: Tolerance
) -> tuple[TensorError, ...]:
    """Compare each tensor of `reference`, in its order. Every one must have been found."""
    return tuple(compare(name, found[name], array, tolerance) for name, array in reference.items())


def worst(errors: Iterable[TensorError], tolerance: Tolerance) -> TensorError:
    """The error furthest beyond the tolerance, the first of equals."""
    return max(errors, key=lambda error: (error.excess(tolerance), error.non_finite, error.max))


def median(values: Array) -> float:
    """The exact median of numbers that are not negative, without sorting them.

    The bits of such a float order as the float does, so counting the upper half of the bits finds the
    bucket in which the middle lies, and only that bucket is searched.
    """
    flat = values.reshape(-1)
    if flat.dtype != np.float32 or flat.size < MANY:
        return float(np.median(flat))
    upper = (flat.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    counts = np.cumsum(np.bincount(upper, minlength=1))
    middle = ((flat.size - 1) // 2, flat.size // 2)
    first, last = (int(np.searchsorted(counts, rank, side="right")) for rank in middle)
    bucket = np.sort(flat[upper == first])
    below = int(counts[first - 1]) if first else 0
    low = bucket[middle[0] - below]
    high = bucket[middle[1] - below] if first == last else flat[upper == last].min()
    return float(np.mean([low, high]))


def _statistics(name: TensorName, difference: Array, reference: Array, tolerance: Tolerance) -> TensorError:
    magnitude = np.abs(reference)
    relative = difference / np.where(magnitude == 0, difference.dtype.type(SMALLEST), magnitude)
    atol, rtol = tolerance.of(name)
    index = int(np.argmax(difference))
    return TensorError(
        name=name,
        max=float(difference.reshape(-1)[index]),
        mean=float(difference.mean(dtype=np.float64)),
        median=median(difference),
        max_rel=float(relative.max()),
        mean_rel=float(relative.mean(dtype=np.float64)),
        median_rel=median(relative),
        worst=_unravel(index, reference.shape),
        outside=int(np.count_nonzero((difference > atol) & (relative > rtol))),
        non_finite=0,
        total=reference.size,
        spread=float(magnitude.max()),
    )


def _compare_partly(name: TensorName, a: Array, b: Array, finite: Array, tolerance: Tolerance) -> TensorError:
    """Statistics over what is finite on both sides; the rest is right only where it is the same."""
    finite = finite | (np.isfinite(a) & np.isfinite(b))
    wrong = ~finite & ~((a == b) | (np.isnan(a) & np.isnan(b)))
    count = int(np.count_nonzero(wrong))
    difference = np.abs(a.astype(np.float64) - b.astype(np.float64))[finite]
    if difference.size == 0:
        inner = TensorError(name, 0, 0, 0, 0, 0, 0, (), 0, 0, 0)
    else:
        inner = _statistics(name, difference, b[finite], tolerance)
    worst_finite = int(np.flatnonzero(finite)[inner.worst[0]]) if inner.worst else 0
    index = int(np.argmax(wrong)) if count else worst_finite
    return TensorError(
        name=name,
        max=inner.max,
        mean=inner.mean,
        median=inner.median,
        max_rel=inner.max_rel,
        mean_rel=inner.mean_rel,
        median_rel=inner.median_rel,
        worst=_unravel(index, b.shape),
        outside=inner.outside + count,
        non_finite=count,
        total=b.size,
        spread=inner.spread,
    )


def _compare_labels(name: TensorName, found: Array, reference: Array) -> TensorError:
    wrong = found != reference
    share = float(np.mean(wrong))
    index = int(np.argmax(wrong))
    outside = int(np.count_nonzero(wrong))
    most = float(outside > 0)
    half = float(np.median(wrong))
    where = _unravel(index, reference.shape)
    return TensorError(name, most, share, half, most, share, half, where, outside, 0, reference.size)


def _incomparable(name: TensorName, reference: Array) -> TensorError:
    total = max(reference.size, 1)
    return TensorError(name, 0, 0, 0, 0, 0, 0, (), total, total, total)


def _as_float(array: Array) -> Array:
    """Single precision as it is, everything else as double: large integers keep their last digit."""
    return array if array.dtype == np.float32 else array.astype(np.float64)


def _unravel(index: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(index, shape))
