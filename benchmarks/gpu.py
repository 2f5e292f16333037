"""What a device computes in real half precision, against what the emulator says: `python benchmarks/gpu.py`.

The typed models (FP32, everything FP16, the plan that `locate` finds) of the zoo, the shared models and the made big
ones run on PyTorch, operator by operator (`torch_onnx.py`). Verdicts, error ratios and the error of every layer stand
beside those of each emulator in `EMULATORS`, both sides against their own FP32 reference. Written are OUT.json, anew
after each model, and OUT.md. Models go in order of size until `--budget` is nearly spent.

    python benchmarks/gpu.py                           on a GPU, at most 8 minutes
    python benchmarks/gpu.py --device cpu --small      seconds, to see that it runs
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

NEEDED = ("numpy", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "torch", "yaml", "fastjsonschema", "rich")
if absent := [name for name in NEEDED if find_spec(name) is None]:
    sys.exit(f"not installed: {', '.join(absent)}; pip install torch and this repository's own requirements")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from gpu_models import ROOT, AbsentError, Loaded, Subject, subjects  # noqa: E402
from gpu_report import figures, markdown  # noqa: E402
from torch_layers import NotCoveredError  # noqa: E402
from torch_onnx import Interpreter  # noqa: E402

from trt_helper.emulator.emulator import Emulator  # noqa: E402
from trt_helper.emulator.kernels import EmulationError  # noqa: E402
from trt_helper.inputs.references import references  # noqa: E402
from trt_helper.onnx_model.graph import Graph  # noqa: E402
from trt_helper.onnx_model.typed import render, write  # noqa: E402
from trt_helper.search.oracle import Criteria  # noqa: E402
from trt_helper.system.files import write_atomically  # noqa: E402
from trt_helper.values import READINGS, Array, Plan, Role, Tensors  # noqa: E402

# The readings of what kernels compute. Each makes an emulator of a graph.
EMULATORS: dict[str, Callable[[Graph], Emulator]] = {
    reading.value: partial(Emulator, reading=reading) for reading in READINGS
}
NEGLIGIBLE = 1e-4  # of the largest magnitude of a layer's tensors: a fifth of half a step of half precision
RESERVE = 30  # seconds of the budget that are left for what is running when time is up
REPEATS = 5  # timed runs


@dataclass(frozen=True)
class Mode:
    """How the device computes: one column of the figures."""

    name: str
    reduced: bool = False  # reductions inside products may be half
    half_sums: bool = False  # products accumulate in half
    attention: bool = False  # softmax(Q K) V by fused attention


FULL = Mode("full")
MODES = (FULL, Mode("reduced", reduced=True), Mode("half sums", half_sums=True), Mode("attention", attention=True))
LayerErrors = dict[str, float]


@dataclass
class PlanFigures:
    """One plan of one model. `emulated` is by emulator, `measured` by mode, `layers` by mode and emulator."""

    plan: str
    pins: int
    emulated: dict[str, dict[str, Any]] = field(default_factory=dict)
    measured: dict[str, dict[str, Any]] = field(default_factory=dict)
    layers: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)


class OutOfTimeError(Exception):
    """The budget is nearly spent."""


@dataclass(frozen=True)
class Deadline:
    """When to stop, on `time.monotonic`'s clock."""

    at: float

    def left(self) -> float:
        """Seconds."""
        return self.at - time.monotonic()

    def check(self) -> None:
        if self.left() <= 0:
            raise OutOfTimeError


