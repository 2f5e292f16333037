"""`trt-helper locate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trt_helper.cli import options

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
        Path | None, typer.Option("--config", "-c", metavar="FILE.yaml", help="Take the tolerance from here.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE.yaml", help="The plan.")] = DEFAULT_OUTPUT,
    as_json: options.AsJson = False,
) -> None:
    """Find the smallest set of layers that must stay in FP32."""
    from trt_helper import text
    from trt_helper.cli import common
    from trt_helper.cli.console import complain, progress, show, show_json, warn
    from trt_helper.config import Config, read_config, write_config
    from trt_helper.files import require_writable
    from trt_helper.locate import Event, locate
    from trt_helper.record import evidence_yaml, located_json
    from trt_helper.search.strategy import Stop
    from trt_helper.shapes import ranges_of
    from trt_helper.values import Plan, Trial, Verdict

    require_writable(output, keep=(model, *(inputs or ())))
    graph = common.open_graph(model)
    base = read_config(config).tolerance if config else None
    tolerance = common.tolerance(graph, atol, rtol, check_error_stat, base)
    samples = common.open_samples(graph, inputs, data_loader_script, shapes)
    sizes = {"shapes": {name: [list(s) for s in sizes] for name, sizes in ranges_of(samples).items()}}
    saved: list[Plan] = []

    def save(plan: Plan, evidence: dict[str, object]) -> None:
        pins = tuple(name for name in graph.candidates if name in plan.fp32)
        write_config(
            Config(
                model=model,
                sha256=graph.source.sha256,
                fp32_layers=pins,
                tolerance=tolerance,
                evidence={**evidence, **sizes},
            ),
            output,
        )

    def keep_best(event: Event) -> None:
        """The best plan so far is always on disk."""
        passed = isinstance(event, Trial) and event.verdict is Verdict.PASS and event.plan != graph.all_pinned()
        if isinstance(event, Trial) and passed and (not saved or len(event.plan) < len(saved[-1])):
            saved.append(event.plan)
            save(event.plan, {"minimal": False})
        if not isinstance(event, Stop | Trial):
            report(event.because, 0, 1)

    try:
        with progress() as report:
            located = locate(graph, samples, tolerance, every_layer=as_json, on_event=keep_best, on_progress=report)
    except KeyboardInterrupt:
        if saved:
            complain(
                f"interrupted; the best plan so far ({len(saved[-1])} pins) is in {output}",
                "run it again to go on",
            )
        else:
            complain("interrupted before any plan passed; nothing was written", "run it again")
        raise typer.Exit(130) from None
    save(located.plan, evidence_yaml(located))
    for warning in located.warnings:
        warn(warning)
    if as_json:
        show_json(located_json(located))
    else:
        show(text.before_after(located))
        if located.pins:
            show("", text.pins(located))
        show("", text.summary(located, output))
    raise typer.Exit(0 if located.after.verdict is Verdict.PASS else 1)
