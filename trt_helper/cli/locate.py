"""`trt-helper locate`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trt_helper.cli import options

if TYPE_CHECKING:
    from trt_helper.inputs.metric import Metric
    from trt_helper.inputs.samples import Sample
    from trt_helper.onnx_model.graph import Graph
    from trt_helper.search.locate import Budget, Located
    from trt_helper.values import Plan, Tolerance, Trial

DEFAULT_OUTPUT = Path("fp32_layers.yaml")


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
        typer.Option("--config", "-c", metavar="FILE.yaml", help="Take tolerance and TRT_EXCLUDE_TACTIC from here."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE.yaml", help="The plan.")] = DEFAULT_OUTPUT,
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
        typer.Option("--cures", metavar="KIND,...", help="What may be done: pins, constants, norms, bf16."),
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
            help="Keep in a file what would not fit. [default: half of what is free]",
            show_default=False,
        ),
    ] = None,
    runner: options.Runner = "auto",
    repeats: options.Repeats = 2,
    ray: options.Ray = None,
    as_json: options.AsJson = False,
) -> None:
    """Find the smallest set of layers that must stay in FP32."""
    from trt_helper.cli import common
    from trt_helper.cli import tables as text
    from trt_helper.cli.console import show, show_json, warn
    from trt_helper.config.plan_file import Config, read_config
    from trt_helper.inputs.metric import load_metric
    from trt_helper.report.record import evidence_yaml, located_json, record_path, write_record
    from trt_helper.search.locate import Budget
    from trt_helper.system.array_store import ArrayStore
    from trt_helper.system.files import make_folder_of, require_writable

    kinds = _kinds(rewrites)
    if (metric is None) != (metric_threshold is None):
        raise typer.BadParameter("--metric and --metric-threshold go together")
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
    budget = Budget(max_trials, max_pins, time_limit)
    asked = _asked(inputs, data_loader_script, shapes, tolerance, output)
    with common.judging(runner, repeats, ray, graph, samples, base.exclude_tactics) as how:
        asked |= {"runner": runner} if "runner" in how else {}
        keeper = _Keeper(graph, samples, tolerance, output, judged_by, asked, base.exclude_tactics)
        how["store"] = store
        located = _search(keeper, budget, every_layer=as_json or record is not None, kinds=kinds, how=how)
    keeper.search(located.graph)
    keeper.save(located.plan, evidence_yaml(located))
    keeper.journal.remove()
    result = located_json(located)
    write_record(run_record, result, "locate", common.command_line())
    if as_json:
        show_json(result)
    else:
        show(text.before_after(located))
        if located.without_rewrite or located.plan.bf16:
            show("", text.rewrites(located))
        if located.plan.fp32:
            show("", text.pins(located))
        if located.intermediate_errors:
            show("", text.intermediate_errors(located.intermediate_errors, 20))
        show("", text.summary(located, output, run_record))
    raise typer.Exit(_status(located.after))


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


def _asked(
    inputs: list[Path] | None, script: str | None, shapes: list[str] | None, tolerance: Tolerance, output: Path
) -> dict[str, Any]:
    """What the answer belongs to, for `gate`: where the samples are, seen from the plan, and the tolerance."""
    from trt_helper.config.plan_file import seen_from, tolerance_yaml

    return {
        **({"inputs": [seen_from(output.parent, path) for path in inputs]} if inputs else {}),
        **({"data-loader-script": script} if script else {}),
        **({"given-shapes": shapes} if shapes else {}),
        "tolerance": tolerance_yaml(tolerance),
    }


class _Keeper:
    """Keeps the best plan so far and the journal on disk."""

    def __init__(
        self,
        graph: Graph,
        samples: list[Sample],
        tolerance: Tolerance,
        output: Path,
        metric: Metric | None,
        asked: dict[str, Any],
        tactics: tuple[Mapping[str, Any], ...],
    ) -> None:
        from trt_helper.format.json_values import tolerance_json
        from trt_helper.inputs.samples import digest
        from trt_helper.inputs.shapes import ranges_of
        from trt_helper.search.journal import Journal
        from trt_helper.system.versions import versions

        self.graph, self.samples, self.tolerance, self.output = graph, samples, tolerance, output
        self.metric = metric
        self.asked, self.tactics = asked, tactics
        self.best: Plan | None = None
        self.judged = 0  # trials
        self._shapes = {name: [list(shape) for shape in shapes] for name, shapes in ranges_of(samples).items()}
        subject = {
            "model": graph.source.sha256,
            "samples": digest([sample.feed for sample in samples]),
            "tolerance": tolerance_json(tolerance),
            "metric": [metric.name, metric.threshold] if metric else None,
            "versions": versions(),
            **({"runner": asked["runner"], "tactics": [dict(one) for one in tactics]} if "runner" in asked else {}),
        }
        self.journal = Journal(output.with_name(f"{output.name}.journal"), subject)

    def search(self, graph: Graph) -> None:
        """The plans that follow are for `graph`, which cures may have changed."""
        self.graph, self.best = graph, None

    def save(self, plan: Plan, evidence: dict[str, Any]) -> None:
        """Write `plan` to the output file."""
        from trt_helper.config.plan_file import Config, write_config

        config = Config(
            model=self.graph.source.path,
            sha256=self.graph.source.sha256,
            fp32_layers=tuple(name for name in self.graph.candidates if name in plan.fp32),
            exclude_tactics=self.tactics,
            rewrites=self.graph.rewrites,
            bf16_layers=tuple(name for name in self.graph.candidates if name in plan.bf16),
            tolerance=self.tolerance,
            evidence={**evidence, "shapes": self._shapes, **self.asked},
        )
        write_config(config, self.output)

    def see(self, trial: Trial) -> None:
        """Count a trial, and save its plan where it passes with fewer pins than all before it."""
        from trt_helper.values import Verdict

        self.judged += 1
        least = len(self.graph.candidates if self.best is None else self.best)
        if trial.verdict is Verdict.PASS and len(trial.plan) < least:
            self.best = trial.plan
            self.save(trial.plan, {"minimal": False})


def _search(
    keeper: _Keeper, budget: Budget, *, every_layer: bool, kinds: frozenset[str], how: dict[str, Any]
) -> Located:
    """Run the search; Ctrl-C leaves the best plan and the journal, an error leaves no journal."""
    from trt_helper.cli.console import complain, progress, warn
    from trt_helper.errors import TrtHelperError
    from trt_helper.search.locate import Event, locate
    from trt_helper.search.strategy import Try
    from trt_helper.search.with_rewrites import locate_with_rewrites
    from trt_helper.values import Trial

    def on_event(event: Event) -> None:
        if isinstance(event, Trial):
            keeper.see(event)
        elif isinstance(event, Try):
            total = None if event.left is None else keeper.judged + 1 + event.left
            report("search", keeper.judged, total, event.because)

    try:
        with keeper.journal, progress() as report:
            if keeper.journal.trials:
                warn(f"going on with an interrupted search: {keeper.journal.trials} trials are known")
            find = locate if kinds == {"pins"} else partial(locate_with_rewrites, kinds=kinds, on_graph=keeper.search)
            return find(
                keeper.graph,
                keeper.samples,
                keeper.tolerance,
                metric=keeper.metric,
                budget=budget,
                journal=keeper.journal,
                every_layer=every_layer,
                on_event=on_event,
                on_warning=warn,
                on_progress=report,
                **how,
            )
    except KeyboardInterrupt:
        best = keeper.best
        state = (
            "interrupted before any small plan passed; no plan was written"
            if best is None
            else f"interrupted; the best plan so far ({len(best)} pins) is in {keeper.output}"
        )
        complain(state, "run the same command again: it goes on where it was")
        raise typer.Exit(130) from None
    except TrtHelperError:
        keeper.journal.remove()
        raise
