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
    from trt_helper.onnx_model.load import Model
    from trt_helper.values import Plan

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
    force: Annotated[bool, typer.Option("--force", help="Replace an engine of another plan.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Build the TensorRT engine with the plan: typed ONNX, engine, proof of the pins."""
    from trt_helper.builder.convert import convert
    from trt_helper.builder.settings import BuildSettings
    from trt_helper.cli import common
    from trt_helper.cli.console import progress
    from trt_helper.config.evidence import recorded_guards
    from trt_helper.onnx_model.load import load

    plan_file, path = common.open_config(config, model)
    engine = None if no_engine else output or path.with_suffix(".trt")
    typed_onnx = typed_onnx or (path.with_suffix(".typed.onnx") if options.Emit.TRTEXEC in (emit or ()) else None)
    kinds, beside = frozenset(kind.value for kind in emit or ()), engine or path.with_suffix(".trt")
    emitted = [beside.with_suffix(suffix) for kind in kinds for suffix in EMITTED[kind]]
    _check_targets(engine, typed_onnx, emitted, keep=(path, config, *(inputs or ())))
    source, given = load(path), config is not None
    if config is None and (config := _beside(source)):
        plan_file, _ = common.open_config(config, model)
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
    common.require_tactics(plan_file, tensorrt=settings.tensorrt)
    graph, plan = common.open_plan(plan_file, source)
    if engine and not force:
        _require_replaceable(engine, graph, plan, given=given)
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


def _beside(model: Model) -> Path | None:
    """The plan beside the model, if it is of that model. What is used is said, and that nothing is."""
    from trt_helper.cli.console import note, warn
    from trt_helper.config.plan_file import read_config

    beside, nobody = model.path.with_name(options.PLAN), "every layer becomes FP16, and nobody has judged that (locate)"
    if not beside.is_file():
        warn(f"there is no {options.PLAN} beside {model.path}: {nobody}")
        return None
    config = read_config(beside)
    if config.sha256 not in ("", model.sha256):
        warn(f"{beside} is of another model and not used: {nobody}")
        return None
    note(f"using the plan beside the model: {beside}, {len(config.fp32_layers)} layers in FP32")
    return beside


def _require_replaceable(engine: Path, graph: Graph, plan: Plan, *, given: bool) -> None:
    """Raise OutputError if the engine that is there has another plan or is not ours, unless the plan was named."""
    from trt_helper.builder.engine_file import is_engine, read_engine
    from trt_helper.cli.console import note
    from trt_helper.errors import OutputError
    from trt_helper.values import Plan

    if not engine.exists():
        return
    record = read_engine(engine)["proof"] if is_engine(engine) else {}
    if not record and given and is_engine(engine):
        note(f"{engine} is an engine without a record of its pins; it is replaced")
        return
    if not record:
        raise OutputError(
            f"{engine} is there, and `convert` has no record of having written it",
            fix="--force replaces it; -o names another file",
        )
    fp32, bf16, added = (record.get(key) or () for key in ("fp32_layers", "bf16_layers", "added"))
    before = Plan(frozenset(map(str, fp32)), frozenset(map(str, bf16))).without(*added)
    if before == plan.without(*added) and record["model"].get("sha256") == graph.source.sha256:
        return
    what = f"{engine} is an engine with {len(fp32)} layers in FP32, of another plan or model"
    if not given:
        raise OutputError(what, fix="--force replaces it; -c names the plan that is meant; -o names another file")
    note(f"{what}; it is replaced")


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
    """Sizes of the dynamic inputs.

    Those of --inputs, else those recorded by `locate`, widened to those that `export` wrote into the model; --shapes
    decides alone.
    """
    from trt_helper.cli import common
    from trt_helper.cli.console import warn
    from trt_helper.inputs.made_up import random_sample
    from trt_helper.inputs.shapes import (
        exported_ranges,
        frozen,
        parse_shapes,
        profile,
        ranges_of,
        recorded_ranges,
        widened,
    )

    seen = recorded_ranges(config.evidence, graph)
    if inputs:
        seen |= ranges_of(graph, common.open_samples(graph, inputs, None, None))
    given = parse_shapes(shapes or (), graph)
    known = widened(seen, exported_ranges(graph)) | given
    ranges, guessed = profile(graph, known)
    if guessed:
        made_up = ranges_of(graph, [random_sample(graph, {name: sizes[1] for name, sizes in known.items()})])
        ranges, _ = profile(graph, known | {name: made_up[name] for name in guessed})
    for name, sizes in frozen(graph, {n: r for n, r in ranges.items() if n not in given}).items():
        why = "no size is known" if name in guessed else "no other size was seen"
        shape = "x".join(map(str, ranges[name][1]))
        warn(
            f"the engine takes input {name!r} with {', '.join(sizes)} only, for {why}; "
            f"give a range: --shapes {name}:{shape},{shape},{shape}"
        )
    return ranges
