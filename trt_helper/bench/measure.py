"""Time a model with all backends of this machine, and estimate its speed on GPUs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from trt_helper.bench.backends import Backend, Engines, Module, Request, backends
from trt_helper.bench.rows import Estimated, Measured, NotRun, times
from trt_helper.emulator.emulator import Emulator
from trt_helper.errors import BuildError, InputError, MachineError, ModelError, RunError
from trt_helper.inputs.sample import Sample
from trt_helper.inputs.samples import resized
from trt_helper.onnx_model.cost import Gpu, seconds
from trt_helper.onnx_model.graph import Graph
from trt_helper.runners.exchange import write_feed
from trt_helper.system.child_process import ChildDiedError, Limits, NotImportableError, run, signal_name
from trt_helper.values import Array, Plan

WARM_UP = 3  # inferences of each stream that are not timed
SAME = (
    1e-2  # largest difference of PyTorch's outputs over the largest |value|; the outputs of another network differ more
)
Batches = Mapping[int | None, Sample]  # batch size -> sample; None: the first dimensions are fixed
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Timing:
    """How often to run each backend, in inferences, and in how many streams."""

    repeats: int = 30  # timed inferences, over all streams
    warm_up: int = WARM_UP  # untimed inferences per stream
    streams: int = 1  # threads


@dataclass(frozen=True, slots=True)
class Benched:
    """The result: measured rows, the backends that did not run, and warnings."""

    measured: tuple[Measured, ...]
    not_run: tuple[NotRun, ...]
    warnings: tuple[str, ...]


def batches(graph: Graph, sample: Sample, sizes: Sequence[int] = ()) -> Batches:
    """Return the sample with each batch size, cut or repeated.

    The batch is the first dimension of every input if it is dynamic, and every dimension of the same name.

    Args:
        graph: The normalised model.
        sample: The inputs.
        sizes: Batch sizes; empty keeps the sample's.

    Returns:
        Batch size -> sample. The key is None if no input has a dynamic first dimension.

    Raises:
        InputError: Sizes are given, but the first dimensions are fixed.
    """
    first = {value.name: value.shape[0] for value in graph.inputs if value.shape}
    free = {name: size for name, size in first.items() if not isinstance(size, int)}
    if not sizes:
        return {next((sample.shapes[name or ""][0] for name in free), None): sample}
    if not free:
        fixed = ", ".join(f"{size} in {name!r}" for name, size in first.items()) or "no dimension"
        raise InputError(
            f"--batch: the model's first dimension is fixed ({fixed})",
            fix="leave --batch out, or export the model with a dynamic one: --dynamic NAME:0=1..32",
        )
    symbols = {size.value for size in free.values()} - {None}
    found: dict[int | None, Sample] = {}
    for size in sizes:
        shapes = {
            value.name or "": tuple(
                size if (axis == 0 and value.name in free) or (not isinstance(d, int) and d.value in symbols) else n
                for axis, (d, n) in enumerate(zip(value.shape or (), sample.shapes[value.name or ""], strict=False))
            )
            for value in graph.inputs
        }
        found[size] = resized(graph, sample, shapes, f"batch {size}")
    return found


def measure(
    graph: Graph,
    plan: Plan,
    samples: Batches,
    timing: Timing,
    *,
    module: Module | None = None,
    engines: Engines | None = None,
    on_progress: Progress = lambda _what, _done, _total: None,
) -> Benched:
    """Time every backend with each batch, one child process after the other.

    Args:
        graph: The normalised model.
        plan: The plan.
        samples: Batch size -> sample, from `batches`.
        timing: How often to run.
        module: The PyTorch module, if it should be measured too.
        engines: Settings of the engines with the plan.
        on_progress: Called with a label, the inferences done and their number.

    Raises:
        MachineError, ModelError, InputError, RunError: A requested backend cannot run. The errors of other backends
            are in the result's `not_run`.
    """
    found, not_run = backends(graph, plan, list(samples.values()), module, engines or Engines())
    bench = _Bench(graph, timing, on_progress)
    for backend in found:
        try:
            bench.time(backend, samples)
        except (BuildError, MachineError, ModelError, InputError, RunError) as error:
            if backend.requested:
                raise
            not_run.append(NotRun(backend.what, error.message, error.fix))
    return Benched(tuple(bench.measured), tuple(not_run), tuple(bench.warnings))


@dataclass(eq=False)
class _Bench:
    """The measurements so far."""

    graph: Graph
    timing: Timing
    on_progress: Progress
    measured: list[Measured] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    pytorch_outputs: list[tuple[str, list[Array]]] = field(
        default_factory=list
    )  # outputs of the PyTorch backends, first batch

    def time(self, backend: Backend, samples: Batches) -> None:
        """Prepare one backend and run it with every batch."""
        with tempfile.TemporaryDirectory(prefix="trt-helper-") as name:
            folder = Path(name)
            self.on_progress(backend.what, 0, 1)
            prepared = backend.prepare(
                folder, lambda phase, part: self.on_progress(f"{backend.what}: {phase}", int(100 * part), 100)
            )
            for batch, sample in samples.items():
                found = self._child(backend, prepared, folder, batch, sample)
                self.measured.append(self._row(backend, batch, found))
                if batch == next(iter(samples)):
                    self.warnings += [str(note) for note in found.get("notes", ())]
                    self._warn_if_different(backend, folder)

    def _child(self, backend: Backend, prepared: Request, folder: Path, batch: int | None, sample: Sample) -> Request:
        write_feed(folder / "in.npz", sample)
        request = {
            **prepared,
            "folder": str(folder),
            "source": sample.source,
            "inputs": list(sample.feed),
            "outputs": list(self.graph.outputs),
            "repeats": self.timing.repeats,
            "warm_up": self.timing.warm_up,
            "streams": self.timing.streams,
        }
        what = backend.what if batch is None else f"{backend.what}, batch {batch}"
        self.on_progress(what, 0, self.timing.repeats)
        try:
            return run(
                backend.module,
                request,
                limits=Limits(),
                on_event=lambda event: self.on_progress(what, event["done"], event["of"]),
                leftover=folder / "leftover",
                environment=backend.environment,
            )
        except NotImportableError as error:
            raise MachineError(
                f"{backend.what} cannot be loaded: {error}", fix="trt-helper doctor says what it needs"
            ) from error
        except ChildDiedError as died:
            how = signal_name(died.code) if died.how == "signal" else f"status {died.code}"
            raise RunError(
                f"{what} ended its process ({how})", fix="most often memory ran out: give a smaller --batch"
            ) from died

    def _row(self, backend: Backend, batch: int | None, found: Request) -> Measured:
        seen = times(found["spans"])
        return Measured(
            backend.what,
            backend.runner,
            backend.precision,
            batch,
            self.timing.streams,
            seen.at_once,
            self.timing.warm_up,
            len(found["spans"]),
            seen.median,
            seen.p90,
            seen.p99,
            seen.throughput,
            seen.throughput * (batch or 1),
            found["host"],
            found["host_before"],
            found["device"],
        )

    def _warn_if_different(self, backend: Backend, folder: Path) -> None:
        """Add a warning if PyTorch's outputs are not the model's: it is probably another module."""
        if backend.runner == "pytorch":
            self.pytorch_outputs.append((backend.what, _outputs(folder)))
        elif backend.runner == "onnxruntime":
            expected = _outputs(folder)
            self.warnings += [
                f"{what} does not give the model's answers: is it the module that the model was exported from?"
                for what, found in self.pytorch_outputs
                if not _alike(found, expected)
            ]


def _outputs(folder: Path) -> list[Array]:
    with np.load(folder / "out.npz", allow_pickle=False) as archive:
        return [archive[name] for name in archive.files]


def _alike(found: Sequence[Array], expected: Sequence[Array]) -> bool:
    return len(found) == len(expected) and all(
        a.shape == b.shape
        and np.abs(a.astype(float) - b).max(initial=0) <= SAME * np.abs(b.astype(float)).max(initial=0)
        for a, b in zip(found, expected, strict=True)
    )


def estimate(graph: Graph, plan: Plan, samples: Batches, gpus: Iterable[Gpu]) -> list[Estimated]:
    """Estimate the time of one inference with the cost model (`onnx_model.cost`), per batch and GPU."""
    emulator, plans, gpus = Emulator(graph), (graph.all_pinned(), Plan(), plan), list(gpus)
    found = []
    for batch, sample in samples.items():
        shapes = emulator.shapes(sample.feed)
        found += [Estimated(gpu.name, batch, *(seconds(graph, one, shapes, gpu) for one in plans)) for gpu in gpus]
    return found