class Measurement:
    """One model on the device and in the emulators."""

    def __init__(self, loaded: Loaded, device: str, folder: Path, deadline: Deadline) -> None:
        self.graph, self.samples, self.folder = loaded.graph, loaded.samples, folder
        self.device, self.deadline = device, deadline
        self.emulators = {name: make(self.graph) for name, make in EMULATORS.items()}
        self.emulated_criteria = Criteria(self.samples, references(self.graph, self.samples), loaded.tolerance)
        self.reference = self.interpreter(self.graph.all_pinned())
        self.tensors: list[dict[str, torch.Tensor]] = []  # of each sample every float tensor in FP32, on the device
        self.outputs = [self._reference_outputs(sample.feed) for sample in self.samples]
        self.criteria = Criteria(self.samples, self.outputs, loaded.tolerance)
        self.compared = {
            name: layer.name for layer in self.graph.layers if layer.role is not Role.MOVEMENT for name in layer.outputs
        }
        self.sizes: dict[str, float] = {}  # of each layer the largest finite magnitude in FP32
        for name, layer in self.compared.items():
            self.sizes[layer] = max(self.sizes.get(layer, 0.0), self._size(name))

    def interpreter(self, plan: Plan, *, attention: bool = False) -> Interpreter:
        return Interpreter(render(self.graph, plan).model, self.device, attention=attention)

    def _reference_outputs(self, feed: Any) -> Tensors:
        kept: dict[str, torch.Tensor] = {}

        def watch(name: str, tensor: torch.Tensor) -> None:
            if tensor.is_floating_point():
                kept[name] = tensor

        found = self.reference.run(self.reference.inputs(feed), watch)
        self.tensors.append(kept)
        return as_arrays(found)

    def _size(self, name: str) -> float:
        tensors = [kept[name] for kept in self.tensors if name in kept and kept[name].numel()]
        return max((float(t.nan_to_num(0, 0, 0).abs().max()) for t in tensors), default=0.0)

    def fp32_difference(self) -> float:
        """How far the interpreter's FP32 outputs are from ONNX Runtime's, over the tolerance."""
        return self.emulated_criteria.judge(Plan(), self.outputs, self.criteria.every_sample).trial.error_ratio

    def plan(self, label: str, plan: Plan) -> PlanFigures:
        """All figures of one plan but its times."""
        figures_of = PlanFigures(label, len(plan))
        emulated: dict[str, LayerErrors] = {}
        for name, emulator in self.emulators.items():
            figures_of.emulated[name], emulated[name] = self._emulated(emulator, plan)
        interpreters = {attention: self.interpreter(plan, attention=attention) for attention in (False, True)}
        for mode in self.modes():
            self.deadline.check()
            interpreter = interpreters[mode.attention]
            if mode.attention and not interpreter.fused:
                continue
            with set_up(mode):
                figures_of.measured[mode.name], errors = self._measured(interpreter, plan)
            figures_of.layers[mode.name] = {
                name: compare_layers(errors, emulated[name], self.sizes) for name in self.emulators
            }
        if found := self._on_onnxruntime(plan):
            figures_of.measured["onnxruntime"] = found
        return figures_of

    def modes(self) -> Sequence[Mode]:
        """On a CPU the settings of products mean nothing."""
        settable = hasattr(torch.backends.cuda.matmul, "allow_fp16_accumulation")
        on_gpu = [mode for mode in MODES if not mode.half_sums or settable]
        return [mode for mode in on_gpu if self.device == "cuda" or not (mode.reduced or mode.half_sums)]

    def _emulated(self, emulator: Emulator, plan: Plan) -> tuple[dict[str, Any], LayerErrors]:
        """Verdict and error ratio, and the error of each layer on its worst sample."""
        errors: LayerErrors = {}
        for sample in self.samples:
            for step in emulator.walk(plan, sample.feed):
                self.deadline.check()
                for name in step.reference.keys() & self.compared.keys():
                    found, reference = step.accumulated[name], step.reference[name]
                    if reference.dtype.kind == "f" and found is not reference:
                        error = largest_difference(torch.from_numpy(found), torch.from_numpy(reference))
                        errors[step.layer.name] = max(errors.get(step.layer.name, 0.0), float(error))
        try:
            outputs = [emulator.run(plan, sample.feed) for sample in self.samples]
        except EmulationError as error:
            return {"verdict": "unresolved", "ratio": math.inf, "why": error.message}, errors
        return self._judged(self.emulated_criteria, plan, outputs), errors

    def _measured(self, interpreter: Interpreter, plan: Plan) -> tuple[dict[str, Any], LayerErrors]:
        """As `_emulated`, on the device."""
        errors: dict[str, torch.Tensor] = {}
        outputs = []
        for sample, reference in zip(self.samples, self.tensors, strict=True):

            def watch(name: str, tensor: torch.Tensor, reference: dict[str, torch.Tensor] = reference) -> None:
                layer = self.compared.get(name)
                if layer and name in reference:
                    error = largest_difference(tensor, reference[name])
                    errors[layer] = torch.maximum(errors[layer], error) if layer in errors else error

            try:
                outputs.append(as_arrays(interpreter.run(interpreter.inputs(sample.feed), watch)))
            except IndexError as error:
                return {"verdict": "unresolved", "ratio": math.inf, "why": str(error)}, {}
        judged = self._judged(self.criteria, plan, outputs) | {"in_fp32": len(interpreter.widened)}
        return judged, {layer: float(error) for layer, error in errors.items()}

    def _judged(self, criteria: Criteria, plan: Plan, outputs: Sequence[Tensors]) -> dict[str, Any]:
        trial = criteria.judge(plan, outputs, criteria.every_sample).trial
        return {"verdict": trial.verdict.value, "ratio": trial.error_ratio}

    def _on_onnxruntime(self, plan: Plan) -> dict[str, Any]:
        """Verdict and ratio of ONNX Runtime's CUDA provider; empty where that is not installed."""
        import onnxruntime as ort  # noqa: PLC0415

        if self.device != "cuda" or "CUDAExecutionProvider" not in ort.get_available_providers():
            return {}
        providers = [("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"]
        try:
            runs = []
            for pinned in (self.graph.all_pinned(), plan):
                path = self.folder / "typed.onnx"
                write(render(self.graph, pinned), path)
                session = ort.InferenceSession(str(path), providers=providers)
                if session.get_providers()[0] != "CUDAExecutionProvider":
                    return {}
                names = [value.name for value in session.get_outputs()]
                half = {value.name for value in session.get_inputs() if value.type == "tensor(float16)"}
                feeds = [{n: a.astype(np.float16) if n in half else a for n, a in s.feed.items()} for s in self.samples]
                runs.append([dict(zip(names, map(single, session.run(names, feed)), strict=True)) for feed in feeds])
        except Exception as error:  # it raises classes of its own
            return {"verdict": "unresolved", "ratio": math.inf, "why": str(error).partition("\n")[0][:200]}
        return self._judged(Criteria(self.samples, runs[0], self.criteria.tolerance), plan, runs[1])

    def seconds(self, plan: Plan) -> dict[str, Any]:
        """The time of one inference on the first sample, by the settings of `FULL`."""
        interpreter = self.reference if plan == self.graph.all_pinned() else self.interpreter(plan)
        with set_up(FULL):
            return timed(interpreter, interpreter.inputs(self.samples[0].feed))


def as_arrays(tensors: dict[str, torch.Tensor]) -> Tensors:
    return {name: single(tensor.cpu().numpy()) for name, tensor in tensors.items()}


def single(array: Array) -> Array:
    return array.astype(np.float32) if array.dtype == np.float16 else array


def largest_difference(found: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """The largest absolute difference; equal infinities differ by 0, all else that is not finite by infinity."""
    if found.shape != reference.shape:
        return torch.tensor(math.inf, device=reference.device)
    if not reference.numel():
        return torch.tensor(0.0, device=reference.device)
    found = found.float()
    difference = torch.where(found == reference, 0.0, (found - reference).abs())
    both_nan = found.isnan() & reference.isnan()
    return torch.where(both_nan, 0.0, difference).nan_to_num(math.inf, math.inf).max()


def compare_layers(measured: LayerErrors, emulated: LayerErrors, sizes: dict[str, float]) -> dict[str, Any]:
    """How many layers have an error within a factor of 2, and the one with the largest factor.

    Left out are layers whose error is negligible on both sides, and those that the device did not compute by
    themselves (fused attention).
    """
    factors: dict[str, float] = {}
    for layer in measured:
        a, b = measured[layer], emulated.get(layer, 0.0)
        if max(a, b) > NEGLIGIBLE * sizes[layer]:
            factors[layer] = 1.0 if a == b else math.inf if min(a, b) == 0 else max(a, b) / min(a, b)
    if not factors:
        return {"compared": 0, "within_2": 0}
    worst = max(factors, key=lambda layer: factors[layer])
    return {
        "compared": len(factors),
        "within_2": sum(factor <= 2 for factor in factors.values()),
        "largest_factor": factors[worst],
        "layer": worst,
        "device_error": measured[worst],
        "emulated_error": emulated.get(worst, 0.0),
    }


class set_up:  # noqa: N801 - used as a function
    """PyTorch's settings of one mode inside a `with`; without TF32 in any."""

    def __init__(self, mode: Mode) -> None:
        self.mode = mode

    def __enter__(self) -> None:
        self._set(reduced=self.mode.reduced, half_sums=self.mode.half_sums)

    def __exit__(self, *_: object) -> None:
        self._set(reduced=False, half_sums=False)

    def _set(self, *, reduced: bool, half_sums: bool) -> None:
        matmul = torch.backends.cuda.matmul
        matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        matmul.allow_fp16_reduced_precision_reduction = reduced
        if hasattr(matmul, "allow_fp16_accumulation"):
            matmul.allow_fp16_accumulation = half_sums


def timed(interpreter: Interpreter, inputs: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Median seconds of one inference: of a CUDA graph where one can be made, else with Python between the kernels."""
    run, how = (lambda: interpreter.run(inputs)), "eager"
    run()
    if interpreter.device.type == "cuda" and not interpreter.waits:
        try:
            run, how = captured(run), "CUDA graph"
        except RuntimeError as error:
            how = f"eager, no CUDA graph: {str(error).partition(chr(10))[0][:80]}"
            torch.cuda.set_stream(torch.cuda.default_stream())
    found = []
    for _ in range(REPEATS):
        before = time.perf_counter()
        run()
        if interpreter.device.type == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - before)
    return {"seconds": statistics.median(found), "how": how}


def captured(run: Callable[[], object]) -> Callable[[], object]:
    """`run` as a CUDA graph, which starts all kernels at once."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    replay: Callable[[], object] = graph.replay
    return replay


def measure(subject: Subject, device: str, deadline: Deadline) -> dict[str, Any]:
    """All figures of one model."""
    with tempfile.TemporaryDirectory() as made:
        loaded = subject.load(Path(made))
        deadline.check()
        measurement = Measurement(loaded, device, Path(made), deadline)
        deadline.check()
        plans = {"fp16": Plan(), "plan": loaded.found_plan(deadline.left())}
        rows = [measurement.plan(label, plan) for label, plan in plans.items()]
        seconds = {}
        for label, plan in {"fp32": measurement.graph.all_pinned(), **plans}.items():
            deadline.check()
            seconds[label] = measurement.seconds(plan)
    return {
        "name": subject.name,
        "group": subject.group,
        "layers": len(loaded.graph.layers),
        "samples": len(loaded.samples),
        "atol": loaded.atol,
        "fp32_difference": measurement.fp32_difference(),
        "plans": [asdict(row) for row in rows],
        "seconds": seconds,
    }


def about(device: str) -> dict[str, Any]:
    """The device, the versions and the date."""
    import onnxruntime as ort  # noqa: PLC0415

    gpu = device == "cuda"
    return {
        "device": torch.cuda.get_device_name() if gpu else f"cpu, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "cuda": torch.version.cuda if gpu else None,
        "driver": nvidia_driver() if gpu else None,
        "onnxruntime": ort.__version__,
        "numpy": np.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def nvidia_driver() -> str | None:
    """The driver's version, where the machine tells."""
    asked = shutil.which("nvidia-smi")
    if asked is None:
        return None
    command = [asked, "--query-gpu=driver_version", "--format=csv,noheader"]
    told = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    return told[0] if told else None


def every_model(asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The figures so far, after each model."""
    started = time.monotonic()
    deadline = Deadline(started + asked.budget - min(RESERVE, asked.budget / 4))
    found: dict[str, Any] = about(asked.device) | {"models": [], "not_run": {}, "left_out": []}
    for subject in subjects(asked.models, small=asked.small):
        if asked.names and subject.name not in asked.names:
            continue
        before = time.monotonic()
        try:
            deadline.check()
            model = measure(subject, asked.device, deadline)
            found["models"].append(model | {"wall": time.monotonic() - before})
        except OutOfTimeError:
            found["left_out"].append(subject.name)
        except (AbsentError, NotCoveredError) as error:
            found["not_run"][subject.name] = str(error)
        except Exception as error:  # whatever happens to one model, the others are measured
            found["not_run"][subject.name] = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
        found["wall"] = time.monotonic() - started
        yield found


def strict(value: Any) -> Any:
    """`value` for JSON, which has no infinity: "inf" and "nan" as text."""
    if isinstance(value, dict):
        return {name: strict(of) for name, of in value.items()}
    if isinstance(value, list):
        return [strict(of) for of in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="models; by default all")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="a few small models")
    parser.add_argument("--budget", type=float, default=480, help="seconds; models that do not fit are left out")
    parser.add_argument("--models", type=Path, default=ROOT.parent / "shared" / "models", help="the shared models")
    parser.add_argument("-o", "--out", type=Path, default=ROOT / "build" / "gpu", help="without its ending")
    asked = parser.parse_args(words)
    if asked.device == "cuda" and not torch.cuda.is_available():
        print(f"PyTorch {torch.__version__} cannot use a GPU here; --device cpu runs the same on the CPU")
        return 3
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    for found in every_model(asked):
        found["summary"] = figures(found)
        write_atomically(
            asked.out.with_suffix(".json"), json.dumps(strict(found), indent=1, allow_nan=False).encode() + b"\n"
        )
        write_atomically(asked.out.with_suffix(".md"), markdown(found).encode())
    print(asked.out.with_suffix(".md").read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
