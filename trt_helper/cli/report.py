"""`trt-helper report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def run(
    record: Annotated[Path, typer.Argument(metavar="RUN.json", help="What locate wrote.", show_default=False)],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE.html", help="[default: beside the record]", show_default=False),
    ] = None,
    engine: Annotated[
        Path | None,
        typer.Option(
            metavar="ENGINE.trt.json",
            help="What convert wrote beside the engine. [default: the one beside the record that belongs to it]",
            show_default=False,
        ),
    ] = None,
    bench: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.bench.json",
            help="What bench --json said. [default: the one beside the record that belongs to it]",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Show a run as one HTML file that opens offline, and in short as tables."""
    from trt_helper.cli.console import show
    from trt_helper.errors import MachineError
    from trt_helper.report.read import find_bench, find_engine, read_bench, read_engine, read_record
    from trt_helper.report.tables import summary
    from trt_helper.system.files import require_writable, write_atomically

    try:
        from trt_helper.report.page import page
    except ImportError as error:
        raise MachineError(
            f"the report needs the Python package {error.name}", fix="pip install 'trt-helper[report]'"
        ) from error
    target = output or record.with_suffix(".html")
    require_writable(target, keep=(record, engine, bench))
    run_record = read_record(record)
    proof = engine or find_engine(run_record, record)
    built = read_engine(proof, run_record) if proof else None
    timed = bench or find_bench(run_record, record)
    speed = read_bench(timed, run_record) if timed else None
    write_atomically(target, page(run_record, built, speed).encode())
    show(*summary(run_record, built, speed), "", f"Report written to {target}.")
