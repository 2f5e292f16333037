"""What TensorRT 10 and 11 can and TensorRT-RTX cannot: timing caches, chosen tactics, an inspector where it builds.

Runs in the child process. What a version may lack is looked up by name. Checked against the published bindings of
10.0 to 11.4 (`tests/tensorrt_names.json`); executed only where there is a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from trt_helper.builder.bindings import PRODUCT, trt
from trt_helper.builder.settings import BuildSettings
from trt_helper.builder.tactics import Exclusion, Replacement, read_tables, replacements
from trt_helper.errors import BuildError, ConfigError
from trt_helper.files import write_atomically

HERE = f"{PRODUCT} {trt.__version__}"
_EDITABLE = "EDITABLE_TIMING_CACHE"  # a BuilderFlag since 10.8


class TimingCache:
    """The timing cache of one build: `settings.timing_cache` where one is given, else empty."""

    def __init__(self, config: Any, settings: BuildSettings) -> None:
        self.path = settings.timing_cache
        self.selector: Any = None  # TensorRT keeps no reference to it
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
    if settings.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if settings.compute_capabilities:
        raise ConfigError(
            f"{HERE} builds for the GPU of this machine, not for {', '.join(settings.compute_capabilities)}",
            fix="leave --compute-capability out, or build with --builder tensorrt-rtx",
        )
    cache = TimingCache(config, settings)
    if not settings.exclude_tactics:
        return cache
    if hasattr(trt.BuilderFlag, _EDITABLE):
        config.set_flag(getattr(trt.BuilderFlag, _EDITABLE))
    elif hasattr(trt, "IAlgorithmSelector"):
        config.set_flag(trt.BuilderFlag.DISABLE_TIMING_CACHE)
        config.set_flag(trt.BuilderFlag.REJECT_EMPTY_ALGORITHMS)
        cache.selector = config.algorithm_selector = selector(settings.exclude_tactics)
    else:
        raise ConfigError(f"{HERE} cannot exclude tactics", fix="build with TensorRT 10 or 11")
    return cache


def selector(exclusions: Sequence[Exclusion]) -> Any:
    """An IAlgorithmSelector that leaves tactics out: up to 10.7. `kernel` is the implementation's number there.

    Where none is left the build fails: REJECT_EMPTY_ALGORITHMS. An exception may not leave these calls.
    """

    class Excluder(trt.IAlgorithmSelector):  # type: ignore[misc]  # the bindings have no types
        def __init__(self) -> None:
            trt.IAlgorithmSelector.__init__(self)

        def select_algorithms(self, context: Any, choices: Sequence[Any]) -> list[int]:
            ours = [one for one in exclusions if one["layer"] in context.name.split(" + ")]
            return [index for index, choice in enumerate(choices) if not _is_banned(choice, ours)]

        def report_algorithms(self, contexts: Sequence[Any], choices: Sequence[Any]) -> None:
            """Nothing to keep: the layer list names what was chosen."""

    return Excluder()


def _is_banned(choice: Any, exclusions: Sequence[Exclusion]) -> bool:
    variant = choice.algorithm_variant
    for one in exclusions:
        tactic, kernel = one.get("tactic"), one.get("kernel")
        said = [int(str(tactic), 0) == variant.tactic] if tactic else []
        said += [str(kernel) == str(variant.implementation)] if kernel else []
        if said and all(said):
            return True
    return False


def without_excluded(
    plan: Any, cache: TimingCache, settings: BuildSettings, log: Sequence[str], build: Callable[[], Any]
) -> Any:
    """Build once more with other tactics where the first build took excluded ones, and look that it did."""
    if not settings.exclude_tactics or not hasattr(trt.BuilderFlag, _EDITABLE):
        return plan
    wanted = replacements(read_tables(log), settings.exclude_tactics)
    if not wanted:
        return plan
    cache.take(wanted)
    again = build()
    if again is not None:
        said = layer_information(again)
        for one in wanted:
            if one.candidate.kernel not in said:
                raise BuildError(
                    f"{HERE} did not take {one.candidate.kernel!r} for {one.operation.name!r}",
                    fix="exclude another tactic in TRT_EXCLUDE_TACTIC, or pin the layer instead",
                )
    return again


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
