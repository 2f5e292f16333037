"""`trt-helper bench`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from trt_helper.cli import options

if TYPE_CHECKING:
    from trt_helper.cost import Gpu


def run(
    model: options.OptionalModel = None,
    config: options.OptionalConfig = None,
    inputs: options.Inputs = None,
    shapes: options.Shapes = None,
    gpu: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Estimate for this GPU; repeat. [default: all known]")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, metavar="N", help="Inferences that are timed.")] = 30,
    streams: Annotated[int, typer.Option(min=1, metavar="N", help="Inferences at the same time.")] = 1,
    as_json: options.AsJson = False,
) -> None:
    """Time the model on this machine, and estimate what the plan costs on a GPU."""
    from trt_helper import text
    from trt_helper.bench import estimate, measure
    from trt_helper.cli import common
    from trt_helper.cli.console import progress, show, show_json
    from trt_helper.reference import versions

    plan_file, path = common.open_config(config, model)
    gpus = _gpus(gpu or ())
    graph, plan = common.open_plan(plan_file, path)
    sample = common.open_samples(graph, inputs, None, shapes)[0]
    with progress() as report:
        measured = measure(
            graph, plan, sample, repeats=repeats, streams=streams, on_run=lambda done, of: report("timing", done, of)
        )
    estimated = estimate(graph, plan, sample, gpus)
    if as_json:
        show_json(
            {
                "schema": 1,
                "model": {"path": str(graph.source.path), "sha256": graph.source.sha256},
                "sample": sample.source,
                "measured": [asdict(one) for one in measured],
                "estimated": [{**asdict(one), "gpu": one.gpu.name} for one in estimated],
                "versions": versions(),
            }
        )
    else:
        show(text.measured(measured), "", text.estimated(estimated))


def _gpus(names: tuple[str, ...] | list[str]) -> list[Gpu]:
    from trt_helper.cost import GPUS

    for name in names:
        if name.lower() not in GPUS:
            known = ", ".join(one.name for one in GPUS.values())
            raise typer.BadParameter(f"--gpu {name!r} is not known; known are {known}")
    return [GPUS[name.lower()] for name in names] or list(GPUS.values())
