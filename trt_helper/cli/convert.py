"""`trt-helper convert`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trt_helper.cli import options

if TYPE_CHECKING:
    from trt_helper.config import Config
    from trt_helper.convert import Converted
    from trt_helper.graph import Graph
    from trt_helper.shapes import Range


def run(
    model: options.OptionalModel = None,
    config: options.OptionalConfig = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE.trt", help="[default: beside the model]", show_default=False),
    ] = None,
    typed_onnx: Annotated[
        Path | None,
        typer.Option(metavar="FILE.onnx", help="Write the strongly typed ONNX here.", show_default=False),
    ] = None,
    no_engine: Annotated[bool, typer.Option("--no-engine", help="Write the typed ONNX only.")] = False,
    inputs: options.Inputs = None,
    shapes: options.Shapes = None,
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(metavar="CC", help="Such as 8.6 or 12.0; repeat. [default: all]", show_default=False),
    ] = None,
    workspace: Annotated[
        int | None, typer.Option(metavar="MIB", min=1, help="Workspace limit, MiB.", show_default=False)
    ] = None,
    builder_arg: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Any builder flag or setting.", show_default=False),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Build the TensorRT engine with the plan: typed ONNX, engine, proof of the pins."""
    from trt_helper.builder import BuildSettings
    from trt_helper.cli import common
    from trt_helper.cli.console import progress
    from trt_helper.config import Config, model_path, read_config, require_same_model
    from trt_helper.convert import convert, sidecar
    from trt_helper.files import make_folder_of, require_writable

    plan_file = read_config(config) if config else Config()
    if model is None and plan_file.model is None:
        raise typer.BadParameter("give a model, or a --config that names one")
    if no_engine and typed_onnx is None:
        raise typer.BadParameter("--no-engine needs --typed-onnx FILE: else nothing would be written")
    settings = BuildSettings(
        compute_capabilities=tuple(compute_capability or ()),
        workspace=workspace << 20 if workspace else None,
        extra=common.named_values(builder_arg or (), "--builder-arg"),
    )
    path = model_path(plan_file, model)
    engine = None if no_engine else output or path.with_suffix(".trt")
    for target in (engine, engine and sidecar(engine), typed_onnx):
        if target:
            require_writable(target, keep=(path, config, *(inputs or ())))
    if engine and typed_onnx and engine.absolute() == typed_onnx.absolute():
        raise typer.BadParameter("-o and --typed-onnx name the same file")
    graph = common.open_graph(path, plan_file.cures)
    require_same_model(plan_file, graph.source.sha256, path)
    if plan_file.exclude_tactics:
        common.refuse_tactics(plan_file)
    plan = graph.plan(plan_file.fp32_layers, plan_file.bf16_layers)
    ranges = _profile(graph, plan_file, inputs, shapes)
    if engine:
        make_folder_of(engine)
    with progress() as report:
        converted = convert(
            graph,
            plan,
            engine=engine,
            typed_onnx=typed_onnx,
            profile=ranges,
            settings=settings,
            on_progress=lambda phase, fraction: report(f"TensorRT: {phase}", round(100 * fraction), 100),
        )
    _show(converted, as_json=as_json)


def _show(converted: Converted, *, as_json: bool) -> None:
    from trt_helper import text
    from trt_helper.cli.console import show, show_json, warn
    from trt_helper.record import converted_json

    for message in text.conversion_warnings(converted):
        warn(message)
    if as_json:
        show_json(converted_json(converted))
    else:
        show(*text.conversion(converted))


def _profile(graph: Graph, config: Config, inputs: list[Path] | None, shapes: list[str] | None) -> dict[str, Range]:
    """Sizes of the dynamic inputs: what `locate` saw, then --inputs, then --shapes; the last word counts."""
    from trt_helper.cli import common
    from trt_helper.cli.console import warn
    from trt_helper.shapes import parse_shapes, profile, ranges_of, recorded_ranges

    known = recorded_ranges(config.evidence, graph)
    if inputs:
        known |= ranges_of(common.open_samples(graph, inputs, None, None))
    known |= parse_shapes(shapes or (), graph)
    ranges, guessed = profile(graph, known)
    for name in guessed:
        warn(f"input {name!r} is dynamic and no size is known: the engine takes 1; give --inputs or --shapes")
    return ranges
