"""Peak memory, cores and builds, as whole processes: `python benchmarks/processes.py`.

- Peak resident memory of one trial and of `compare` (every layer), over that of a plain ONNX Runtime session on the
  same model and input, and how it grows with the number of samples and of layers. All are processes of their own; what
  an interpreter with the same imports takes is in all of them.
- The memory of `locate`, without and with a `--memory-limit`; what it maps from files is not counted.
- `locate` with 16 samples on all cores, over the same on one core.
- `convert` with everything FP16, over TensorRT-RTX's builder alone on the same typed model: the command, and the
  function alone, on a graph that has been read.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from made import densenet, residual_cnn, transformer
from process import run
from rich.console import Console
from rich.table import Table

RUNS = 3
HEAD = """
import sys
import numpy as np
import onnxruntime as ort
from pathlib import Path
from trt_helper.emulator.emulator import Emulator
from trt_helper.emulator.layer_errors import measure_layers
from trt_helper.onnx_model.graph import read_graph
from trt_helper.onnx_model.ort_session import session_options
from trt_helper.onnx_model.load import load
from trt_helper.values import Plan, Tolerance
model, feed = Path(sys.argv[1]), dict(np.load(sys.argv[2]))
feeds = [{name: array + i for name, array in feed.items()} for i in range(int(sys.argv[3]))]
"""
PLAIN = HEAD + "session = ort.InferenceSession(str(model), session_options())\nfor f in feeds: session.run(None, f)"
TRIAL = HEAD + "emulator = Emulator(read_graph(load(model)))\nfor f in feeds: emulator.run(Plan(), f)"
EVERY = HEAD + "measure_layers(Emulator(read_graph(load(model))), Plan(), feeds, Tolerance())"
BARE = """
import sys
import tensorrt_rtx as trt
logger = trt.Logger(trt.Logger.ERROR)
builder = trt.Builder(logger)
network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
assert trt.OnnxParser(network, logger).parse_from_file(sys.argv[1])
plan = builder.build_serialized_network(network, builder.create_builder_config())
open(sys.argv[2], "wb").write(plan)
"""
TYPED = """
import sys
from pathlib import Path
from trt_helper.onnx_model.graph import read_graph
from trt_helper.onnx_model.load import load
from trt_helper.onnx_model.typed import render, write
from trt_helper.values import Plan
write(render(read_graph(load(Path(sys.argv[1]))), Plan()), Path(sys.argv[2]))
"""

CONVERT = """
import sys, time
from pathlib import Path
from trt_helper.builder.settings import BuildSettings
from trt_helper.builder.convert import convert
from trt_helper.onnx_model.graph import read_graph
from trt_helper.onnx_model.load import load
from trt_helper.values import Plan
graph, engine = read_graph(load(Path(sys.argv[1]))), Path(sys.argv[2])
started = time.perf_counter()
convert(graph, Plan(), engine=engine, typed_onnx=None, profile={}, settings=BuildSettings())
Path(sys.argv[3]).write_text(str(time.perf_counter() - started))
"""
SHARED = Path(__file__).resolve().parents[2] / "shared" / "models"


def measure(command: Sequence[object], runs: int = RUNS, cores: Sequence[int] = ()) -> tuple[float, float]:
    """Median seconds and peak resident MB of a process."""
    found = [run(command, cores) for _ in range(runs)]
    if failed := [one.error for one in found if one.error]:
        raise SystemExit(f"{command[:4]}: {failed[0]}")
    return statistics.median(one.seconds for one in found), 1e3 * statistics.median(one.peak for one in found)


def memory(models: dict[Path, Path]) -> Table:
    table = columns("Peak memory, MB", "model", "plain session", "one trial", "every layer", "4 samples", "16 samples")
    for model, inputs in models.items():

        def peak(code: str, samples: int = 1, model: Path = model, inputs: Path = inputs) -> float:
            return measure([sys.executable, "-c", code, model, inputs, samples])[1]

        plain = peak(PLAIN)
        ours = [peak(TRIAL), peak(EVERY), peak(EVERY, 4), peak(EVERY, 16)]
        table.add_row(model.stem, f"{plain:.0f}", *(f"{mb:.0f}, {mb / plain:.2f} x" for mb in ours))
    return table


def limited(models: dict[Path, Path]) -> Table:
    title = "locate, 4 samples, 3 trials: the most memory that belonged to no file, MB"
    table = columns(title, "model", "plain session", "without a limit", "limit: 4 x a plain session's")
    for model, inputs in models.items():
        plain = anonymous([sys.executable, "-c", PLAIN, model, inputs, 1])[0]
        command = located(model, inputs, 4)
        found = [anonymous([*command, *more]) for more in ((), ("--memory-limit", round(4 * plain)))]
        table.add_row(model.stem, f"{plain:.0f}", *(f"{mb:.0f}, {mb / plain:.2f} x, {s:.0f} s" for mb, s in found))
    return table


def anonymous(command: Sequence[object]) -> tuple[float, float]:
    """The most MB that a process had resident and that no file holds, looked at 50 times a second; and its seconds."""
    most, started = 0, time.perf_counter()
    with subprocess.Popen(
        [*map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        while process.poll() is None:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            most = max([most, *(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))])
            time.sleep(0.02)
        if process.returncode > 1:
            raise SystemExit(process.stderr.read() if process.stderr else command)
    return most / 1e3, time.perf_counter() - started


def located(model: Path, inputs: Path, samples: int = 16) -> list[object]:
    """A command that locates; the tolerance is one that FP16 misses and FP32 does not."""
    atol = "1e-5" if model.stem == "residual_cnn" else "1e-3"
    folder = model.with_name(f"{model.stem}, {samples} samples")
    folder.mkdir(exist_ok=True)
    for index in range(samples):
        np.savez(folder / f"{index}.npz", **{name: array + index for name, array in np.load(inputs).items()})
    asked = ["locate", model, "--inputs", folder, "--atol", atol, "--rtol", "0", "--max-trials", "3"]
    return [sys.executable, "-m", "trt_helper", *asked, "-o", model.with_suffix(".yaml")]


def cores(model: Path, inputs: Path) -> Table:
    command = located(model, inputs)
    one, every = (measure(command, RUNS, used)[0] for used in ([0], []))
    table = columns(f"locate with 16 samples, 3 trials, {os.cpu_count()} cores", "model", "one core, s", "all, s", "")
    table.add_row(model.stem, f"{one:.1f}", f"{every:.1f}", f"{one / every:.2f} x")
    return table


def builds(models: dict[Path, Path]) -> Table:
    table = columns("convert, everything FP16, s", "model", "builder alone", "the function", "", "the command", "")
    for model, inputs in models.items():
        typed, engine = model.with_name("typed.onnx"), model.with_suffix(".trt")
        measure([sys.executable, "-c", TYPED, model, typed], 1)
        bare, _ = measure([sys.executable, "-c", BARE, typed, engine])
        asked = ["convert", model, "--inputs", inputs, "-o", engine]
        ours, _ = measure([sys.executable, "-m", "trt_helper", *asked])
        alone = statistics.median(_seconds([sys.executable, "-c", CONVERT, model, engine]) for _ in range(RUNS))
        shown = (f"{bare:.1f}", f"{alone:.1f}", f"{alone / bare:.2f} x", f"{ours:.1f}", f"{ours / bare:.2f} x")
        table.add_row(model.stem, *shown)
    return table


def _seconds(command: Sequence[object]) -> float:
    """What the code measured of itself: it writes that into the file that is its last argument."""
    with tempfile.NamedTemporaryFile("r") as file:
        measure([*command, file.name], 1)
        return float(file.read())


def columns(title: str, first: str, *others: str) -> Table:
    table = Table(title=title, title_justify="left", box=None)
    table.add_column(first)
    for other in others:
        table.add_column(other, justify="right")
    return table


def main() -> int:
    folder = Path(tempfile.mkdtemp())
    try:
        models = {}
        made = ((residual_cnn, (1, 3, 32, 32)), (transformer, (1, 64, 256)), (densenet, (1, 3, 224, 224)))
        for make, shape in made:
            model, inputs = folder / f"{make.__name__}.onnx", folder / f"{make.__name__}.npz"
            make(model)
            np.savez(inputs, x=np.random.default_rng(1).standard_normal(shape).astype(np.float32))
            models[model] = inputs
        deep, inputs = folder / "residual_cnn, 4 x the layers.onnx", folder / "residual_cnn.npz"
        residual_cnn(deep, blocks=64)
        real = SHARED / "ppocrv3_det"
        large = {folder / "ppocrv3_det.onnx": real / "inputs" / "0.npz"} if real.is_dir() else {}
        for model in large:
            shutil.copy(real / "model.onnx", model)
        console = Console(width=120)
        console.print(memory({**models, deep: inputs, **large}))
        console.print(limited({next(iter(models)): inputs, **large}))
        console.print(cores(*next(iter(models.items()))))
        console.print(builds(models))
    finally:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
