"""Build one engine; this is the child process that `builder.build` starts.

`run` gets the request of `builder.build` (JSON values), sends progress events, writes the engine to the request's
temporary file and returns one dictionary (JSON values again). It works with TensorRT-RTX 1.4 and 1.7 and with
TensorRT 10 and 11: names that a version may lack are looked up when they are used. Features that only TensorRT has are
in `tensorrt_only`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trt_helper.builder import tensorrt_only
from trt_helper.builder.bindings import PRODUCT, trt
from trt_helper.builder.failures import ParserComplaint, empty_model, not_built, not_parsed, real_errors, reason
from trt_helper.builder.progress import Progress
from trt_helper.builder.settings import OWNED, YES_NO, BuildSettings, NetworkInput, capability_member, check_profiles
from trt_helper.errors import BuildError, ConfigError, InputError, nearest
from trt_helper.system.files import cannot_write

Send = Callable[[dict[str, Any]], None]

BUILDER = f"{PRODUCT} {trt.__version__}"
_PARTS = 200  # progress is sent for each new phase, and when the fraction has grown by 1/200


class Log(trt.ILogger):  # type: ignore[misc]  # the bindings have no types
    """Keeps the layer dump, warnings and errors. The other messages would be megabytes."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.layers = ""
        self.warnings: list[str] = []
        self.errors: list[str] = []
        self.tactics: list[str] | None = None  # all other lines; collected only if tactics are excluded

    def log(self, severity: Any, message: str) -> None:
        if message.startswith("Layers:"):
            self.layers = message
        elif severity == trt.ILogger.Severity.WARNING:
            self.warnings.append(message)
        elif severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
            self.errors.append(message)
        elif self.tactics is not None:
            self.tactics.append(message)


class _Monitor(getattr(trt, "IProgressMonitor", object)):  # type: ignore[misc]  # 8.6 has none
    """Sends the innermost build phase and the fraction of the whole build."""

    def __init__(self, send: Send) -> None:
        super().__init__()
        self._progress = Progress()
        self._send = send
        self._sent = ("", -1)

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        self._progress.start(phase_name, parent_phase, num_steps)
        self._report(phase_name)

    def step_complete(self, phase_name: str, step: int) -> bool:
        self._progress.step(phase_name, step)
        self._report(phase_name)
        return True  # False would cancel; the parent cancels by killing this process

    def phase_finish(self, phase_name: str) -> None:
        self._progress.finish(phase_name)
        self._report(phase_name)

    def _report(self, phase: str) -> None:
        state = (phase, int(self._progress.fraction * _PARTS))
        if state != self._sent:
            self._sent = state
            self._send({"event": "progress", "phase": phase, "fraction": self._progress.fraction})


def run(request: Mapping[str, Any], send: Send) -> dict[str, Any]:
    """Build the engine that `request` describes.

    Args:
        request: The dictionary that `build._request` makes.
        send: Sends one event to the parent process.

    Returns:
        Size and SHA-256 of the engine, builder, layer dump, warnings and errors of the log, and the tensors that were
        made outputs.

    Raises:
        TrtHelperError: Every failure that the user can fix; the parent process raises it again.
    """
    send({"event": "progress", "phase": "Reading the model", "fraction": 0.0})
    settings = _settings(request["settings"])
    log = Log()
    builder = trt.Builder(log)
    for plugin in settings.plugins:
        _load(builder, plugin, log)
    network = _network(builder, request["typed"], log)
    marked = _mark(network, settings.debug_tensors) if settings.debug_tensors else []
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    profiles = [_tuples(profile) for profile in request["profiles"]]
    known = [NetworkInput(tensor.name, tuple(tensor.shape), tensor.is_shape_tensor) for tensor in inputs]
    check_profiles(profiles, known)
    config = _config(builder, settings, log)
    for profile in profiles:
        config.add_optimization_profile(_profile(builder, known, profile))
    monitor = _Monitor(send)  # TensorRT keeps no reference to it
    if hasattr(config, "progress_monitor"):
        config.progress_monitor = monitor
    plan = _built(lambda: builder.build_serialized_network(network, config), config, settings, log)
    if plan is None:
        raise not_built(Path(request["typed"]).name, BUILDER, log.errors, settings)
    return _written(plan, request) | {
        "builder": BUILDER,
        "layers": log.layers,
        "warnings": log.warnings,
        "errors": log.errors,
        "marked": marked,
    }


