"""Says what makes FP16 wrong on a runner: precision, a kernel of lower accuracy, or a fault."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from trt_helper.values import Reading, TensorError, Tolerance, Trial

ALIKE = 4.0  # factor between two errors of one origin; PyTorch's half kernels on a CPU are within 1.8 of the emulator's
LESS_EXACT = 8.0  # the same of sums in half: one term at a time they are some 4 times as wrong as sixteen at a time


class Kind(Enum):
    """What is wrong."""

    PRECISION = "precision"  # half precision as it is
    KERNEL = "kernel"  # one that is less exact than those that were read
    FAULT = "fault"  # none of the readings explains it


SENTENCES = {
    Kind.PRECISION: "precision: emulated FP16 is as wrong as the runner, so pins help",
    Kind.KERNEL: (
        "a kernel of lower accuracy, not precision: FP16 is wrong like this where products and sums accumulate in half "
        "(--kernels worst), and accurate where they accumulate in FP32; a pin there, or another tactic, helps"
    ),
    Kind.FAULT: (
        "a fault, not precision: no reading of FP16 is as wrong as the runner. A fusion or a kernel is the cause; a "
        "pin helps only where its casts break that fusion up"
    ),
}


def diagnose(found: Trial, by_reading: Mapping[Reading, Trial], tolerance: Tolerance) -> Kind:
    """What makes a plan fail on a runner.

    Args:
        found: its trial there; it failed.
        by_reading: its trials on the emulator, `TYPICAL` and `WORST` among them, on the same samples.
        tolerance: what they were judged by.
    """
    if _explains(by_reading[Reading.TYPICAL], found, tolerance, ALIKE):
        return Kind.PRECISION
    return Kind.KERNEL if _explains(by_reading[Reading.WORST], found, tolerance, LESS_EXACT) else Kind.FAULT


def _explains(emulated: Trial, found: Trial, tolerance: Tolerance, factor: float) -> bool:
    """Whether every output that is out of tolerance on the runner is about as wrong on the emulator."""
    if emulated.why:
        return bool(found.why)  # it cannot be computed on either
    here = {error.name: error for error in emulated.outputs}
    missed = [error for error in found.outputs if not error.passes(tolerance)]
    if not missed:  # a metric decided
        return emulated.error_ratio > 1 and found.error_ratio <= factor * emulated.error_ratio
    return all(error.name in here and _is_alike(here[error.name], error, tolerance, factor) for error in missed)


def _is_alike(emulated: TensorError, found: TensorError, tolerance: Tolerance, factor: float) -> bool:
    if emulated.passes(tolerance):
        return False
    if found.non_finite or emulated.non_finite:
        return found.non_finite <= factor * emulated.non_finite
    return found.max <= factor * emulated.max and found.mean <= factor * emulated.mean
