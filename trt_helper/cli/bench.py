"""`trt-helper bench`."""

from __future__ import annotations

import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trt_helper.cli import options

if TYPE_CHECKING:
    from trt_helper.bench.measure import Benched
    from trt_helper.bench.rows import Estimated
    from trt_helper.onnx_model.cost import Gpu
    from trt_helper.onnx_model.graph import Graph
    from trt_helper.values import Plan


def run(
    model: options.OptionalModel = None,
    config: options.OptionalConfig = None,
    inputs: options.Inputs = None,
    shapes: options.Shapes = None,
    batch: Annotated[
        str | None, typer.Option(metavar="N[,N...]", help="Batch sizes, such as 1,8,32.", show_default=False)
    ] = None,
    streams: Annotated[int, typer.Option(min=1, max=1024, metavar="N", help="Inferences at the same time.")] = 1,
    repeats: Annotated[int, typer.Option(min=1, metavar="N", help="Inferences that are timed.")] = 30,
    warm_up: Annotated[int, typer.Option(min=0, metavar="N", help="Inferences before them, each stream.")] = 3,
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Time PyTorch too: what export was given.", show_default=False)
    ] = None,
    module: Annotated[
        str | None,
        typer.Option("--model", metavar="FILE_OR_MODULE:CALLABLE", help="As for export.", show_default=False),
    ] = None,
    model_arg: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="As for export.", show_default=False)
    ] = None,
    trust_checkpoint: Annotated[bool, typer.Option("--trust-checkpoint", help="As for export.")] = False,
    gpu: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Estimate for this GPU; repeat. [default: all known]")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Time the model on this machine, and estimate what the plan costs on a GPU."""
    from trt_helper.bench.backends import Engines, Module
    from trt_helper.bench.measure import Timing, batches, estimate, measure
    from trt_helper.cli import common
    from trt_helper.cli import tables as text
    from trt_helper.cli.console import progress, show, show_json, warn
    from trt_helper.config.evidence import recorded_additions, recorded_guards
    from trt_helper.export.specs import parse_arguments
    from trt_helper.inputs.shapes import parse_shapes, samples_in

    plan_file, path = common.open_config(config, model)
    gpus, sizes = _gpus(gpu or ()), _sizes(batch)
    parse_arguments(model_arg or ())
    if checkpoint is None and (module or model_arg or trust_checkpoint):
        raise typer.BadParameter("--model, --model-arg and --trust-checkpoint go with --checkpoint")
    graph, plan = common.open_plan(plan_file, path)
    samples = batches(graph, samples_in(graph, inputs or (), None, parse_shapes(shapes or (), graph))[0], sizes)
    with progress() as report:
        found = measure(
            graph,
            plan,
            samples,
            Timing(repeats, warm_up, streams),
            module=Module(checkpoint, module, model_arg or (), trust_checkpoint) if checkpoint else None,
            engines=Engines(recorded_guards(plan_file, graph.candidates), plan_file.exclude_tactics),
            on_progress=report,
        )
        estimated = estimate(graph, plan, samples, gpus)
    for message in found.warnings:
        warn(message)
    if as_json:
        added = plan.fp32 & recorded_additions(plan_file)
        show_json(_json(graph, plan, sorted(added), next(iter(samples.values())).source, found, estimated))
    else:
        show(text.measured(found.measured), "", text.not_run(found.not_run), "", text.estimated(estimated))


def _json(
    graph: Graph, plan: Plan, added: list[str], source: str, found: Benched, estimated: list[Estimated]
) -> dict[str, Any]:
    from trt_helper.system.machine import find_gpu, platform_line
    from trt_helper.system.versions import versions

    return {
        "schema": 1,
        "command": "bench",
        "model": {"path": str(graph.source.path), "sha256": graph.source.sha256},
        "fp32_layers": list(graph.in_order(plan.fp32)),
        "bf16_layers": list(graph.in_order(plan.bf16)),
        "added": added,
        "sample": source,
        "measured": [asdict(one) for one in found.measured],
        "not_run": [asdict(one) for one in found.not_run],
        "estimated": [asdict(one) for one in estimated],
        "warnings": list(found.warnings),
        "platform": platform_line(),
        "cpus": os.cpu_count(),
        "gpu": find_gpu().name or None,
        "versions": versions(),
    }


def _sizes(text: str | None) -> list[int]:
    from trt_helper.errors import UsageError

    if text is None:
        return []
    if not re.fullmatch(r"[1-9][0-9]{0,6}(,[1-9][0-9]{0,6})*", text):
        raise UsageError(f"--batch {text!r} is no list of batch sizes", fix="such as --batch 8 or --batch 1,8,32")
    return list(dict.fromkeys(int(size) for size in text.split(",")))


def _gpus(names: tuple[str, ...] | list[str]) -> list[Gpu]:
    from trt_helper.onnx_model.cost import GPUS

    for name in names:
        if name.lower() not in GPUS:
            known = ", ".join(one.name for one in GPUS.values())
            raise typer.BadParameter(f"--gpu {name!r} is not known; known are {known}")
    return [GPUS[name.lower()] for name in names] or list(GPUS.values())
