"""Speed and trials, each against a reference measured in the same run: `python benchmarks/speed.py`.

Every figure is a ratio of medians, with one thread on both sides. Plain inference is the same model as
one ONNX Runtime session without graph optimisation; with it, the last column says how much faster that
is. Models under ../shared/models are used where they are there; the others are made here.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort
from made import residual_cnn, transformer
from rich.console import Console
from rich.table import Table

from trt_helper.emulator.emulator import Emulator
from trt_helper.emulator.layer_errors import measure_layers
from trt_helper.inputs.samples import load_samples
from trt_helper.onnx_model.graph import read_graph
from trt_helper.onnx_model.load import load
from trt_helper.onnx_model.ort_session import session_options
from trt_helper.values import Plan, Tolerance

SHARED = Path(__file__).resolve().parents[2] / "shared" / "models"
RUNS = 7


def median(work: Callable[[], object], runs: int = RUNS) -> float:
    """Median seconds of `work` after one warm-up."""
    work()
    taken = []
    for _ in range(runs):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def models(folder: Path) -> Iterator[tuple[str, Path, list[Path]]]:
    for name, make in (("residual CNN, 60 layers", residual_cnn), ("transformer, 4 blocks", transformer)):
        path = folder / f"{make.__name__}.onnx"
        make(path)
        yield name, path, []
    for model in sorted(SHARED.glob("*/model.onnx")):
        inputs = model.parent / "inputs"
        yield model.parent.name, model, [inputs] if inputs.is_dir() else []


def measure(path: Path, inputs: list[Path]) -> tuple[float, ...]:
    def session(optimised: bool) -> ort.InferenceSession:
        options = session_options()
        if optimised:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    graph = read_graph(load(path))
    feed = dict(load_samples(graph, inputs)[0].feed)
    emulator = Emulator(graph)
    plain_session, fast_session = session(optimised=False), session(optimised=True)
    plain = median(lambda: plain_session.run(None, feed))
    fast = median(lambda: fast_session.run(None, feed))
    trial = median(lambda: emulator.run(Plan(), {**feed}))  # a sample that it has not seen: nothing is used again
    last = itertools.cycle((Plan.of(graph.candidates[-2:]), Plan()))
    late = median(lambda: emulator.run(next(last), feed))
    every_layer = median(lambda: measure_layers(emulator, Plan(), [feed], Tolerance()), runs=3)
    loading = median(lambda: session(optimised=True), runs=3)
    set_up = median(lambda: Emulator(read_graph(load(path))), runs=3)
    return (
        len(graph.layers),
        plain * 1e3,
        trial / plain,
        late / plain,
        every_layer / plain,
        set_up / loading,
        plain / fast,
    )


def main() -> int:
    table = Table(title="Against one FP32 inference in ONNX Runtime, one thread", title_justify="left", box=None)
    for column in (
        "model",
        "layers",
        "inference ms",
        "trial",
        "last two layers change",
        "every layer",
        "set-up / load",
        "optimised is faster by",
    ):
        table.add_column(column, justify="left" if column == "model" else "right")
    with tempfile.TemporaryDirectory() as folder:
        for name, path, inputs in models(Path(folder)):
            layers, plain, *ratios = measure(path, inputs)
            table.add_row(name, str(layers), f"{plain:.2f}", *(f"{ratio:.2f} x" for ratio in ratios))
    Console(width=130).print(table)
    print(f"onnxruntime {ort.__version__}, numpy {np.__version__}, Python {sys.version.split()[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
