"""`trt-helper convert`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trt_helper.cli import options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trt_helper.builder.convert import Converted
    from trt_helper.builder.settings import BuildSettings
    from trt_helper.config.plan_file import Config
    from trt_helper.inputs.shapes import Range
    from trt_helper.onnx_model.graph import Graph

EMITTED = {  # suffixes of the files that `--emit` writes beside the engine
    "trtexec": (".trtexec.sh", ".trtexec-weak.sh"),
    "explorer": (".layers.json",),
    "netron": (".noted.onnx",),
}


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
    timing_cache: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Kernel timings, read and kept.", show_default=False)
    ] = None,
    plugin: Annotated[
        list[Path] | None,
        typer.Option(metavar="LIBRARY", help="Plugins to load: code that is run; repeat.", show_default=False),
    ] = None,
    time_limit: Annotated[
        float | None, typer.Option(metavar="SECONDS", min=0.001, help="For each build.", show_default=False)
    ] = None,
    memory_limit: Annotated[
        int | None, typer.Option(metavar="MIB", min=1, help="Of the building process.", show_default=False)
    ] = None,
    builder_arg: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Any builder flag or setting.", show_default=False),
    ] = None,
    builder: options.Builder = "auto",
    emit: Annotated[
        list[options.Emit] | None,
        typer.Option(
            help="Also write: the trtexec commands, the engine's layers, the noted model.", show_default=False
        ),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Build the TensorRT engine with the plan: typed ONNX, engine, proof of the pins."""
    from trt_helper.builder.convert import convert
    from trt_helper.builder.settings import BuildSettings
    from trt_helper.cli import common
    from trt_helper.cli.console import progress
    from trt_helper.config.evidence import recorded_guards

    plan_file, path = common.open_config(config, model)
    settings = BuildSettings(
        compute_capabilities=tuple(compute_capability or ()),
        workspace=workspace << 20 if workspace else None,
        timing_cache=timing_cache,
        plugins=tuple(plugin or ()),
        time_limit=time_limit,
        memory_limit=memory_limit << 20 if memory_limit else None,
        extra=common.named_values(builder_arg or (), "--builder-arg"),
        tensorrt=common.is_tensorrt(builder),
        exclude_tactics=plan_file.exclude_tactics,
    )
    engine = None if no_engine else output or path.with_suffix(".trt")
    typed_onnx = typed_onnx or (path.with_suffix(".typed.onnx") if options.Emit.TRTEXEC in (emit or ()) else None)
    kinds, beside = frozenset(kind.value for kind in emit or ()), engine or path.with_suffix(".trt")
    emitted = [beside.with_suffix(suffix) for kind in kinds for suffix in EMITTED[kind]]
    _check_targets(engine, typed_onnx, emitted, keep=(path, config, *(inputs or ())))
    common.require_tactics(plan_file, tensorrt=settings.tensorrt)
    graph, plan = common.open_plan(plan_file, path)
    ranges = _profile(graph, plan_file, inputs, shapes)
    with progress() as report:
        converted = convert(
            graph,
            plan,
            engine=engine,
            typed_onnx=typed_onnx,
            profile=ranges,
            settings=settings,
            guards=recorded_guards(plan_file, graph.candidates),
            on_progress=lambda phase, fraction: report(f"TensorRT: {phase}", round(100 * fraction), 100),
        )
    if config:
        _remember(config, plan_file, converted)
    _emit(kinds, beside, converted, plan_file, ranges, settings)
    _show(converted, as_json=as_json)


