"""Terminal tables of a run record, and of the differences between two."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from trt_helper.format.text import batch_text, cell, figure, plain, rate, table
from trt_helper.report import story
from trt_helper.report.diff import Difference, Fact
from trt_helper.report.read import errors_of, tolerance_of
from trt_helper.values import TensorError, Tolerance

Record = Mapping[str, Any]
MOST_ROWS = 40  # rows of one table; the page and --json have all


def summary(record: Record, engine: Record | None = None, bench: Record | None = None) -> Iterator[Table | str]:
    """The short form of the page: the answer, the four cards, the outputs, the pins and the measured times.

    Args:
        record: The run record.
        engine: The proof of the engine that was built with its plan, if there is one.
        bench: The result of `bench` with its plan, if there is one.

    Yields:
        Tables, and lines of text between them.
    """
    yield f"{plain(record['model']['path'])}: {story.headline(record)}"
    for card in story.cards(record, engine):
        yield ""
        yield f"{card.title}. {' '.join(card.lines)}"
    yield ""
    yield _outputs(record)
    if record.get("pins"):
        yield ""
        yield _pins(record)
    if bench:
        yield ""
        yield _speed(bench)


def _speed(bench: Record) -> Table:
    """The times that `bench` measured. Its estimates are only on the page."""
    columns = ("batch", "p50, ms", "p90", "p99", "samples/s")
    made = table(f"Speed, measured by bench ({plain(bench['platform'], 60)})", "how", *columns)
    for row in bench["measured"][:MOST_ROWS]:
        times = (figure(1e3 * row[key]) for key in ("median", "p90", "p99"))
        made.add_row(cell(row["what"]), batch_text(row["batch"]), *times, rate(row["samples_per_second"]))
    _say_more(made, len(bench["measured"]))
    return made


def _outputs(record: Record) -> Table:
    tolerance = tolerance_of(record)
    before = {error.name: error for error in errors_of(record.get("before", {}))}
    made = table("Outputs, worst sample", "output", "all FP16", "with the plan", "median", "allowed", "")
    for error in story.after(record):
        old = before.get(error.name)
        made.add_row(
            cell(error.name),
            story.shown(old, tolerance.stat) if old else "-",
            story.shown(error, tolerance.stat),
            figure(error.median),
            story.allowed(tolerance, error.name),
            "" if record.get("metric") else "pass" if error.passes(tolerance) else "FAIL",
        )
    return made


def _pins(record: Record) -> Table:
    columns = ("layer", "op", "cause", "what shows it", "error/allowed without it")
    made = table("Layers that stay in FP32", *columns, names=4)
    for pin in record["pins"][:MOST_ROWS]:
        tried = bool(pin["without"]) and pin["without_excess"] is not None
        without = story.times(pin["without_excess"]) if tried else "not finite" if pin["without"] else "-"
        made.add_row(cell(pin["name"]), cell(pin["op"]), cell(pin["cause"]), cell(pin["cause_evidence"]), without)
    _say_more(made, len(record["pins"]))
    return made


def changes(found: Difference) -> Iterator[Table | str]:
    """The differences between run A and run B: tables, and lines of text between them."""
    if found.same:
        yield "Nothing differs but the date and the seconds."
        return
    kinds = Counter(pin.change for pin in found.pins)
    a, b = len(found.pins) - kinds["added"], len(found.pins) - kinds["removed"]
    verdict = {"pass": "B is within tolerance.", "fail": "B misses the tolerance."}.get(found.verdict, "")
    yield f"{a} pins in A, {b} in B: {kinds['added']} added, {kinds['removed']} removed. {verdict}".rstrip()
    yield ""
    yield _changed_outputs(found)
    if found.pins:
        yield ""
        yield _changed_pins(found)
    unshared = [Fact(name, "yes", None) for name in found.gone] + [Fact(name, None, "yes") for name in found.new]
    for title, facts in (
        ("What FP16 does to a layer", found.causes),
        (f"Layers of one model alone: {len(found.gone)} of A, {len(found.new)} of B", unshared),
        ("What else differs", found.facts),
    ):
        if facts:
            yield ""
            yield _facts(title, facts)


def _changed_outputs(found: Difference) -> Table:
    columns = ("all FP16, A", "all FP16, B", "plan, A", "plan, B", "B / A", "allowed, A", "allowed, B")
    made = table("Outputs, worst sample", "output", *columns)
    for output in found.outputs[:MOST_ROWS]:
        made.add_row(
            cell(output.name),
            *(_error(error, tolerance) for error, tolerance in zip(output.fp16, found.tolerances, strict=True)),
            *(_error(error, tolerance) for error, tolerance in zip(output.plan, found.tolerances, strict=True)),
            _times(*output.plan),
            *(story.allowed(tolerance, output.name) for tolerance in found.tolerances),
        )
    _say_more(made, len(found.outputs))
    return made


def _changed_pins(found: Difference) -> Table:
    order = ("added", "removed", "changed", "kept")
    columns = ("layer", "", "precision", "cause", "error/allowed without it, A", "B")
    made = table("Pins", *columns, names=4)
    for pin in sorted(found.pins, key=lambda pin: order.index(pin.change))[:MOST_ROWS]:
        without = (
            "-" if times is None else "not finite" if times == float("inf") else figure(times) for times in pin.without
        )
        made.add_row(cell(pin.name), pin.change, _arrow(*pin.precision), cell(_arrow(*pin.cause)), *without)
    _say_more(made, len(found.pins))
    return made


def _facts(title: str, facts: Sequence[Fact]) -> Table:
    made = table(title, "", "A", "B", names=3)
    for fact in facts[:MOST_ROWS]:
        made.add_row(cell(fact.what), _value(fact.a), _value(fact.b))
    _say_more(made, len(facts))
    return made


def _value(value: object) -> Text:
    if isinstance(value, bool):
        return cell("yes" if value else "no")
    return cell("-" if value in (None, "") else str(value))


def _arrow(a: str | None, b: str | None) -> str:
    if a is None or b is None or a == b:
        return a or b or ""
    return f"{a or '-'} → {b or '-'}"


def _say_more(made: Table, count: int) -> None:
    if count > MOST_ROWS:
        made.add_row(f"... and {count - MOST_ROWS} more")


def _error(error: TensorError | None, tolerance: Tolerance) -> str:
    return story.shown(error, tolerance.stat) if error else "-"


def _times(a: TensorError | None, b: TensorError | None) -> str:
    """The largest error of B over that of A, as text."""
    if a is None or b is None or a.non_finite or b.non_finite or not a.max:
        return "-"
    return figure(b.max / a.max)
