"""Findings: the statements of `gate` about a plan, derived from its measured errors.

These functions are pure: they run no model and read no file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trt_helper.gate import baseline as base
from trt_helper.values import LayerName, Statistic, TensorError, Tolerance, Trial

LONGEST_NAME = 200  # characters
MOST_NAMED = 20  # findings of one kind that are listed one by one
RULES = {
    "layer": "A layer that the plan pins is not in the model",
    "input": "The model cannot be judged",
    "tolerance": "An output left its tolerance",
    "metric": "The metric fell below its threshold",
    "regression": "An output got worse than its baseline allows",
    "overflow": "FP16 overflows in a layer",
    "pin": "A pin is no longer needed",
    "removed": "A pin is gone from the plan",
    "model": "The model is not the one that the plan was made for",
    "baseline": "There is no baseline of this setup",
    "random": "Judged by random values",
    "reference": "The reference is no FP32 model",
}
LEVELS = ("error", "warning", "note")


@dataclass(frozen=True, slots=True)
class Finding:
    """One statement about the plan. A finding of the level error fails the gate."""

    rule: str  # one of RULES
    level: str  # one of LEVELS
    subject: str  # the layer or output that it is about, or empty
    message: str
    fix: str = ""
    line: int = 0  # in the config, from 1; 0 if it is about no line


def quoted(name: str) -> str:
    """A name in quotes for a message: unprintable characters are escaped, and the middle of a long name is cut out."""
    half = LONGEST_NAME // 2
    return repr(name if len(name) <= LONGEST_NAME else f"{name[:half]}…{name[-half:]}")


def at_most(findings: Sequence[Finding]) -> Iterator[Finding]:
    """The first findings of one rule, and a last one that counts the rest, if there are more than MOST_NAMED."""
    yield from findings[:MOST_NAMED]
    more = len(findings) - MOST_NAMED
    if more > 0:
        first = findings[0]
        yield Finding(first.rule, first.level, "", f"{more} more: {RULES[first.rule].lower()}", first.fix)


def by_tolerance(
    trial: Trial,
    per_sample: Sequence[Sequence[TensorError]],
    sources: Sequence[str],
    tolerance: Tolerance,
    fix: str,
) -> Iterator[Finding]:
    """An error for each output that is out of tolerance, with its worst element and sample.

    Args:
        trial: The plan's trial, with the worst error of each output.
        per_sample: The errors of each output, in the same order, for each sample.
        sources: Of the samples.
        tolerance: That the trial was judged by.
        fix: Of the findings.
    """
    if trial.why:
        yield Finding("tolerance", "error", "", f"the plan cannot be computed: {trial.why}", fix)
    for index, error in enumerate(trial.outputs):
        if error.passes(tolerance):
            continue
        atol, rtol = tolerance.of(error.name)
        source = next(s for s, errors in zip(sources, per_sample, strict=True) if errors[index] is error)
        if error.non_finite:
            text = error.resized or f"{error.non_finite} of {error.total} elements are wrong in being finite or not"
        elif tolerance.stat is Statistic.ELEMWISE:
            text = f"{error.outside} of {error.total} elements are outside {atol:g} and {rtol:g} relative"
        else:
            stat = tolerance.stat.value
            text = f"{stat} error {getattr(error, stat):.3g}, allowed {atol:g} or {rtol:g} relative"
        message = f"output {quoted(error.name)}: {text}; worst at {list(error.worst)} of {source}"
        yield Finding("tolerance", "error", error.name, message, fix)


def by_metric(name: str, threshold: float, figure: float | None, fix: str) -> Iterator[Finding]:
    """An error if the figure of the user's metric is below its threshold, or is None: could not be computed."""
    if figure is None or not figure >= threshold:
        shown = "not computable" if figure is None else f"{figure:.4g}"
        yield Finding("metric", "error", name, f"the metric {name} is {shown}, below its threshold {threshold:g}", fix)


def regressions(
    outputs: Sequence[TensorError], before: Mapping[str, Any], tolerance: Tolerance, factor: float, fix: str
) -> Iterator[Finding]:
    """An error for each output whose error is more than `factor` times the one of the baseline.

    Args:
        outputs: The worst error of each output.
        before: The baseline's entry.
        tolerance: Of today. Errors are compared as error ratios.
        factor: The allowed growth.
        fix: Of the findings.
    """
    for error in outputs:
        old = before["outputs"].get(error.name)
        if old is None:
            yield Finding("baseline", "note", error.name, f"output {quoted(error.name)} is not in the baseline", fix)
            continue
        times = base.times_worse(error, old, tolerance)
        if error.non_finite > old["non_finite"]:
            count = f"{error.non_finite} elements wrong in being finite or not, its baseline {old['non_finite']}"
            yield Finding("regression", "error", error.name, f"output {quoted(error.name)} has {count}", fix)
        elif times > factor:
            stat = "max" if tolerance.stat is Statistic.ELEMWISE else tolerance.stat.value
            figures = f"{stat} error {getattr(error, stat):.3g}, was {old[stat]:.3g}"
            text = f"{times:.3g} times as far off as its baseline ({figures}), allowed {factor:g} times"
            yield Finding("regression", "error", error.name, f"output {quoted(error.name)} is {text}", fix)


def overflows(
    overflow: Mapping[LayerName, int] | None, before: Mapping[str, Any] | None, *, accurate: bool, fix: str
) -> Iterator[Finding]:
    """Findings about layers where FP16 overflows.

    With a baseline they are errors, one for each layer that does not overflow there. Without one they are notes that
    explain a failure.

    Args:
        overflow: Overflowing elements by layer; None if unknown, as in an engine.
        before: The baseline's entry, if there is one.
        accurate: Whether all outputs are within tolerance. Then there are no notes.
        fix: Of the errors.
    """
    if overflow is None:
        return
    if before is None:
        if not accurate:
            yield from at_most([_overflow(name, n, "note", "") for name, n in overflow.items()])
        return
    new = base.new_overflow(overflow, before)
    yield from at_most([_overflow(name, overflow[name], "error", fix) for name in new])


def _overflow(name: LayerName, count: int, level: str, fix: str) -> Finding:
    new = ", and none in the baseline" if level == "error" else ""
    values = "1 value passes" if count == 1 else f"{count} values pass"
    return Finding("overflow", level, name, f"layer {quoted(name)}: {values} 65504 and become infinite{new}", fix)
