"""Seconds and memory of today's tools and of trt-helper on the same models: `python benchmarks/peers.py`.

Each tool is a process of its own and gets the same model and the same random input. Nothing here says how good its
answer is. The peers are installed where `--peers PYTHON` points (by default here):

    pip install "nvidia-modelopt[onnx]" onnxconverter-common torch

`--large` adds a model of 2.4 GB, for which AutoCast takes some 20 GB of memory.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
from made import densenet, residual_cnn, transformer, wide
from process import run
from rich.console import Console
from rich.table import Table

RUNS = 3
OURS = "trt-helper locate"
AUTOCAST = [
    *("-m", "modelopt.onnx.autocast", "--onnx_path", "{model}", "--output_path", "{out}"),
    *("--calibration_data", "{inputs}", "--low_precision_type", "fp16"),
]
MIXED = """
import sys, numpy, onnx
from onnxconverter_common.auto_mixed_precision import auto_convert_mixed_precision
feed = dict(numpy.load(sys.argv[2]))
made = auto_convert_mixed_precision(onnx.load(sys.argv[1]), feed, rtol=1e-2, atol=1e-2, keep_io_types=True)
onnx.save(made, sys.argv[3])
"""


def tools(model: Path, inputs: Path, out: Path, peers: str) -> dict[str, list[str]]:
    """The commands, by the name of the tool."""
    names = {"model": str(model), "inputs": str(inputs), "out": str(out)}
    ours = [sys.executable, "-m", "trt_helper", "locate", str(model), "--inputs", str(inputs), "--atol", "0.01"]
    return {
        OURS: [*ours, "--rtol", "0.01", "-o", str(out.with_suffix(".yaml"))],
        "AutoCast": [peers, *(part.format(**names) for part in AUTOCAST)],
        "auto_mixed_precision": [peers, "-c", MIXED, str(model), str(inputs), str(out)],
    }


def compare(table: Table, name: str, model: Path, shape: tuple[int, ...], runs: int, peers: str) -> None:
    """Add one model's rows."""
    inputs, out = model.with_name("inputs.npz"), model.with_name("out.onnx")
    np.savez(inputs, x=np.random.default_rng(1).standard_normal(shape).astype(np.float32))
    ours = 0.0
    for tool, command in tools(model, inputs, out, peers).items():
        found = [run(command) for _ in range(runs)]
        seconds, peak = statistics.median(one.seconds for one in found), max(one.peak for one in found)
        error = next((one.error for one in found if one.error), "")
        if tool == OURS:
            ours = seconds
            if error:
                raise SystemExit(f"{tool} failed on {name}: {error}")
        ratio = "" if error else f"{seconds / ours:.2f} x"
        table.add_row(name, tool, f"{seconds:.1f}", ratio, f"{peak:.2f}", error)
        for left in model.parent.glob("out*"):
            left.unlink()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", default=sys.executable, metavar="PYTHON", help="the Python that has the peers")
    parser.add_argument("--large", action="store_true", help="also a model of 2.4 GB")
    asked = parser.parse_args()
    table = Table(title="The same model and input, as processes", title_justify="left", box=None)
    for column in ("model", "tool", "seconds", "against ours", "peak GB", "failed with"):
        table.add_column(column, justify="left" if column in ("model", "tool", "failed with") else "right")
    image = (1, 3, 224, 224)
    with tempfile.TemporaryDirectory() as folder:
        for make, shape in ((residual_cnn, (1, 3, 32, 32)), (transformer, (1, 64, 256)), (densenet, image)):
            model = Path(folder) / f"{make.__name__}.onnx"
            make(model)
            compare(table, make.__name__, model, shape, RUNS, asked.peers)
        if asked.large:
            model = Path(folder) / "wide.onnx"
            wide(model)
            compare(table, "wide, 2.4 GB", model, (1, 4096), 1, asked.peers)
    Console(width=150).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
