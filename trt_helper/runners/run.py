"""An engine or typed model and samples go in, outputs come out: each repeat, each sample. In a process of its own.

A kernel that reads beyond its memory takes the whole CUDA context with it; here it takes a child, and is a `RunError`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from trt_helper.builder.build import PACKAGE_VARIABLE
from trt_helper.errors import MachineError, RunError
from trt_helper.inputs.samples import Sample
from trt_helper.runners.exchange import write_feed
from trt_helper.system.child_process import ChildDiedError, Event, Limits, NotImportableError, run, signal_name
from trt_helper.system.machine import RTX_COMPUTE_CAPABILITIES, find_gpu
from trt_helper.values import Tensors


@dataclass(frozen=True, slots=True)
class Runner:
    """One way to get FP16 numbers: an engine's package, or ONNX Runtime's provider for a typed model."""

    name: str
    package: str  # what has to be importable
    extra: str  # what installs it
    provider: str = ""  # of ONNX Runtime; empty where engines are run
    module: str = "trt_helper.runners.engine_child"

    @property
    def builds(self) -> bool:
        """Whether a plan has to become an engine first."""
        return not self.provider

    @property
    def version(self) -> str:
        """The installed version of the package, as its metadata has it; it is not imported."""
        named = packages_distributions().get(self.package)
        return version(named[0]) if named else "unknown"

    @property
    def environment(self) -> dict[str, str]:
        """What tells a child process which package to take; Polygraphy looks at it when it is imported."""
        polygraphy = {"POLYGRAPHY_USE_TENSORRT_RTX": "1"} if self.package == "tensorrt_rtx" else {}
        return {PACKAGE_VARIABLE: self.package, **polygraphy}


_ORT = "trt_helper.runners.ort_child"
RUNNERS: Mapping[str, Runner] = {
    one.name: one
    for one in (
        Runner("tensorrt", "tensorrt", "trt-helper[tensorrt]"),
        Runner("tensorrt-rtx", "tensorrt_rtx", "trt-helper[rtx]"),
        Runner("cuda", "onnxruntime", "trt-helper[cuda]", "CUDAExecutionProvider", _ORT),
    )
}


def runner_here(name: str) -> Runner:
    """Return that runner. Raises MachineError where it cannot run, with what is missing."""
    runner = RUNNERS[name]
    for package in (runner.package, *(("polygraphy",) if runner.builds else ())):
        if find_spec(package) is None:
            install = f"pip install '{runner.extra}'" if package == runner.package else f"pip install {package}"
            raise MachineError(f"the runner {name!r} needs the Python package {package}", fix=install)
    gpu = find_gpu()
    missing = gpu.missing
    if not missing and name == "tensorrt-rtx" and gpu.capability not in RTX_COMPUTE_CAPABILITIES:
        missing = f"a GPU of compute capability {', '.join(RTX_COMPUTE_CAPABILITIES)}; {gpu.name} has {gpu.capability}"
    if missing:
        raise MachineError(
            f"the runner {name!r} needs {missing}",
            fix="run it on such a machine, or leave --runner out: FP16 is emulated then",
        )
    return runner


def execute(
    runner: Runner,
    file: Path,
    samples: Sequence[Sample],
    outputs: Sequence[str],
    *,
    repeats: int = 1,
    warm_up: int = 1,
    seconds: float | None = None,
) -> list[list[Tensors]]:
    """Run `file` on every sample: [repeat][sample] -> outputs by name, half floats as FP32.

    Each sample is run `warm_up` times before it counts. `seconds` is a limit of wall clock for all of it.

    Raises MachineError where the runner cannot be loaded and RunError for what fails on the way, crashes included.
    """
    with tempfile.TemporaryDirectory(prefix="trt-helper-") as name:
        folder = Path(name)
        how = {"repeats": repeats, "warm_up": warm_up, "listen": False}
        _served(runner, file, samples, folder, {"outputs": list(outputs), **how}, seconds)
        return [
            [_outputs(folder / f"out{repeat}_{index}.npz", outputs) for index in range(len(samples))]
            for repeat in range(repeats)
        ]


def listen(
    runner: Runner, file: Path, sample: Sample, outputs: Sequence[str], *, seconds: float | None = None
) -> Tensors:
    """Run an engine with debug tensors on one sample -> what it computed between its kernels, by the engine's names.

    Raises MachineError where the runner cannot be loaded and RunError for what fails on the way, crashes included.
    """
    with tempfile.TemporaryDirectory(prefix="trt-helper-") as name:
        folder = Path(name)
        how = {"outputs": list(outputs), "repeats": 1, "warm_up": 0, "listen": True}
        answer = _served(runner, file, [sample], folder, how, seconds)
        return _outputs(folder / "heard0.npz", answer["heard"][0])


def _served(
    runner: Runner,
    file: Path,
    samples: Sequence[Sample],
    folder: Path,
    how: Mapping[str, Any],
    seconds: float | None,
) -> Event:
    """Write the samples into `folder` and have the child answer there."""
    names = [list(sample.feed) for sample in samples]
    for index, sample in enumerate(samples):
        write_feed(folder / f"in{index}.npz", sample)
    request = {
        "file": str(file.absolute()),
        "provider": runner.provider,
        "folder": str(folder),
        "inputs": names,
        **how,
    }
    try:
        return run(
            runner.module,
            request,
            limits=Limits(seconds),
            on_event=lambda _event: None,
            leftover=folder / "leftover",
            environment=runner.environment,
        )
    except NotImportableError as error:
        raise MachineError(
            f"the runner {runner.name!r} cannot be loaded: {error}", fix=f"pip install '{runner.extra}'"
        ) from error
    except ChildDiedError as died:
        raise _death(died, runner, seconds) from died


def _outputs(path: Path, names: Sequence[str]) -> Tensors:
    with np.load(path, allow_pickle=False) as archive:
        arrays = [archive[f"arr_{index}"] for index in range(len(names))]
    return {
        name: array.astype(np.float32) if array.dtype == np.float16 else array
        for name, array in zip(names, arrays, strict=True)
    }


def _death(died: ChildDiedError, runner: Runner, seconds: float | None) -> RunError:
    if died.how == "time":
        return RunError(f"{runner.name} passed the time limit of {seconds:g} s", fix="allow more time, or none")
    what = signal_name(died.code) if died.how == "signal" else f"status {died.code}"
    said = f": {died.output.splitlines()[-1]}" if died.output else ""
    return RunError(f"{runner.name} crashed while running ({what}){said}", fix="try it again; report it if it stays")