def _emit(
    kinds: frozenset[str],
    beside: Path,
    converted: Converted,
    config: Config,
    ranges: dict[str, Range],
    settings: BuildSettings,
) -> None:
    """Write the files for other tools: the name of `beside` with their suffixes."""
    from trt_helper.builder import interchange
    from trt_helper.cli.console import note
    from trt_helper.onnx_model.typed import write
    from trt_helper.system.files import write_atomically

    graph, plan, path = converted.graph, converted.plan, converted.graph.source.path
    if "trtexec" in kinds and converted.typed_onnx:
        made = beside.with_suffix(".trtexec.trt")
        strong, weak = (beside.with_suffix(suffix) for suffix in EMITTED["trtexec"])
        typed = interchange.trtexec_typed(converted.typed_onnx, made, ranges, settings)
        write_atomically(strong, f"{typed}\n".encode())
        write_atomically(weak, f"{interchange.trtexec_weak(path, made, graph, plan, ranges, settings)}\n".encode())
        note(f"trtexec commands written to {strong} and, for weak typing up to TensorRT 10, {weak}")
    if "explorer" in kinds and converted.engine:
        target = beside.with_suffix(*EMITTED["explorer"])
        write_atomically(target, interchange.engine_explorer(converted.engine.layers))
        note(f"layers for TensorRT Engine Explorer written to {target}")
    if "netron" in kinds:
        target = beside.with_suffix(*EMITTED["netron"])
        write(interchange.annotated(graph, plan, config), target)
        note(f"model with a note on each layer, for Netron, written to {target}")


def _check_targets(
    engine: Path | None, typed_onnx: Path | None, emitted: Sequence[Path], keep: tuple[Path | None, ...]
) -> None:
    """Raise, before any work, for files that cannot be written and for two files of the same name."""
    from trt_helper.builder.convert import sidecar
    from trt_helper.system.files import require_writable

    targets = [path for path in (engine, engine and sidecar(engine), typed_onnx, *emitted) if path]
    if not targets:
        raise typer.BadParameter("--no-engine needs --typed-onnx FILE or --emit: else nothing would be written")
    for target in targets:
        require_writable(target, keep=keep)
    absolute = [target.absolute() for target in targets]
    if twice := next((path for path in absolute if absolute.count(path) > 1), None):
        raise typer.BadParameter(f"two files to be written have the same name: {twice}")


def _remember(path: Path, config: Config, converted: Converted) -> None:
    """Write into the config how its pins were retained, so that the next conversion needs one build."""
    from dataclasses import replace

    from trt_helper.builder.convert import engine_evidence
    from trt_helper.cli.console import note
    from trt_helper.config.plan_file import write_config

    if len(converted.builds) == 1 or not converted.retention.retained:
        return
    pins = tuple(dict.fromkeys((*config.fp32_layers, *converted.retention.added)))
    evidence = {**config.evidence, "engine": engine_evidence(converted)}
    write_config(replace(config, fp32_layers=pins, evidence=evidence), path)
    note(f"{path} now says what keeps its pins in the engine: the next conversion needs one build")


def _show(converted: Converted, *, as_json: bool) -> None:
    from trt_helper.cli import tables as text
    from trt_helper.cli.console import show, show_json, warn
    from trt_helper.report.record import converted_json

    for message in text.conversion_warnings(converted):
        warn(message)
    if as_json:
        show_json(converted_json(converted))
    else:
        show(*text.conversion(converted))


def _profile(graph: Graph, config: Config, inputs: list[Path] | None, shapes: list[str] | None) -> dict[str, Range]:
    """Sizes of the dynamic inputs: those recorded by `locate`, overridden by --inputs, overridden by --shapes."""
    from trt_helper.cli import common
    from trt_helper.cli.console import warn
    from trt_helper.inputs.shapes import parse_shapes, profile, ranges_of, recorded_ranges

    known = recorded_ranges(config.evidence, graph)
    if inputs:
        known |= ranges_of(common.open_samples(graph, inputs, None, None))
    known |= parse_shapes(shapes or (), graph)
    ranges, guessed = profile(graph, known)
    for name in guessed:
        warn(f"input {name!r} is dynamic and no size is known: the engine takes 1; give --inputs or --shapes")
    return ranges
