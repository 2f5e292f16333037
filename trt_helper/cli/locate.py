"""`trt-helper locate`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trt_helper.cli import options

if TYPE_CHECKING:
    from trt_helper.cli.console import Report
    from trt_helper.onnx_model.graph import Graph
    from trt_helper.search.graph_search import Event
    from trt_helper.values import Tolerance, Trial

ANSWER_SECONDS = 10.0  # that the end of a search waits for what the builder will refuse


def run(
    model: options.ModelArgument,
    inputs: options.Inputs = None,
    data_loader_script: options.LoaderScript = None,
    atol: options.Atol = None,
    rtol: options.Rtol = None,
    check_error_stat: options.Stat = None,
    shapes: options.Shapes = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", metavar="FILE.yaml", help="Tolerance and tactics from here."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE.yaml", help="The plan.")] = Path(options.PLAN),
    metric: Annotated[
        str | None,
        typer.Option(metavar="FILE.py:function", help="Judge by this figure instead.", show_default=False),
    ] = None,
    metric_threshold: Annotated[
        float | None, typer.Option(metavar="T", help="What the figure must reach.", show_default=False)
    ] = None,
    max_pins: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="The best plan with at most N pins.", show_default=False)
    ] = None,
    max_trials: Annotated[
        int | None, typer.Option(min=2, metavar="N", help="Stop after N trials.", show_default=False)
    ] = None,
    rewrites: Annotated[
        str,
        typer.Option("--cures", metavar="KIND,...", help="What may be done: pins, constants, norms, logs, rows, bf16."),
    ] = "pins",
    time_limit: Annotated[
        float | None, typer.Option(min=0, metavar="S", help="Stop after S seconds.", show_default=False)
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", help="The run record. [default: beside the plan]", show_default=False),
    ] = None,
    memory_limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="MIB",
            help="Memory for arrays. [default: half the free]",
            show_default=False,
        ),
    ] = None,
    runner: options.Runner = "auto",
    repeats: options.Repeats = 2,
    kernels: options.Kernels = "typical",
    robust: Annotated[bool, typer.Option("--robust", help="Pass with typical, exact and worst kernels.")] = False,
    margin: Annotated[float, typer.Option(metavar="F", help="Use this part of the tolerance only.")] = 1.0,
    ray: options.Ray = None,
    as_json: options.AsJson = False,
) -> None:
    """Find the smallest set of layers that must stay in FP32."""
    from trt_helper.cli import common, tables
    from trt_helper.cli.console import note, progress, show, show_json, warn
    from trt_helper.config.plan_file import Config, read_config
    from trt_helper.inputs.metric import load_metric
    from trt_helper.report.record import located_json, record_path, write_record
    from trt_helper.search.budget import Budget
    from trt_helper.search.locate import locate
    from trt_helper.search.saved import SavedSearch
    from trt_helper.system.array_store import ArrayStore
    from trt_helper.system.files import make_folder_of, require_writable
    from trt_helper.values import READINGS, Reading

    kinds = _kinds(rewrites)
    if (metric is None) != (metric_threshold is None):
        raise typer.BadParameter("--metric and --metric-threshold go together")
    _require_emulated(runner, kernels, robust=robust)
    _require_margin(margin, metric)
    run_record = record or record_path(output)
    for target in (output, run_record):
        require_writable(target, keep=(model, *(inputs or ())))
    if output.absolute() == run_record.absolute():
        raise typer.BadParameter("-o and --record name the same file")
    graph = common.open_graph(model)
    base = read_config(config) if config else Config()
    tolerance = common.tolerance(graph, atol, rtol, check_error_stat, base.tolerance if config else None)
    make_folder_of(output)
    store = ArrayStore.within(memory_limit << 20 if memory_limit else None, output.absolute().parent, on_file=warn)
    samples = common.open_samples(graph, inputs, data_loader_script, shapes, store)
    judged_by = load_metric(metric, metric_threshold) if metric and metric_threshold is not None else None
    provenance = {
        **_provenance(inputs, data_loader_script, shapes, tolerance, output),
        **_judged_with(kernels, robust=robust, margin=margin),
    }
    readings = READINGS if robust else (Reading(kernels),)
    tactics = base.exclude_tactics
    with common.judging(runner, repeats, ray, graph, samples, tactics, readings) as (runner_name, oracle):
        if runner_name != "emulate":
            provenance["runner"] = runner
        with _builder_asked(graph, runner), _saved_plan_is_named(), progress() as report:
            located = locate(
                graph,
                samples,
                tolerance,
                rewrites=kinds,
                metric=judged_by,
                budget=Budget(max_trials, max_pins, time_limit),
                saved=SavedSearch(output, provenance, tactics),
                every_layer=as_json or record is not None,
                oracle=oracle,
                runner=runner_name,
                kernels=Reading(kernels),
                robust=robust,
                margin=margin,
                store=store,
                on_event=_Bar(report).show,
                on_warning=warn,
                on_progress=report,
                on_note=note,
            )
    result = located_json(located)
    write_record(run_record, result, "locate", common.command_line())
    if as_json:
        show_json(result)
    else:
        show(*tables.located(located, output, run_record))
    raise typer.Exit(_status(located.after))


@contextmanager
def _builder_asked(graph: Graph, runner: str) -> Iterator[None]:
    """Ask the installed builder, beside the search, which nodes it will refuse, and warn as soon as it has answered."""
    from threading import Thread

    from trt_helper.builder.refusals import in_one_line, may_refuse, refusals
    from trt_helper.cli.console import warn

    def ask() -> None:
        if found := refusals(graph, tensorrt=runner == "tensorrt"):
            warn(in_one_line(found))

    if not may_refuse(graph):
        yield
        return
    thread = Thread(target=ask, daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join(ANSWER_SECONDS)


def _require_emulated(runner: str, kernels: str, *, robust: bool) -> None:
    if runner not in ("auto", "emulate") and (robust or kernels != "typical"):
        raise typer.BadParameter(f"--kernels and --robust are about emulated FP16; --runner {runner} runs real kernels")
    if robust and kernels != "typical":
        raise typer.BadParameter("--robust judges by all of --kernels; leave that out")


def _require_margin(margin: float, metric: str | None) -> None:
    if not 0 < margin <= 1:
        raise typer.BadParameter(f"--margin {margin:g}: a part of the tolerance is above 0 and at most 1")
    if margin < 1 and metric:
        raise typer.BadParameter("--margin is a part of the tolerance; with a metric raise --metric-threshold instead")


def _judged_with(kernels: str, *, robust: bool, margin: float) -> dict[str, Any]:
    """What else verdicts depend on, for `gate` and for a search that is resumed."""
    return {
        **({"judged-with": "robust" if robust else kernels} if robust or kernels != "typical" else {}),
        **({"margin": margin} if margin < 1 else {}),
    }


def _kinds(rewrites: str) -> frozenset[str]:
    from trt_helper.values import REWRITE_KINDS

    kinds = frozenset(rewrites.split(","))
    if not kinds <= frozenset(REWRITE_KINDS):
        raise typer.BadParameter(f"--cures {rewrites!r}: the kinds are {', '.join(REWRITE_KINDS)}")
    return kinds


def _status(answer: Trial) -> int:
    """0 within tolerance, 5 where repeats disagree about it, else 1."""
    from trt_helper.values import DISAGREE, Verdict

    if answer.verdict is Verdict.PASS:
        return 0
    return 5 if answer.verdict is Verdict.UNRESOLVED and answer.why.startswith(DISAGREE) else 1


def _provenance(
    inputs: list[Path] | None, script: str | None, shapes: list[str] | None, tolerance: Tolerance, output: Path
) -> dict[str, Any]:
    """The inputs and the tolerance of the search, for `gate`; paths are relative to the plan's folder."""
    from trt_helper.config.plan_file import seen_from, tolerance_yaml

    return {
        **({"inputs": [seen_from(output.parent, path) for path in inputs]} if inputs else {}),
        **({"data-loader-script": script} if script else {}),
        **({"given-shapes": shapes} if shapes else {}),
        "tolerance": tolerance_yaml(tolerance),
    }


class _Bar:
    """Shows the trials of a search in a progress bar."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._judged = 0

    def show(self, event: Event) -> None:
        from trt_helper.search.strategy import Try
        from trt_helper.values import Trial

        if isinstance(event, Trial):
            self._judged += 1
        elif isinstance(event, Try):
            total = None if event.left is None else self._judged + 1 + event.left
            self._report("search", self._judged, total, event.because)


@contextmanager
def _saved_plan_is_named() -> Iterator[None]:
    """Leave with status 130 after Ctrl-C, and say which plan was saved."""
    from trt_helper.cli.console import complain
    from trt_helper.errors import INTERRUPTED
    from trt_helper.search.saved import SearchInterrupted

    try:
        yield
    except SearchInterrupted as stopped:
        state = (
            "interrupted before any small plan passed; no plan was written"
            if stopped.best is None
            else f"interrupted; the best plan so far ({len(stopped.best)} pins) is in {stopped.output}"
        )
        complain(state, "run the same command again: it goes on where it was")
        raise typer.Exit(INTERRUPTED) from None
