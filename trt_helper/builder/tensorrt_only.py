"""Features that TensorRT 10 and 11 have and TensorRT-RTX lacks: timing caches, forced tactics, the engine inspector.

Runs in the child process. Names that a version may lack are looked up when they are used. Checked against the
published bindings of 10.0 to 11.4 (`tests/tensorrt_names.json`); it can only run where there is a GPU.
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

BUILDER = f"{PRODUCT} {trt.__version__}"
_EDITABLE = "EDITABLE_TIMING_CACHE"  # a BuilderFlag since 10.8


class TimingCache:
    """The timing cache of one build: loaded from `settings.timing_cache` if that file exists, else empty."""

    def __init__(self, config: Any, settings: BuildSettings) -> None:
        self.path = settings.timing_cache
        known = self.path.read_bytes() if self.path and self.path.is_file() else b""
        self.cache = config.create_timing_cache(known)
        if not config.set_timing_cache(self.cache, ignore_mismatch=False):
            raise ConfigError(
                f"{BUILDER} refuses the timing cache {self.path}: it was made on another GPU or version",
                fix="name another file; it is made where there is none",
            )

    def save(self) -> None:
        """Write the cache with the new timings to `settings.timing_cache`, if that is set."""
        if self.path is not None:
            write_atomically(self.path, bytes(memoryview(self.cache.serialize())))

    def take(self, wanted: Sequence[Replacement]) -> None:
        """Force other tactics: the next build uses what is written into the cache (10.8 and later).

        Raises:
            BuildError: The cache does not have the key of an operation.
        """
        for one in wanted:
            key = trt.TimingCacheKey.parse(one.operation.key)
            value = trt.TimingCacheValue(one.candidate.tactic, one.candidate.milliseconds)
            if not self.cache.update(key, value):
                raise BuildError(
                    f"{BUILDER} does not know the operation {one.operation.name!r} in its timing cache",
                    fix="build again; if it stays, take the layer out of TRT_EXCLUDE_TACTIC and pin it",
                )


def prepare(config: Any, settings: BuildSettings) -> TimingCache:
    """Set up the timing cache, and make it editable if tactics are excluded.

    Raises:
        ConfigError: A setting that TensorRT or this version lacks, or a timing cache of another GPU or version.
    """
    if settings.compute_capabilities:
        raise ConfigError(
            f"{BUILDER} builds for the GPU of this machine, not for {', '.join(settings.compute_capabilities)}",
            fix="leave --compute-capability out, or build with --builder tensorrt-rtx",
        )
    cache = TimingCache(config, settings)
    if not settings.exclude_tactics:
        return cache
    if not hasattr(trt.BuilderFlag, _EDITABLE):
        raise ConfigError(f"{BUILDER} cannot exclude tactics", fix="build with TensorRT 10.8 or later")
    config.set_flag(getattr(trt.BuilderFlag, _EDITABLE))
    return cache


def without_excluded(
    plan: Any, cache: TimingCache, settings: BuildSettings, log: Sequence[str], build: Callable[[], Any]
) -> tuple[Any, list[str]]:
    """Build again with other tactics if the first build used excluded ones, and check that these are gone.

    Args:
        plan: The serialized engine of the first build.
        cache: The timing cache of the build.
        settings: The settings of the build.
        log: The log of the first build, with the autotuning tables.
        build: Builds again with the same network and config.

    Returns:
        The engine (None if the second build made none) and warnings.

    Raises:
        ConfigError: An exclusion names a layer for which no tactics were timed.
        BuildError: No tactic is left for an operation, or the engine still has an excluded one.
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
    warnings = without_effect(operations, settings.exclude_tactics, trt.__version__, find_gpu().name)
    return plan, warnings + prove_gone(layers, operations, settings.exclude_tactics, wanted)


def layer_information(plan: Any) -> str:
    """Return EngineInspector's JSON of a finished engine; needs the GPU that it was built on."""
    logger = trt.Logger(trt.Logger.ERROR)
    runtime = trt.Runtime(logger)
    loaded = runtime.deserialize_cuda_engine(plan)
    if loaded is None:
        return ""
    inspector = loaded.create_engine_inspector()
    found: str = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    return found


def cannot_exclude(settings: BuildSettings) -> None:
    """Check that no tactics are excluded: TensorRT-RTX chooses its kernels on the user's GPU.

    Raises:
        ConfigError: The settings exclude tactics.
    """
    if settings.exclude_tactics:
        raise ConfigError(
            "TRT_EXCLUDE_TACTIC cannot be applied by TensorRT-RTX, which chooses tactics on the user's GPU",
            fix="empty the list, or build with --builder tensorrt on a GPU",
        )
