"""A small model with a norm whose squares overflow in FP16, and what is known of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from trt_helper.values import Tolerance


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


TOLERANCE = Tolerance(0.05, 0.0)


PINS = ("square", "mean", "root")  # squares of thousands, until the root has brought them back
