"""Results as rows of text, and those rows as a terminal table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from rich.table import Table

from trt_helper.format.text import cell, figure, table
from trt_helper.gate.result import Gated
from trt_helper.values import Statistic, TensorError

COLUMNS = ("config", "output", "verdict", "error", "allowed", "baseline", "pins")
VERDICTS = {"pass": "pass", "fail": "FAIL", "error": "ERROR"}


def rows(results: Sequence[Gated]) -> Iterator[tuple[str, ...]]:
    """One row per output, per metric, and per config that could not be judged. Names are not made safe yet."""
    for gated in results:
        config, verdict = str(gated.config), VERDICTS[gated.verdict]
        pins = f"{len(gated.now.plan)} of {gated.candidates}" if gated.now else "-"
        if gated.metric:
            name, threshold, found = gated.metric
            before = gated.before and gated.before["metric"]
            shown = "-" if found is None else f"{found:.4g}"
            yield config, name, verdict, shown, f"≥ {threshold:g}", "-" if before is None else f"{before:.4g}", pins
        if not gated.now or not gated.now.outputs:
            yield config, "-", verdict, "-", "-", "-", pins
        for error in gated.now.outputs if gated.now else ():
            yield config, error.name, _verdict(gated, error), *_figures(gated, error), pins


def _verdict(gated: Gated, error: TensorError) -> str:
    """The verdict of an output: a failure that names an output counts for that one, others count for all."""
    blamed = [f.subject for f in gated.findings if f.level == "error" and f.rule in ("tolerance", "regression")]
    return VERDICTS["pass"] if blamed and error.name not in blamed else VERDICTS[gated.verdict]


def _figures(gated: Gated, error: TensorError) -> tuple[str, str, str]:
    tolerance = gated.tolerance
    atol, rtol = tolerance.of(error.name)
    stat = "max" if tolerance.stat is Statistic.ELEMWISE else tolerance.stat.value
    found = error.broken or figure(getattr(error, stat))
    old = gated.before and gated.before["outputs"].get(error.name)
    allowed = "-" if gated.metric else f"{tolerance.stat.value} ≤ {atol:g} or {rtol:g} rel"
    return found, allowed, figure(old[stat]) if old else "-"


def of(results: Sequence[Gated]) -> Table:
    """The table for a terminal."""
    made = table("Gate, worst sample", *COLUMNS, names=2)
    for row in rows(results):
        made.add_row(cell(row[0]), cell(row[1]), *row[2:])
    return made


def headline(results: Sequence[Gated]) -> str:
    """One sentence about all results."""
    count = Counter(gated.verdict for gated in results)
    if count["pass"] == len(results):
        return "the plan is accurate" if len(results) == 1 else f"all {len(results)} plans are accurate"
    failed = [f"{count['fail']} failed"] if count["fail"] else []
    return ", ".join([*failed, *([f"{count['error']} could not be judged"] if count["error"] else [])]) + (
        f" of {len(results)}" if len(results) > 1 else ""
    )
