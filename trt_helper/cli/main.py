"""The commands, their exit statuses, and how errors are shown."""

from __future__ import annotations

import io
import logging
import os
import sys
import traceback
import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from trt_helper import __version__
from trt_helper.cli import bench, compare, convert, doctor, export, gate, inspect, locate, report
from trt_helper.cli.console import complain
from trt_helper.errors import TrtHelperError

BUG, INTERRUPTED = 70, 130


class _Commands(TyperGroup):
    """Prints two lines when a command was interrupted; typer would print nothing."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            complain("interrupted", "run the same command again")
            raise typer.Exit(INTERRUPTED) from None


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


def main() -> None:
    """Run the command line and leave with its exit status."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # 1.29 and later send the model's name and hashes away
    logging.getLogger().addHandler(logging.NullHandler())  # logs and warnings of libraries are not for the user
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # where a terminal has no Unicode
            stream.reconfigure(errors="replace")
    try:
        app(prog_name="trt-helper")
    except TrtHelperError as error:
        complain(error.message, error.fix)
        sys.exit(error.exit_status)
    except MemoryError:
        complain("out of memory", "free some, or give fewer or smaller samples")
        sys.exit(TrtHelperError.exit_status)
    except Exception:
        traceback.print_exc()
        complain("this is a bug in trt-helper", "please report it with the lines above")
        sys.exit(BUG)
