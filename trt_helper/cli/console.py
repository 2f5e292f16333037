"""Output of commands: results on stdout, everything else on stderr, progress bars on a terminal only."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, Protocol, cast

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

from trt_helper.format.text import no_commands

WIDE = 160  # columns of tables where stdout is no terminal
LONGEST_LINE = 1000  # characters of one message


class _InCi:
    """A stream whose lines start no command of a CI runner: names in them come from models."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write `text` without commands."""
        return self._stream.write(no_commands(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _harmless(stream: IO[str]) -> IO[str]:
    """`stream`, made harmless where a CI runner reads it: GitHub Actions, Azure Pipelines."""
    in_ci = os.environ.get("GITHUB_ACTIONS") or os.environ.get("TF_BUILD")
    return cast("IO[str]", _InCi(stream)) if in_ci else stream


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to `main`: rich would exit with 1, which reads as a missed tolerance."""
        raise BrokenPipeError(errno.EPIPE, "nobody reads stdout")


def stdout() -> Console:
    """The console for results."""
    return _Console(file=_harmless(sys.stdout), highlight=False, width=None if sys.stdout.isatty() else WIDE)


def stderr() -> Console:
    """The console for messages."""
    return Console(file=_harmless(sys.stderr), highlight=False)


def show(*results: Table | Text | str) -> None:
    """Print results to stdout; text from models is never read as markup."""
    console = stdout()
    for result in results:
        console.print(Text(result) if isinstance(result, str) else result)


def show_json(data: Any) -> None:
    """Print one JSON object to stdout, all ASCII: no name can control a terminal or a CI runner, or fail to encode."""
    text = json.dumps(data, allow_nan=False, indent=2)
    sys.stdout.write(text.replace("##", r"\u0023\u0023") + "\n")  # `##[name]` anywhere in a line is a command


def warn(message: str) -> None:
    """Print a warning to stderr."""
    stderr().print(Text.assemble(("warning: ", "yellow"), _one_line(message)), soft_wrap=True)


def note(message: str) -> None:
    """Print a note to stderr."""
    stderr().print(Text.assemble(("note: ", "bold"), _one_line(message)), soft_wrap=True)


def complain(message: str, fix: str) -> None:
    """Print the two lines of an error to stderr."""
    console = stderr()
    console.print(Text.assemble(("error: ", "bold red"), _one_line(message)), soft_wrap=True)
    console.print(Text.assemble(("  fix: ", "bold"), _one_line(fix)), soft_wrap=True)


def _one_line(text: str) -> str:
    """`text` as one line without control characters, cut in the middle when long."""
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.splitlines()))
    half = LONGEST_LINE // 2
    return line if len(line) <= LONGEST_LINE else f"{line[:half]}…{line[-half:]}"


class Report(Protocol):
    """Called with what is being done, how much of it is done, out of how much (None if unknown), and a detail."""

    def __call__(self, what: str, done: int, total: int | None, detail: str = "", /) -> None: ...


@contextmanager
def progress() -> Iterator[Report]:
    """A progress bar on stderr, if that is a terminal. Each `what` has its own bar; only the current one is shown."""
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
