"""The commands, their exit statuses, and how errors are shown."""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn, TextIO

import typer
from typer.core import TyperGroup

from trt_helper import __version__
from trt_helper.cli import bench, compare, convert, doctor, export, gate, inspect, locate, report
from trt_helper.cli.console import complain
from trt_helper.errors import INTERRUPTED, TrtHelperError

BUG, NOBODY_READS = 70, 141  # 141: as a process that SIGPIPE ended
CANNOT_WRITE = (errno.ENOSPC, errno.EIO, errno.EFBIG, errno.EDQUOT)


class _EndedError(Exception):
    """Ctrl-C, or nobody reads stdout, in a form that typer does not turn into status 1 or an exit without a word."""

    def __init__(self, status: int) -> None:
        super().__init__()
        self.status = status


class _Commands(TyperGroup):
    """The commands; how they end is left to `main`."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with _left_to_main():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        with _left_to_main():
            return super().invoke(ctx)


@contextmanager
def _left_to_main() -> Iterator[None]:
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        raise _EndedError(INTERRUPTED) from None
    except BrokenPipeError:  # `| head -1`
        raise _EndedError(NOBODY_READS) from None


def _drop_stdout() -> None:
    """Send what is left in the buffer of stdout nowhere: it would fail again when Python ends."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


app = typer.Typer(
    name="trt-helper",
    cls=_Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("export")(export.run)
app.command("locate")(locate.run)
app.command("convert")(convert.run)
app.command("compare")(compare.run)
app.command("gate")(gate.run)
app.command("report")(report.run)
app.command("inspect")(inspect.run)
app.command("bench")(bench.run)
app.command("doctor")(doctor.run)


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"trt-helper {__version__}\n")
        raise typer.Exit


@app.callback()
def top(
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    """Find the few layers that must stay in FP32, build the TensorRT engine with them, prove it, guard it.

    Exit status: 0 done and accurate, 1 tolerance missed, 2 usage, 3 input or environment must change,
    4 engine build failed, 5 verdicts disagree, 70 a bug in trt-helper, 130 interrupted.
    """


def _nowhere() -> TextIO:
    return Path(os.devnull).open("w", encoding="utf-8")


def main() -> None:
    """Run the command line and leave with its exit status."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # 1.29 and later send the model's name and hashes away
    logging.getLogger().addHandler(logging.NullHandler())  # logs and warnings of libraries are not for the user
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    sys.stdout, sys.stderr = (stream or _nowhere() for stream in (sys.stdout, sys.stderr))  # None where it is closed
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # where a terminal has no Unicode
            stream.reconfigure(errors="replace")
    try:
        app(prog_name="trt-helper")
    except (_EndedError, KeyboardInterrupt) as ended:
        if isinstance(ended, _EndedError) and ended.status == NOBODY_READS:
            _drop_stdout()
            sys.exit(NOBODY_READS)
        complain("interrupted", "run the same command again")
        sys.exit(INTERRUPTED)
    except TrtHelperError as error:
        complain(error.message, error.fix)
        sys.exit(error.exit_status)
    except OSError as error:
        if error.errno not in CANNOT_WRITE:  # all other files are written by functions that say which
            _end_with_bug()
        _drop_stdout()
        complain(f"stdout cannot be written: {error.strerror}", "make room, or send it elsewhere")
        sys.exit(TrtHelperError.exit_status)
    except MemoryError:
        complain("out of memory", "free some, or give fewer or smaller samples")
        sys.exit(TrtHelperError.exit_status)
    except Exception:
        _end_with_bug()


def _end_with_bug() -> NoReturn:
    traceback.print_exc()
    complain("this is a bug in trt-helper", "please report it with the lines above")
    sys.exit(BUG)
