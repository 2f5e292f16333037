"""How trials and seconds of `locate` grow with the size of the model: `python benchmarks/growth.py`.

Chains and branched graphs of 50, 500 and 5,000 layers with 1, 3 and 10 culprits, each cured by one pin: a layer that
takes 3000 off a coordinate that is an input. In FP16 the coordinate has lost its fraction. All other layers are
products and functions of values around 1. The floor for k culprits is k + 2 trials.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

from trt_helper.inputs.sample import Sample
from trt_helper.onnx_model.graph import Graph, read_graph
from trt_helper.onnx_model.load import load
from trt_helper.search.locate import locate
from trt_helper.values import Tolerance, Verdict

WIDTH, ROWS, BRANCHES = 16, 4, 4
LAYERS, CULPRITS = (50, 500, 5000), (1, 3, 10)
ATOL = 0.05
BLOCK = 5  # layers


class Net:
    """Writes a graph, one layer a call."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def __call__(self, op: str, *read: str | np.ndarray, name: str = "") -> str:
        name = name or f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, [self._read(r) for r in read], [name], name))
        return name

    def _read(self, read: str | np.ndarray) -> str:
        if isinstance(read, str):
            return read
        self.weights.append(numpy_helper.from_array(np.asarray(read, np.float32), f"w{len(self.weights)}"))
        return self.weights[-1].name

    def block(self, h: str) -> str:
        """Values of at most 1 to the same; an error that comes in is halved."""
        mixed = self("MatMul", h, self.random.standard_normal((WIDTH, WIDTH)) / (2 * WIDTH**0.5))
        bounded = self("Tanh", self("Add", mixed, self.random.standard_normal(WIDTH)))
        return self("Add", self("Mul", bounded, np.array(0.9)), np.array(0.05))

    def save(self, y: str, path: Path) -> Graph:
        info = helper.make_tensor_value_info
        inputs = [info(name, TensorProto.FLOAT, [ROWS, WIDTH]) for name in ("x", "plane")]
        graph = helper.make_graph(self.nodes, "g", inputs, [info(y, TensorProto.FLOAT, [ROWS, WIDTH])], self.weights)
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
        return read_graph(load(path))


def make(layers: int, culprits: int, branches: int, path: Path) -> tuple[Graph, set[str]]:
    """A graph of some `layers`; the culprits reach the output past all the rest."""
    net = Net(layers + culprits)
    found = [net("Sub", "plane", np.array(3000.0), name=f"culprit_{index}") for index in range(culprits)]
    ends = []
    for _ in range(branches):
        h = "x"
        for _ in range(max(1, layers // BLOCK // branches)):
            h = net.block(h)
        ends.append(h)
    for index, name in enumerate(found):
        ends[index % branches] = net("Add", ends[index % branches], net("Mul", name, np.array(0.3)))
    y = ends[0]
    for end in ends[1:]:
        y = net("Add", y, end)
    return net.save(net("Tanh", y), path), set(found)


def main() -> int:
    table = Table(title="Growth of `locate`", title_justify="left", box=None)
    for column in ("shape", "layers", "culprits", "pins", "trials", "trials / (k + 2)", "passes", "seconds"):
        table.add_column(column, justify="left" if column == "shape" else "right")
    missed = False
    for branches in (1, BRANCHES):
        for layers in LAYERS:
            for culprits in CULPRITS:
                with tempfile.TemporaryDirectory() as folder:
                    graph, expected = make(layers, culprits, branches, Path(folder) / "model.onnx")
                    random = np.random.default_rng(0)
                    feed = {
                        "x": random.normal(size=(ROWS, WIDTH)),
                        "plane": 3000 + random.uniform(-1, 1, (ROWS, WIDTH)),
                    }
                    sample = Sample("seeded", {name: array.astype(np.float32) for name, array in feed.items()})
                    located = locate(graph, [sample], Tolerance(ATOL, 0.0), every_layer=False)
                missed |= located.plan.fp32 != expected or located.after.verdict is not Verdict.PASS
                table.add_row(
                    "chain" if branches == 1 else f"{branches} branches",
                    *map(str, (len(graph.layers), culprits, len(located.plan), len(located.trials))),
                    f"{len(located.trials) / (culprits + 2):.2f}",
                    str(located.inferences),
                    f"{located.seconds:.1f}",
                )
    Console(width=110).print(table)
    if missed:
        print("a plan is not the set of culprits")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