def _built(build: Callable[[], Any], config: Any, settings: BuildSettings, log: Log) -> Any:
    """Build with this product's extras: timing cache and tactic exclusion on TensorRT.

    Returns None when TensorRT made no engine. The engine inspector supplies the layers if the log has no dump.
    """
    if not settings.tensorrt:
        tensorrt_only.cannot_exclude(settings)
        if settings.timing_cache is not None:
            log.warnings.append("TensorRT-RTX keeps no timing cache: the one given has no effect")
        return build()
    log.tactics = [] if settings.exclude_tactics else None
    cache = tensorrt_only.prepare(config, settings)
    plan = build()
    if plan is not None:
        plan, notes = tensorrt_only.without_excluded(plan, cache, settings, log.tactics or (), build)
        log.warnings += notes
    if plan is not None:
        cache.save()
        log.layers = tensorrt_only.layer_information(plan) or log.layers
    return plan


def _settings(stated: Mapping[str, Any]) -> BuildSettings:
    given = _tuples(stated)
    paths: dict[str, Any] = {"plugins": tuple(Path(text) for text in given.get("plugins", ()))}
    if "timing_cache" in given:
        paths["timing_cache"] = Path(given["timing_cache"])
    return BuildSettings(**given | paths)


def _load(builder: Any, plugin: Path, log: Log) -> None:
    """Load a plugin library; it registers its plugins itself."""
    if builder.get_plugin_registry().load_library(str(plugin.absolute())) is None:
        said = [reason(line) for line in real_errors(log.errors)]
        raise ConfigError(
            f"{BUILDER} cannot load the plugin library {plugin}: {said[-1] if said else 'it gave no reason'}",
            fix="give a shared library that was compiled for this TensorRT",
        )


def _tuples(listed: Mapping[str, Any]) -> dict[str, Any]:
    """Turn JSON's lists back into tuples."""

    def one(value: Any) -> Any:
        return tuple(one(item) for item in value) if isinstance(value, list) else value

    return {name: one(value) for name, value in listed.items()}


def parse(builder: Any, model: str, log: Log) -> tuple[Any, list[ParserComplaint] | None]:
    """The strongly typed network of an ONNX file, and what the parser says of it; None if it takes the file."""
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if parser.parse_from_file(model):
        return network, None
    found = [parser.get_error(index) for index in range(parser.num_errors)]
    return network, [
        ParserComplaint(one.code().name, one.desc(), one.node_name(), one.node_operator()) for one in found
    ]


def _network(builder: Any, typed: str, log: Log) -> Any:
    """Parse the file. `parse_from_file` also finds external data beside the model, beyond 2 GB too."""
    if not hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"):  # 8.6
        raise ConfigError(f"{BUILDER} has no strong typing", fix="use TensorRT 10 or later")
    name = Path(typed).name
    network, complaints = parse(builder, typed, log)
    if complaints is not None:
        raise not_parsed(name, BUILDER, complaints)
    if not network.num_layers or not network.num_outputs:  # an empty or alien file parses without complaint
        raise empty_model(name)
    return network


def _mark(network: Any, wanted: Sequence[str]) -> list[str]:
    """Make the intermediate tensors readable when the engine runs; return the names of those that became outputs.

    From TensorRT 10.16 on, all unfused tensors become debug tensors, which does not change what is fused; the result is
    then empty. Older versions make the tensors in `wanted` network outputs, which does change what is fused.
    """
    if hasattr(network, "mark_unfused_tensors_as_debug_tensors") and network.mark_unfused_tensors_as_debug_tensors():
        return []
    marked = []
    for layer in (network.get_layer(index) for index in range(network.num_layers)):
        for tensor in (layer.get_output(index) for index in range(layer.num_outputs)):
            if tensor.name in wanted and not tensor.is_network_output:
                network.mark_output(tensor)
                marked.append(tensor.name)
    if not marked:
        raise BuildError(f"{BUILDER} parsed the model into a network without {wanted[0]!r}", fix="nothing can be heard")
    return marked


