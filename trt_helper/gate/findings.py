"""What was measured goes in, what there is to say about it comes out. Pure: nothing is run or read here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trt_helper.gate import baseline as base
from trt_helper.values import LayerName, Statistic, TensorError, Tolerance, Trial

LONGEST_NAME = 200  # characters
MOST_NAMED = 20  # findings of one kind that are spelled out
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
    """One thing to say. An error fails the gate."""

    rule: str  # one of RULES
    level: str  # one of LEVELS
    subject: str  # the layer or output it is about, if any
    message: str
    fix: str = ""
    line: int = 0  # in the config, from 1; 0 is none


def named(name: str) -> str:
    """A name in quotes for a message: what does not print is spelled out, what is long is cut in the middle."""
    half = LONGEST_NAME // 2
    return repr(name if len(name) <= LONGEST_NAME else f"{name[:half]}…{name[-half:]}")


def some(findings: Sequence[Finding]) -> Iterator[Finding]:
    """The first of many, and how many there are more."""
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
    """An error for each output that is out of tolerance, with its worst element and sample."""
    if trial.why:
        yield Finding("tolerance", "error", "", f"the plan cannot be computed: {trial.why}", fix)
    for index, error in enumerate(trial.outputs):
        if error.passes(tolerance):
            continue
        atol, rtol = tolerance.of(error.name)
        source = next(s for s, errors in zip(sources, per_sample, strict=True) if errors[index] is error)
        if error.non_finite:
            what = f"{error.non_finite} of {error.total} elements are wrong in being finite or not"
        elif tolerance.stat is Statistic.ELEMWISE:
            what = f"{error.outside} of {error.total} elements are outside {atol:g} and {rtol:g} relative"
        else:
            stat = tolerance.stat.value
            what = f"{stat} error {getattr(error, stat):.3g}, allowed {atol:g} or {rtol:g} relative"
        message = f"output {named(error.name)}: {what}; worst at {list(error.worst)} of {source}"
        yield Finding("tolerance", "error", error.name, message, fix)


def by_metric(name: str, threshold: float, figure: float | None, fix: str) -> Iterator[Finding]:
    """An error where the user's own figure is below its threshold, or could not be computed."""
    if figure is None or not figure >= threshold:
        shown = "not computable" if figure is None else f"{figure:.4g}"
        yield Finding("metric", "error", name, f"the metric {name} is {shown}, below its threshold {threshold:g}", fix)


def regressions(
    outputs: Sequence[TensorError], before: Mapping[str, Any], tolerance: Tolerance, factor: float, fix: str
) -> Iterator[Finding]:
    """An error for each output that is more than `factor` times as far off as in the baseline."""
    for error in outputs:
        old = before["outputs"].get(error.name)
        if old is None:
            yield Finding("baseline", "note", error.name, f"output {named(error.name)} is not in the baseline", fix)
            continue
        times = base.times_worse(error, old, tolerance)
        if error.non_finite > old["non_finite"]:
            count = f"{error.non_finite} elements wrong in being finite or not, its baseline {old['non_finite']}"
            yield Finding("regression", "error", error.name, f"output {named(error.name)} has {count}", fix)
        elif times > factor:
            stat = "max" if tolerance.stat is Statistic.ELEMWISE else tolerance.stat.value
            figures = f"{stat} error {getattr(error, stat):.3g}, was {old[stat]:.3g}"
            said = f"{times:.3g} times as far off as its baseline ({figures}), allowed {factor:g} times"
            yield Finding("regression", "error", error.name, f"output {named(error.name)} is {said}", fix)


def overflows(
    overflow: Mapping[LayerName, int] | None, before: Mapping[str, Any] | None, *, accurate: bool, fix: str
) -> Iterator[Finding]:
    """Layers where FP16 overflows: errors where the baseline has none, else notes that explain a failure.

    None where nobody saw it: in an engine.
    """
    if overflow is None:
        return
    if before is None:
        if not accurate:
            yield from some([_overflow(name, n, "note", "") for name, n in overflow.items()])
        return
    new = base.new_overflow(overflow, before)
    yield from some([_overflow(name, overflow[name], "error", fix) for name in new])


def _overflow(name: LayerName, count: int, level: str, fix: str) -> Finding:
    new = ", and none in the baseline" if level == "error" else ""
    values = "1 value passes" if count == 1 else f"{count} values pass"
    return Finding("overflow", level, name, f"layer {named(name)}: {values} 65504 and become infinite{new}", fix)
