"""List the backends that can run a model with a plan on this machine, and why the others cannot."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from trt_helper.bench.rows import NotRun
from trt_helper.builder.convert import convert
from trt_helper.builder.settings import BuildSettings
from trt_helper.errors import MachineError
from trt_helper.inputs.references import loadable
from trt_helper.inputs.sample import Sample
from trt_helper.inputs.shapes import profile, ranges_of
from trt_helper.onnx_model.graph import Graph
from trt_helper.runners.run import RUNNERS, Runner, runner_here
from trt_helper.system.machine import find_gpu
from trt_helper.values import LayerName, Plan

Request = dict[str, Any]
Building = Callable[[str, float], None]  # TensorRT's build phase, and the fraction done in [0, 1]
Prepare = Callable[[Path, Building], Request]
"""Makes the model or engine in a folder, reporting progress; returns the backend's part of the child's request."""

PRECISIONS = {"fp32": "FP32", "fp16": "FP16", "plan": "FP16 with the plan"}
ENGINES = {"cuda": "ONNX Runtime, CUDA", "tensorrt": "TensorRT engine", "tensorrt-rtx": "TensorRT-RTX engine"}
NO_CHECKPOINT = NotRun(
    "PyTorch, FP32",
    "no checkpoint was given",
    "--checkpoint FILE, with --model FILE.py:CALLABLE where it holds weights",
)


@dataclass(frozen=True, eq=False)
class Backend:
    """One way to run the model.

    Attributes:
        what: Name for the user.
        runner: pytorch, onnxruntime, emulate, cuda, tensorrt or tensorrt-rtx.
        precision: A key of `PRECISIONS`.
        module: The child process.
        prepare: Makes the files that the child process needs.
        requested: Whether an error ends the command; the error of another backend becomes a `NotRun`.
        environment: Environment variables for the child process.
    """

    what: str
    runner: str
    precision: str
    module: str  # of the child
    prepare: Prepare
    requested: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Module:
    """The PyTorch module that the model was exported from, in terms of `export`'s options."""

    checkpoint: Path
    model: str | None = None  # FILE_OR_MODULE:CALLABLE
    model_args: Sequence[str] = ()  # NAME=VALUE
    trust: bool = False  # allow the checkpoint to run code


@dataclass(frozen=True, slots=True)
class Engines:
    """The settings of engines with the plan: guards of an earlier conversion, excluded tactics."""

    guards: Sequence[LayerName] = ()  # pins to guard
    exclude_tactics: Sequence[Mapping[str, Any]] = ()  # entries of TRT_EXCLUDE_TACTIC


def backends(
    graph: Graph, plan: Plan, samples: Sequence[Sample], module: Module | None, engines: Engines
) -> tuple[list[Backend], list[NotRun]]:
    """Return the backends of this machine and the reasons why others cannot run.

    Args:
        graph: The normalised model.
        plan: Backends with the plan are listed only if it is not empty, except emulation.
        samples: Every sample that will be run: the profiles of engines cover their shapes.
        module: The PyTorch module, if it should be measured too.
        engines: Settings of the engines with the plan.

    Raises:
        MachineError: A `module` is given, but PyTorch is not installed.
    """
    found = [] if module is None else _pytorch(module)
    found += [_cpu(graph), _emulated(graph, plan)]
    not_run = [NO_CHECKPOINT] if module is None else []
    for name in RUNNERS:
        try:
            runner = runner_here(name)
        except MachineError as error:
            not_run.append(NotRun(ENGINES[name], error.message, _how(error)))
            continue
        plans = {"fp32": graph.all_pinned(), "fp16": Plan(), **({"plan": plan} if plan != Plan() else {})}
        found += [_on_gpu(runner, graph, key, one, samples, engines) for key, one in plans.items()]
    return found, not_run


def _how(error: MachineError) -> str:
    """Return what a runner needs that is missing here: the package, the machine or both."""
    missing = find_gpu().missing
    if error.fix.startswith("pip "):
        return f"{error.fix}; {missing}" if missing else error.fix
    return "run bench on such a machine"


def _pytorch(module: Module) -> list[Backend]:
    try:
        release = version("torch")
    except PackageNotFoundError:
        raise MachineError(
            f"{module.checkpoint} needs PyTorch, and it is not installed", fix="pip install 'trt-helper[export]'"
        ) from None
    request = {**asdict(module), "checkpoint": str(module.checkpoint), "model_args": list(module.model_args)}
    return [
        Backend(
            f"PyTorch {release.partition('+')[0]}, {device.upper()}, FP32",
            "pytorch",
            "fp32",
            "trt_helper.bench.torch_child",
            _ready({**request, "device": device}),
            requested=device == "cpu",
        )
        for device in ("cpu", *(() if find_gpu().missing else ("cuda",)))
    ]


def _ready(request: Request) -> Prepare:
    """Return the `prepare` of a backend that needs no files."""
    return lambda _folder, _building: request


def _cpu(graph: Graph) -> Backend:
    def prepare(folder: Path, _building: Building) -> Request:
        file = loadable(graph)
        if isinstance(file, bytes):
            (folder / "model.onnx").write_bytes(file)
            file = str(folder / "model.onnx")
        external = str(graph.source.path.absolute().parent)
        return {"file": file, "external": external, "provider": "CPUExecutionProvider"}

    what = "ONNX Runtime, CPU, FP32"
    return Backend(what, "onnxruntime", "fp32", "trt_helper.bench.ort_child", prepare, requested=True)


def _emulated(graph: Graph, plan: Plan) -> Backend:
    request = {
        "file": str(graph.source.path),
        "cures": [asdict(rewrite) for rewrite in graph.rewrites],
        "fp32": sorted(plan.fp32),
        "bf16": sorted(plan.bf16),
    }
    what = "emulated FP16 with the plan"
    return Backend(what, "emulate", "plan", "trt_helper.bench.emulate_child", _ready(request), requested=True)


def _on_gpu(
    runner: Runner, graph: Graph, precision: str, plan: Plan, samples: Sequence[Sample], engines: Engines
) -> Backend:
    def prepare(folder: Path, building: Building) -> Request:
        engine, typed = folder / "model.trt", folder / "typed.onnx"
        tactics = tuple(engines.exclude_tactics) if runner.name == "tensorrt" and precision == "plan" else ()
        convert(
            graph,
            plan,
            engine=engine if runner.builds else None,
            typed_onnx=None if runner.builds else typed,
            profile=profile(graph, ranges_of(graph, samples))[0],
            settings=BuildSettings(tensorrt=runner.name == "tensorrt", exclude_tactics=tactics),
            guards=engines.guards if precision == "plan" else (),
            on_progress=building,
        )
        file = engine if runner.builds else typed
        return {"file": str(file), "external": str(folder), "provider": runner.provider}

    child = "engine" if runner.builds else "ort"
    return Backend(
        f"{ENGINES[runner.name]}, {PRECISIONS[precision]}",
        runner.name,
        precision,
        f"trt_helper.bench.{child}_child",
        prepare,
        environment=runner.environment,
    )
