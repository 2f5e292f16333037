"""A warm gate against start-up and one emulated inference: `python benchmarks/gate.py`.

All three are processes of their own. The reference imports command line and emulator, reads model and samples
and runs each sample once under the plan, in turn; it compares and says nothing. A cold gate has an empty cache.
Nothing is pinned and every tolerance is met: what is measured does not depend on it.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import yaml
from made import residual_cnn, transformer
from process import run
from rich.console import Console
from rich.table import Table

SHARED = Path(__file__).resolve().parents[2] / "shared" / "models"
RUNS = 7
REFERENCE = """
import sys
from pathlib import Path
import trt_helper.cli.main
from trt_helper.emulator.emulator import Emulator
from trt_helper.onnx_model.graph import read_graph
from trt_helper.onnx_model.load import load
from trt_helper.inputs.samples import load_samples
from trt_helper.values import Plan
graph = read_graph(load(Path(sys.argv[1])))
emulator = Emulator(graph)
for sample in load_samples(graph, [Path(sys.argv[2])]):
    emulator.run(Plan(), sample.feed)
"""


def median(command: Sequence[str], before: Callable[[], object] = lambda: None) -> float:
    """Median seconds of a process after one warm-up; `before` is not counted."""
    taken = []
    for _ in range(RUNS + 1):
        before()
        one = run(command)
        if one.error:
            raise SystemExit(one.error)
        taken.append(one.seconds)
    return statistics.median(taken[1:])


def cases(folder: Path) -> list[tuple[str, Path, Path]]:
    """Name, model, and a folder of samples."""
    found = []
    for make, shape in ((residual_cnn, (1, 3, 32, 32)), (transformer, (1, 64, 256))):
        model, inputs = folder / f"{make.__name__}.onnx", folder / make.__name__
        make(model)
        inputs.mkdir()
        np.savez(inputs / "0.npz", x=np.random.default_rng(0).standard_normal(shape).astype(np.float32))
        found.append((make.__name__, model, inputs))
    for name in ("magika_standard_v3_3", "ppocrv3_det", "gtcrn_simple"):
        model = SHARED / name / "model.onnx"
        if model.is_file():
            found.append((name, model, model.parent / "inputs"))
    return found


def main() -> None:
    table = Table("model", "samples", "reference", "warm gate", "cold gate", title="Gate, processes", box=None)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["TRT_HELPER_CACHE"] = str(folder / "cache")
        for model_name, model, inputs in cases(folder):
            config = folder / "plan.yaml"
            config.write_text(yaml.safe_dump({"model": str(model), "atol": 1e30}))
            gate = [sys.executable, "-m", "trt_helper", "gate", str(config), "--inputs", str(inputs)]
            reference = median([sys.executable, "-c", REFERENCE, str(model), str(inputs)])
            warm = median(gate)
            cold = median(gate, lambda: shutil.rmtree(folder / "cache", ignore_errors=True))
            ratios = (f"{warm / reference:.2f} x", f"{cold / reference:.2f} x")
            table.add_row(model_name, str(len(list(inputs.glob("*.npz")))), f"{reference:.2f} s", *ratios)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
