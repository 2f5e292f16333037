"""What TensorRT 10 and 11 can and TensorRT-RTX cannot: timing caches, chosen tactics, an inspector where it builds.

Runs in the child process. What a version may lack is looked up by name. Checked against the published bindings of
10.0 to 11.4 (`tests/tensorrt_names.json`); executed only where there is a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from trt_helper.builder.bindings import PRODUCT, trt
from trt_helper.builder.layer_info import parse_layers
from trt_helper.builder.settings import BuildSettings
from trt_helper.builder.tactics import Replacement, prove_gone, read_tables, replacements, without_effect
from trt_helper.errors import BuildError, ConfigError
from trt_helper.system.files import write_atomically
from trt_helper.system.machine import find_gpu

HERE = f"{PRODUCT} {trt.__version__}"
_EDITABLE = "EDITABLE_TIMING_CACHE"  # a BuilderFlag since 10.8


class TimingCache:
    """The timing cache of one build: `settings.timing_cache` where one is given, else empty."""

    def __init__(self, config: Any, settings: BuildSettings) -> None:
        self.path = settings.timing_cache
        known = self.path.read_bytes() if self.path and self.path.is_file() else b""
        self.cache = config.create_timing_cache(known)
        if not config.set_timing_cache(self.cache, ignore_mismatch=False):
            raise ConfigError(
                f"{HERE} refuses the timing cache {self.path}: it was made on another GPU or version",
                fix="name another file; it is made where there is none",
            )

    def save(self) -> None:
        """Write what was learnt to where the cache came from."""
        if self.path is not None:
            write_atomically(self.path, bytes(memoryview(self.cache.serialize())))

    def take(self, wanted: Sequence[Replacement]) -> None:
        """Write other tactics into the cache: the next build takes them (10.8 and later)."""
        for one in wanted:
            key = trt.TimingCacheKey.parse(one.operation.key)
            value = trt.TimingCacheValue(one.candidate.tactic, one.candidate.milliseconds)
            if not self.cache.update(key, value):
                raise BuildError(
                    f"{HERE} does not know the operation {one.operation.name!r} in its timing cache",
                    fix="build again; if it stays, take the layer out of TRT_EXCLUDE_TACTIC and pin it",
                )


def prepare(config: Any, settings: BuildSettings) -> TimingCache:
    """Set what a builder's config of TensorRT 10 or 11 has and that of TensorRT-RTX has not."""
    if settings.compute_capabilities:
        raise ConfigError(
            f"{HERE} builds for the GPU of this machine, not for {', '.join(settings.compute_capabilities)}",
            fix="leave --compute-capability out, or build with --builder tensorrt-rtx",
        )
    cache = TimingCache(config, settings)
    if not settings.exclude_tactics:
        return cache
    if not hasattr(trt.BuilderFlag, _EDITABLE):
        raise ConfigError(f"{HERE} cannot exclude tactics", fix="build with TensorRT 10.8 or later")
    config.set_flag(getattr(trt.BuilderFlag, _EDITABLE))
    return cache


def without_excluded(
    plan: Any, cache: TimingCache, settings: BuildSettings, log: Sequence[str], build: Callable[[], Any]
) -> tuple[Any, list[str]]:
    """Build once more with other tactics where the first build took excluded ones, and look that they are gone.

    Returns the engine, None where the second build made none, and what is to be told.
    """
    if not settings.exclude_tactics:
        return plan, []
    operations = read_tables(log)
    wanted = replacements(operations, settings.exclude_tactics)
    if wanted:
        cache.take(wanted)
        plan = build()
        if plan is None:
            return None, []
    said = layer_information(plan)
    layers = parse_layers(said) if said else ()
    told = without_effect(operations, settings.exclude_tactics, trt.__version__, find_gpu().name)
    return plan, told + prove_gone(layers, operations, settings.exclude_tactics, wanted)


def layer_information(plan: Any) -> str:
    """EngineInspector's JSON of a finished engine; needs the GPU that it was built on."""
    logger = trt.Logger(trt.Logger.ERROR)
    runtime = trt.Runtime(logger)
    loaded = runtime.deserialize_cuda_engine(plan)
    if loaded is None:
        return ""
    inspector = loaded.create_engine_inspector()
    found: str = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    return found


def cannot_exclude(settings: BuildSettings) -> None:
    """Refuse exclusions on TensorRT-RTX, which chooses its kernels on the user's GPU."""
    if settings.exclude_tactics:
        raise ConfigError(
            "TRT_EXCLUDE_TACTIC cannot be applied by TensorRT-RTX, which chooses tactics on the user's GPU",
            fix="empty the list, or build with --builder tensorrt on a GPU",
        )
