"""Small models that overflow in FP16, what is known of them, and a runner that a machine without a GPU has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from trt_helper.inputs.sample import Sample
from trt_helper.onnx_model.graph import read_graph
from trt_helper.onnx_model.load import load
from trt_helper.runners.run import RUNNERS
from trt_helper.values import Tolerance

PINS = ("square", "mean", "root")  # of `overflowing_norm`: squares of thousands, until the root has brought them back
TOLERANCE = Tolerance(0.05, 0.0)
CPU = replace(RUNNERS["cuda"], name="cpu", provider="CPUExecutionProvider")


def overflowing_norm(path: Path, width: int = 256, depth: int = 12) -> None:
    """A chain of products, and in its middle a root mean square whose squares pass 65504."""
    random = np.random.default_rng(0)
    weights, nodes, y = [], [], "x"
    for index in range(depth):
        array = (random.standard_normal((width, width)) / np.sqrt(width)).astype(np.float32)
        weights.append(numpy_helper.from_array(array, f"w{index}"))
        nodes.append(helper.make_node("MatMul", [y, f"w{index}"], [f"m{index}"], name=f"matmul{index}"))
        y = f"m{index}"
        if index == depth // 2:
            nodes += [
                helper.make_node("Mul", [y, "thousand"], ["big"], name="scale"),
                helper.make_node("Mul", ["big", "big"], ["square"], name="square"),
                helper.make_node("ReduceMean", ["square"], ["mean"], name="mean", axes=[-1]),
                helper.make_node("Sqrt", ["mean"], ["root"], name="root"),
                helper.make_node("Div", ["big", "root"], ["normed"], name="divide"),
            ]
            y = "normed"
    weights.append(numpy_helper.from_array(np.array(1000, np.float32), "thousand"))
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [64, width]) for name in ("x", y)]
    graph = helper.make_graph(nodes, "chain", info[:1], info[1:], initializer=weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def overflowing_products(folder):
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


def samples_of_products(*firsts):
    return [Sample(f"s{first}", {"x/1": np.array([first, 1, 0, -1], np.float32)}) for first in firsts]
