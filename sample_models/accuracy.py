"""Accuracy of the digits model in FP32, in FP16 and with a plan: `python accuracy.py MODEL.onnx PLAN.yaml`.

FP16 is trt-helper's emulator; the 540 test images were neither trained on nor searched with.
"""

import sys
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from trt_helper.config.plan_file import read_config
from trt_helper.emulator.emulator import Emulator
from trt_helper.onnx_model.graph import read_graph
from trt_helper.onnx_model.load import load
from trt_helper.values import Plan

HERE = Path(__file__).resolve().parent


def main(model: Path, config: Path) -> None:
    graph = read_graph(load(model))
    emulator = Emulator(graph)
    plan = graph.plan(read_config(config).fp32_layers)
    with np.load(HERE / "digits_test.npz") as test:
        feed, labels = {"image": test["image"]}, test["label"]
    (output,) = graph.outputs
    expected = emulator.reference(feed)[output]
    table = Table(title=f"{len(labels)} test images", title_justify="left", box=None)
    for column, justify in (("precision", "left"), ("right", "right"), ("worst probability error", "right")):
        table.add_column(column, justify=justify)
    for name, found in (
        ("FP32", expected),
        ("FP16, every layer", emulator.run(Plan(), feed)[output]),
        (f"FP16, {len(plan)} of {len(graph.layers)} layers FP32", emulator.run(plan, feed)[output]),
    ):
        accuracy = float((found.argmax(axis=1) == labels).mean())
        table.add_row(name, f"{100 * accuracy:.1f} %", f"{np.abs(found - expected).max():.2g}")
    Console().print(table)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