def _config(builder: Any, settings: BuildSettings, log: Log) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # otherwise no layer dump is logged
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default: FP32 would round to 10 bits
    if settings.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace)
    if not settings.tensorrt:
        _set_capabilities(config, settings.compute_capabilities)
    for name, value in settings.extra.items():
        _set_extra(config, name, value, log)
    return config


def _set_capabilities(config: Any, wanted: Sequence[str]) -> None:
    members = tuple(dict.fromkeys(capability_member(text) for text in wanted))
    known = trt.ComputeCapability.__members__
    for member in members:
        if member not in known:
            raise ConfigError(f"{BUILDER} has no compute capability {member}", fix=f"known are {', '.join(known)}")
    if members:
        config.num_compute_capabilities = len(members)
        for index, member in enumerate(members):
            config.set_compute_capability(known[member], index)


def _set_extra(config: Any, name: str, value: str, log: Log) -> None:
    """Set one BuilderFlag or attribute by name and check that TensorRT accepted it."""
    flags = trt.BuilderFlag.__members__
    if name in flags:
        wanted: Any = _read(name, value, False)
        (config.set_flag if wanted else config.clear_flag)(flags[name])
        taken = config.get_flag(flags[name])
    else:
        known = (*_attributes(config), *flags)
        if name not in known:
            near = nearest(name, known)
            hint = f"did you mean {near!r}?" if near else f"known are {', '.join(known)}"
            raise ConfigError(f"{BUILDER} has no builder argument {name!r}", fix=hint)
        wanted = _read(name, value, getattr(config, name))
        setattr(config, name, wanted)
        taken = getattr(config, name)
    if taken != wanted:
        said = real_errors(log.errors)[-1:]
        why = reason(said[0]) if said else f"it stays at {taken}"
        raise ConfigError(f"{BUILDER} did not take {name}={value}: {why}", fix="leave it out")


def _attributes(config: Any) -> tuple[str, ...]:
    """Return the names of IBuilderConfig that can be set. No value is read, because reading some of them logs."""
    kind = type(config)
    settable = (name for name in dir(kind) if getattr(getattr(kind, name), "fset", None) is not None)
    return tuple(name for name in settable if name not in OWNED)


def _read(name: str, value: str, present: Any) -> Any:
    """Convert `value` to the type of `present`: bool, int, enum member or text."""
    members = getattr(type(present), "__members__", None)
    if isinstance(present, str):
        return value
    if members is not None:
        if value.upper() in members:
            return members[value.upper()]
        raise ConfigError(f"{name} cannot be {value!r}", fix=f"known are {', '.join(members)}")
    if isinstance(present, bool):
        if value.lower() in YES_NO:
            return YES_NO[value.lower()]
        raise ConfigError(f"{name} cannot be {value!r}", fix="write on or off")
    if not isinstance(present, int):
        raise ConfigError(f"{name} cannot be set by a word", fix="leave it out")
    try:
        return int(value, 0)
    except ValueError as error:
        raise ConfigError(f"{name} cannot be {value!r}", fix="give a whole number") from error


def _profile(builder: Any, known: Sequence[NetworkInput], profile: Mapping[str, Any]) -> Any:
    made = builder.create_optimization_profile()
    for one in known:
        if one.name not in profile:
            continue
        put = made.set_shape_input if one.values else made.set_shape
        try:
            put(one.name, *profile[one.name])
        except (RuntimeError, TypeError, ValueError) as error:
            raise InputError(
                f"TensorRT refuses the shape profile of {one.name!r}: {error}",
                fix="check its smallest, usual and largest shape",
            ) from error
    return made


def _written(plan: Any, request: Mapping[str, Any]) -> dict[str, Any]:
    """Write the engine to its temporary name and flush it to disk."""
    engine = memoryview(plan)
    try:
        with Path(request["partial"]).open("wb") as file:
            file.write(engine)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise cannot_write(Path(request["out"]), error) from error
    return {"bytes": engine.nbytes, "sha256": hashlib.sha256(engine).hexdigest()}
