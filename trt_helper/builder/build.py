"""Build an engine from a typed ONNX model, in a child process.

TensorRT-RTX builds without a GPU; TensorRT 10 and 11 need the GPU that the engine is for. TensorRT can crash, hang or
use up the memory, so that only the child process (`build_child`) imports it. This module checks the request, starts
the child, applies its limits and turns the child's death into a `BuildError`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from time import monotonic
from typing import Any

from trt_helper.builder.engine import EngineBuild
from trt_helper.builder.engine_program import read_program
from trt_helper.builder.failures import INSTALL, MIB, useful_warnings
from trt_helper.builder.layer_info import EngineLayer, parse_layers
from trt_helper.builder.settings import BuildSettings, Profile
from trt_helper.errors import BuildError, MachineError, ModelError, OutputError
from trt_helper.system.child_process import ChildDiedError, Event, Limits, NotImportableError, run, signal_name
from trt_helper.system.files import partial_file

PACKAGE_VARIABLE = "TRT_HELPER_PACKAGE"  # environment variable: the package that the child imports
PRODUCT = {False: "TensorRT-RTX", True: "TensorRT"}  # by BuildSettings.tensorrt
PACKAGE = {False: "tensorrt_rtx", True: "tensorrt"}
# Where to get the product, by BuildSettings.tensorrt.
GET = {False: INSTALL, True: "pip install 'trt-helper[tensorrt]', on a machine with an NVIDIA GPU and its driver"}

OnProgress = Callable[[str, float], None]


def build(
    typed: Path,
    out: Path,
    *,
    profiles: Sequence[Profile],
    settings: BuildSettings,
    on_progress: OnProgress | None = None,
) -> EngineBuild:
    """Build the strongly typed ONNX model `typed` into the engine file `out`.

    The same model, settings and version give the same bytes (seen on RTX 1.7.1). `out` appears complete at the end or
    not at all, also after Ctrl-C or a crash of the builder.

    Args:
        typed: The typed model; external data must lie beside it.
        out: The engine file. Its folder must exist.
        profiles: One optimization profile per entry; empty for a model without dynamic dimensions.
        settings: Which product builds, and with which limits.
        on_progress: Called with TensorRT's name of the build phase and a fraction in [0, 1] that never falls.

    Returns:
        The facts about the engine: size, hash, layers, kernel text and warnings.

    Raises:
        ModelError: `typed` is missing or is not a readable ONNX model.
        InputError: The profiles do not fit the model's inputs.
        ConfigError: This version of TensorRT does not have or does not accept a setting.
        MachineError: TensorRT is not installed or cannot be loaded.
        OutputError: `out` cannot be written.
        BuildError: TensorRT refused the model, crashed or passed a limit.
    """
    started = monotonic()
    _check(typed, out, settings)
    product = PRODUCT[settings.tensorrt]
    phases = _Phases(on_progress)
    with partial_file(out) as partial:
        request = _request(typed, out, partial, profiles, settings)
        try:
            result = run(
                f"{__package__}.build_child",
                request,
                limits=Limits(settings.time_limit, settings.memory_limit),
                on_event=phases.update,
                leftover=partial,
                environment={PACKAGE_VARIABLE: PACKAGE[settings.tensorrt]},
            )
        except NotImportableError as error:
            raise MachineError(
                f"{product} is installed, but cannot be loaded: {error}", fix=f"reinstall it: {GET[settings.tensorrt]}"
            ) from error
        except ChildDiedError as died:
            raise _death(died, typed, phases.current, settings) from died
    return _engine_build(out, result, seconds=monotonic() - started)


def _check(typed: Path, out: Path, settings: BuildSettings) -> None:
    """Raise the errors that can be detected before a process is started."""
    if find_spec(PACKAGE[settings.tensorrt]) is None:
        raise MachineError(f"{PRODUCT[settings.tensorrt]} is not installed", fix=GET[settings.tensorrt])
    if not typed.is_file():
        raise ModelError(f"there is no model {typed}", fix="check the path")
    if out.exists() and out.samefile(typed):
        raise OutputError(f"the engine would overwrite the model {typed}", fix="name another file with -o")


def _request(
    typed: Path, out: Path, partial: Path, profiles: Sequence[Profile], settings: BuildSettings
) -> dict[str, Any]:
    """Collect everything that the child needs, as JSON values."""
    return {
        "typed": str(typed.absolute()),
        "out": str(out),
        "partial": str(partial.absolute()),
        "profiles": [dict(profile) for profile in profiles],
        "settings": settings.stated(),
    }


class _Phases:
    """Remembers the current build phase of the child and passes progress on."""

    def __init__(self, on_progress: OnProgress | None) -> None:
        self.current = "starting"
        self._on_progress = on_progress

    def update(self, event: Event) -> None:
        self.current = event["phase"]
        if self._on_progress:
            self._on_progress(event["phase"], event["fraction"])


def _engine_build(out: Path, result: Event, *, seconds: float) -> EngineBuild:
    layers, complaint = _layers(result["layers"])
    return EngineBuild(
        path=out,
        bytes=result["bytes"],
        sha256=result["sha256"],
        seconds=seconds,
        builder=result["builder"],
        layers=layers,
        program=read_program(out),
        warnings=useful_warnings([*result["warnings"], *complaint], result["errors"]),
        marked=tuple(result["marked"]),
    )


def _layers(dump: str) -> tuple[tuple[EngineLayer, ...], tuple[str, ...]]:
    """Parse the engine's layers; an unreadable dump gives a warning, because the engine itself is good."""
    try:
        return parse_layers(dump), ()
    except ValueError as error:
        return (), (f"the builder's layer list cannot be read, so no pin can be proven: {error}",)


def _death(died: ChildDiedError, typed: Path, phase: str, settings: BuildSettings) -> BuildError:
    """Describe how the child ended and in which build phase."""
    where = f"building {typed} (phase {phase!r})"
    if died.how == "time":
        return BuildError(f"{where} passed the time limit of {settings.time_limit:g} s", fix="allow more time, or none")
    if died.how == "memory":
        return BuildError(
            f"{where} took {died.code / MIB:.0f} MiB of memory, over the limit of "
            f"{(settings.memory_limit or 0) / MIB:.0f} MiB",
            fix="allow more memory, or lower the largest shape of the profile",
        )
    said = f"; it printed: {died.output.splitlines()[-1]}" if died.output else ""
    if died.how == "exit":
        return BuildError(
            f"{where} ended {PRODUCT[settings.tensorrt]} with status {died.code}{said}",
            fix="run it again; report it if it stays",
        )
    if signal_name(died.code) == "SIGKILL":
        return BuildError(
            f"{where} was killed from outside (SIGKILL){said}",
            fix="most often memory ran out: free some, or build on a larger machine",
        )
    return BuildError(
        f"{where} crashed {PRODUCT[settings.tensorrt]} ({signal_name(died.code)}){said}",
        fix="try another optimization level or one more or fewer FP32 layer; report the model to NVIDIA",
    )
