"""Run an engine or a typed model on samples, in a child process.

A kernel that reads outside its memory destroys the CUDA context. Here that only ends the child process and becomes a
`RunError`.
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
from trt_helper.inputs.sample import Sample
from trt_helper.runners.exchange import write_feed
from trt_helper.system.child_process import ChildDiedError, Event, Limits, NotImportableError, run, signal_name
from trt_helper.system.machine import RTX_COMPUTE_CAPABILITIES, find_gpu
from trt_helper.values import Tensors


@dataclass(frozen=True, slots=True)
class Runner:
    """A way to compute FP16 on a GPU: TensorRT with an engine, or an ONNX Runtime provider with a typed model."""

    name: str
    package: str  # Python package that must be importable
    extra: str  # pip requirement that installs it
    provider: str = ""  # ONNX Runtime's provider; empty if engines are run
    module: str = "trt_helper.runners.engine_child"  # the child process

    @property
    def builds(self) -> bool:
        """Whether an engine must be built first."""
        return not self.provider

    @property
    def version(self) -> str:
        """The installed version of the package, from its metadata; the package is not imported."""
        named = packages_distributions().get(self.package)
        return version(named[0]) if named else "unknown"

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that choose the child's TensorRT package; Polygraphy reads one on import."""
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
    """Return the runner `name` after checking that it can run on this machine.

    Raises:
        MachineError: A package, the GPU or its driver is missing; the message says which.
    """
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
    """Run `file` on every sample.

    Args:
        runner: How to run it.
        file: An engine or a typed model, according to `runner.builds`.
        samples: The inputs.
        outputs: Names of the outputs to return.
        repeats: Inferences per sample whose outputs are returned.
        warm_up: Inferences per sample before them, whose outputs are discarded.
        seconds: Limit of wall clock for the whole call; None is no limit.

    Returns:
        [repeat][sample] -> outputs by name; FP16 outputs are converted to FP32.

    Raises:
        MachineError: The runner cannot be loaded.
        RunError: Loading or running the file failed, crashed or passed the limit.
    """
    with tempfile.TemporaryDirectory(prefix="trt-helper-") as name:
        folder = Path(name)
        options = {"repeats": repeats, "warm_up": warm_up, "intermediates": False}
        _served(runner, file, samples, folder, {"outputs": list(outputs), **options}, seconds)
        return [
            [_outputs(folder / f"out{repeat}_{index}.npz", outputs) for index in range(len(samples))]
            for repeat in range(repeats)
        ]


def run_for_intermediates(
    runner: Runner, file: Path, sample: Sample, outputs: Sequence[str], *, seconds: float | None = None
) -> Tensors:
    """Run an engine with debug tensors on one sample and return its intermediate tensors.

    Args:
        runner: How to run it.
        file: An engine that was built with `BuildSettings.debug_tensors`.
        sample: The inputs.
        outputs: Names of the model's outputs, which are not returned.
        seconds: Limit of wall clock; None is no limit.

    Returns:
        The tensors between the engine's kernels by the engine's names; FP16 is converted to FP32.

    Raises:
        MachineError: The runner cannot be loaded.
        RunError: Loading or running the engine failed, crashed or passed the limit.
    """
    with tempfile.TemporaryDirectory(prefix="trt-helper-") as name:
        folder = Path(name)
        options = {"outputs": list(outputs), "repeats": 1, "warm_up": 0, "intermediates": True}
        answer = _served(runner, file, [sample], folder, options, seconds)
        return _outputs(folder / "intermediates0.npz", answer["intermediates"][0])


def _served(
    runner: Runner,
    file: Path,
    samples: Sequence[Sample],
    folder: Path,
    options: Mapping[str, Any],
    seconds: float | None,
) -> Event:
    """Write the samples into `folder`, run the child process, and return its answer."""
    names = [list(sample.feed) for sample in samples]
    for index, sample in enumerate(samples):
        write_feed(folder / f"in{index}.npz", sample)
    request = {
        "file": str(file.absolute()),
        "provider": runner.provider,
        "folder": str(folder),
        "inputs": names,
        **options,
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
    cause = signal_name(died.code) if died.how == "signal" else f"status {died.code}"
    said = f": {died.output.splitlines()[-1]}" if died.output else ""
    return RunError(f"{runner.name} crashed while running ({cause}){said}", fix="try it again; report it if it stays")
