"""`trt-helper compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trt_helper.cli import options

if TYPE_CHECKING:
    from trt_helper.emulator.partial_sums import PartialSum
    from trt_helper.inputs.sample import Sample
    from trt_helper.onnx_model.graph import Graph
    from trt_helper.values import LayerReport, Plan, Reading, TensorError, Tolerance


def run(
    model: Annotated[
        Path | None,
        typer.Argument(
            metavar="MODEL.onnx|A.json", help="The model, else the one the config names.", show_default=False
        ),
    ] = None,
    other: Annotated[
        Path | None,
        typer.Argument(metavar="B.json", help="With A.json: the later of two run records.", show_default=False),
    ] = None,
    config: options.OptionalConfig = None,
    inputs: options.Inputs = None,
    data_loader_script: options.LoaderScript = None,
    atol: options.Atol = None,
    rtol: options.Rtol = None,
    check_error_stat: options.Stat = None,
    shapes: options.Shapes = None,
    reference: options.Reference = None,
    kernels: options.Kernels = "typical",
    rows: Annotated[int, typer.Option("--rows", min=1, help="Layers to show; --json has all.")] = 40,
    record: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Write the run record.", show_default=False)
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Show what FP16 does to every layer and output, against FP32; or what changed between two run records."""
    if other or (model and model.suffix == ".json"):
        given = (config, inputs, data_loader_script, atol, rtol, check_error_stat, shapes, reference, record)
        _compare_records(model, other, alone=all(option is None for option in given), as_json=as_json)
        return

    from trt_helper.cli import common
    from trt_helper.cli import tables as text
    from trt_helper.cli.console import show, show_json
    from trt_helper.report.record import compared_json, write_record
    from trt_helper.system.files import require_writable
    from trt_helper.values import Reading

    plan_file, path = common.open_config(config, model)
    if record:
        require_writable(record, keep=(path, config, *(inputs or ())))
    graph, plan = common.open_plan(plan_file, path)
    tolerance = common.tolerance(graph, atol, rtol, check_error_stat, plan_file.tolerance)
    samples = common.open_samples(graph, inputs, data_loader_script, shapes)
    original = common.open_reference(graph, reference)
    reading = Reading(kernels)
    errors, reports, sums = _measure(graph, plan, samples, tolerance, original, reading)
    passed = all(error.passes(tolerance) for outputs in errors for error in outputs)
    sources = [sample.source for sample in samples]
    result = compared_json(graph, plan, tolerance, list(zip(sources, errors, strict=True)), reports, reading, sums)
    if record:
        write_record(record, result, "compare", common.command_line())
    if as_json:
        show_json(result)
    else:
        show(text.layers(reports, plan.fp32, rows), "", text.per_sample(sources, errors, tolerance))
        if any(one.overflows for one in sums):
            show("", text.sums(sums))
    raise typer.Exit(0 if passed else 1)


def _measure(
    graph: Graph, plan: Plan, samples: list[Sample], tolerance: Tolerance, original: Graph, reading: Reading
) -> tuple[list[tuple[TensorError, ...]], tuple[LayerReport, ...], list[PartialSum]]:
    """The errors of every output of every sample against `original`, of every layer, and sums too large for half."""
    from trt_helper.cli.console import progress
    from trt_helper.emulator.compare import compare_all
    from trt_helper.emulator.emulator import Emulator
    from trt_helper.emulator.layer_errors import measure_layers
    from trt_helper.emulator.partial_sums import partial_sums
    from trt_helper.inputs.references import references

    emulator = Emulator(graph, reading=reading)
    with progress() as report:
        expected = references(original, samples)
        errors = []
        for index, sample in enumerate(samples):
            report("outputs", index, len(samples))
            errors.append(compare_all(emulator.run(plan, sample.feed), expected[index], tolerance))
        total, done = len(graph.layers) * len(samples), 0

        def count() -> None:
            nonlocal done
            done += 1
            report("layers", done, total)

        reports = measure_layers(emulator, plan, [sample.feed for sample in samples], tolerance, count)
        return errors, reports, partial_sums(emulator, plan.kept, samples[0].feed)


def _compare_records(a: Path | None, b: Path | None, *, alone: bool, as_json: bool) -> None:
    """Show the differences between two run records; the exit status is the verdict of the second one."""
    from trt_helper.cli.console import show, show_json
    from trt_helper.report.diff import difference, difference_json
    from trt_helper.report.read import read_record
    from trt_helper.report.tables import changes

    if a is None or b is None:
        raise typer.BadParameter("two run records are compared: give A.json and B.json")
    if not alone:
        raise typer.BadParameter("run records are compared as they are: only --json goes with them")
    before, after = read_record(a), read_record(b)
    found = difference(before, after)
    if as_json:
        show_json(difference_json(found, before, after))
    else:
        show(*changes(found))
    raise typer.Exit(0 if found.verdict == "pass" else 1)
