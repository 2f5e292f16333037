"""Where things are said: results on stdout, everything else on stderr, bars on a terminal only."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

WIDE = 160  # columns, where stdout is no terminal and nobody would see a table fold
LONGEST_LINE = 1000  # characters of one message


def stdout() -> Console:
    """For the result."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else WIDE)


def stderr() -> Console:
    """For people."""
    return Console(stderr=True, highlight=False)


def show(*results: Table | Text | str) -> None:
    """Print results to stdout; text from models is never read as markup."""
    console = stdout()
    for result in results:
        console.print(Text(result) if isinstance(result, str) else result)


def show_json(data: Any) -> None:
    """Print one JSON object to stdout: all ASCII, so that no name acts on a terminal or fails to encode."""
    sys.stdout.write(json.dumps(data, allow_nan=False, indent=2) + "\n")


def warn(message: str) -> None:
    """One warning to stderr."""
    stderr().print(Text.assemble(("warning: ", "yellow"), _one_line(message)), soft_wrap=True)


def note(message: str) -> None:
    """One remark to stderr."""
    stderr().print(Text.assemble(("note: ", "bold"), _one_line(message)), soft_wrap=True)


def complain(message: str, fix: str) -> None:
    """The two lines of an error, to stderr."""
    console = stderr()
    console.print(Text.assemble(("error: ", "bold red"), _one_line(message)), soft_wrap=True)
    console.print(Text.assemble(("  fix: ", "bold"), _one_line(fix)), soft_wrap=True)


def _one_line(text: str) -> str:
    """`text` as one line that a terminal shows and does not obey, cut in the middle when long."""
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.splitlines()))
    half = LONGEST_LINE // 2
    return line if len(line) <= LONGEST_LINE else f"{line[:half]}…{line[-half:]}"


class Report(Protocol):
    """Told what is done, how much of it, out of how much (None: nobody knows), and what exactly just now."""

    def __call__(self, what: str, done: int, total: int | None, detail: str = "", /) -> None: ...


@contextmanager
def progress() -> Iterator[Report]:
    """A bar on stderr, if that is a terminal: one for each `what` that is done, and only the last one is shown."""
    console = stderr()
    if not console.is_terminal:
        yield lambda *_told: None
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def report(what: str, done: int, total: int | None, detail: str = "") -> None:
            if what not in tasks:
                tasks[what] = bars.add_task("")
            for name, task in tasks.items():
                bars.update(task, visible=name == what)
            shown = _one_line(f"{what}: {detail}" if detail else what)
            bars.update(tasks[what], description=shown, completed=done, total=total)

        yield report
