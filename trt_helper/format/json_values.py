"""Errors and tolerances as JSON, in the same form for every command."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from trt_helper.values import TensorError, Tolerance

SCHEMA = 1
Json = dict[str, Any]


def error_json(error: TensorError) -> Json:
    """The errors of one tensor. A figure that is not finite is null; `resized` is there for another size only."""
    return {
        **({"resized": error.resized} if error.resized else {}),
        "max": number(error.max),
        "mean": number(error.mean),
        "median": number(error.median),
        "max_rel": number(error.max_rel),
        "mean_rel": number(error.mean_rel),
        "median_rel": number(error.median_rel),
        "worst": list(error.worst),
        "outside": error.outside,
        "non_finite": error.non_finite,
        "elements": error.total,
        "spread": number(error.reference_max),
    }


def outputs_json(errors: Iterable[TensorError]) -> Json:
    """The errors of several tensors, by name."""
    return {error.name: error_json(error) for error in errors}


def tolerance_json(tolerance: Tolerance) -> Json:
    """A tolerance under the keys of the YAML file."""
    own: Mapping[str, Any] = {name: {"atol": a, "rtol": r} for name, (a, r) in tolerance.per_output.items()}
    return {
        "atol": tolerance.atol,
        "rtol": tolerance.rtol,
        "check-error-stat": tolerance.stat.value,
        **({"per-output": own} if own else {}),
    }


def number(value: float) -> float | None:
    """`value`, or None (JSON null) if it is NaN or infinite."""
    return float(value) if math.isfinite(value) else None
