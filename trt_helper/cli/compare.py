"""`trt-helper compare`."""

from __future__ import annotations

from typing import Annotated

import typer

from trt_helper.cli import options


def run(
    model: options.OptionalModel = None,
    config: options.OptionalConfig = None,
    inputs: options.Inputs = None,
    data_loader_script: options.LoaderScript = None,
    atol: options.Atol = None,
    rtol: options.Rtol = None,
    check_error_stat: options.Stat = None,
    shapes: options.Shapes = None,
    rows: Annotated[int, typer.Option("--rows", min=1, help="Layers to show; --json has all.")] = 40,
    as_json: options.AsJson = False,
) -> None:
    """Show what FP16 does to every layer and output, against FP32."""
    from trt_helper import text
    from trt_helper.cli import common
    from trt_helper.cli.console import progress, show, show_json
    from trt_helper.compare import compare_all
    from trt_helper.config import Config, model_path, read_config, require_same_model
    from trt_helper.emulate import Emulator
    from trt_helper.evidence import survey
    from trt_helper.record import compared_json
    from trt_helper.reference import references

    plan_file = read_config(config) if config else Config()
    if model is None and plan_file.model is None:
        raise typer.BadParameter("give a model, or a --config that names one")
    graph = common.open_graph(model_path(plan_file, model), plan_file.cures)
    require_same_model(plan_file, graph.source.sha256, graph.source.path)
    plan = graph.plan(plan_file.fp32_layers, plan_file.bf16_layers)
    tolerance = common.tolerance(graph, atol, rtol, check_error_stat, plan_file.tolerance)
    samples = common.open_samples(graph, inputs, data_loader_script, shapes)
    emulator = Emulator(graph)
    with progress() as report:
        expected = references(graph, samples)
        errors = []
        for index, sample in enumerate(samples):
            report("outputs", index, len(samples))
            errors.append(compare_all(emulator.run(plan, sample.feed), expected[index], tolerance))
        total, done = len(graph.layers) * len(samples), 0

        def count() -> None:
            nonlocal done
            done += 1
            report("layers", done, total)

        reports = survey(emulator, plan, [sample.feed for sample in samples], tolerance, count)
    passed = all(error.passes(tolerance) for outputs in errors for error in outputs)
    sources = [sample.source for sample in samples]
    if as_json:
        show_json(compared_json(graph, plan, tolerance, dict(zip(sources, errors, strict=True)), reports))
    else:
        show(text.layers(reports, plan.fp32, rows), "", text.per_sample(sources, errors, tolerance))
    raise typer.Exit(0 if passed else 1)
