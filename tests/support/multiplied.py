"""A chain of multiplications that overflows in FP16, and a runner that a machine without a GPU has."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
from onnx import TensorProto, helper

from trt_helper.inputs.samples import Sample
from trt_helper.onnx_model.graph import read_graph
from trt_helper.onnx_model.load import load
from trt_helper.runners.run import RUNNERS

CPU = replace(RUNNERS["cuda"], name="cpu", provider="CPUExecutionProvider")


def overflowing(folder):
    """y = (x * 300) * 300 / 90000, names as hostile as ONNX allows; FP16 overflows for x = 2."""
    names = ["a/b:0", "file", "[red]c"]
    constants = [
        helper.make_tensor(name, TensorProto.FLOAT, [1], [number]) for name, number in (("k", 300.0), ("l", 90000.0))
    ]
    nodes = [
        helper.make_node("Mul", ["x/1", "k"], [names[0]], "up1"),
        helper.make_node("Mul", [names[0], "k"], [names[1]], "up2"),
        helper.make_node("Div", [names[1], "l"], [names[2]], "down"),
    ]
    value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [4])  # noqa: E731
    graph = helper.make_graph(nodes, "g", [value("x/1")], [value(names[2])], constants)
    path = folder / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return read_graph(load(path))


def samples(*firsts):
    return [Sample(f"s{first}", {"x/1": np.array([first, 1, 0, -1], np.float32)}) for first in firsts]
