"""Small ONNX models for the builder, and builds of them in a folder."""

from __future__ import annotations

import os
import threading
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper, shape_inference

from support.onnx_parts import FLOAT, model, node, value
from trt_helper.builder.build import build
from trt_helper.builder.engine import EngineBuild
from trt_helper.builder.requested_precision import requested_precisions
from trt_helper.builder.settings import BuildSettings
from trt_helper.onnx_model.graph import Graph, read_graph
from trt_helper.onnx_model.load import load

HALF = TensorProto.FLOAT16
ROOT = Path(__file__).resolve().parents[2]

needs_rtx = pytest.mark.skipif(
    find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed: pip install 'trt-helper[rtx]'"
)


def weights(name, shape, kind=FLOAT):
    dtype = np.float32 if kind == FLOAT else np.float16
    values = np.random.default_rng(0).standard_normal(shape) * 0.05
    return numpy_helper.from_array(values.astype(dtype), name)


def relu():
    return model([node("Relu", ["x"], ["y"], "act")], [value("x", [4, 32])], [value("y", [4, 32])])


def dynamic():
    return model([node("Relu", ["x"], ["y"], "act")], [value("x", ["b", 32])], [value("y", ["b", 32])])


def convs(*pins, channels=32, layers=("c0", "r0", "mid", "r1", "c2")):
    """A chain of Conv (c, mid) and Relu (r) in FP16, pins in FP32, a cast wherever they differ."""
    nodes, initializers, current, kind = [], [], "x", FLOAT
    shape = [1, channels, 8, 8]

    def cast(wanted, name):
        nodes.append(node("Cast", [current], [name], f"{name}_cast", to=wanted))
        return name, wanted

    for name in layers:
        wanted = FLOAT if name in pins else HALF
        if wanted != kind:
            current, kind = cast(wanted, f"{name}_in")
        if name.startswith("r"):
            nodes.append(node("Relu", [current], [f"{name}_out"], name))
        else:
            initializers.append(weights(f"{name}_w", (channels, channels, 3, 3), kind))
            inputs = [current, f"{name}_w"]
            nodes.append(node("Conv", inputs, [f"{name}_out"], name, pads=[1] * 4))
        current = f"{name}_out"
    cast(FLOAT, "y")
    return model(nodes, [value("x", shape)], [value("y", shape)], initializers)


def requested(made):
    """What a typed model requests of each of its nodes."""
    return requested_precisions(ir.from_proto(shape_inference.infer_shapes(made)))


def built(folder, made, *, profiles=(), on_progress=None, **settings) -> EngineBuild:
    path = folder / "model.onnx"
    path.write_bytes(made if isinstance(made, bytes) else made.SerializeToString())
    out = folder / "model.trt"
    return build(path, out, profiles=profiles, settings=BuildSettings(**settings), on_progress=on_progress)


def refused(folder, made, kind, **how):
    """The error of a build that must fail, after making sure that it left nothing behind."""
    with pytest.raises(kind) as caught:
        built(folder, made, **how)
    assert sorted(path.name for path in folder.iterdir()) == ["model.onnx"]
    assert type(caught.value) is kind
    assert caught.value.fix
    return caught.value


def children():
    """Process ids of this thread's living children."""
    listed = Path(f"/proc/{os.getpid()}/task/{threading.get_native_id()}/children").read_text()
    return [int(pid) for pid in listed.split()]


def reshaped(folder: Path) -> Graph:
    """conv -> reshape -> softmax -> mul, the shape arithmetic of the reshape beside it."""
    nodes = [
        node("Conv", ["x", "k"], ["a"], "conv", pads=[1, 1, 1, 1]),
        node("Reshape", ["a", "to"], ["b"], "reshape"),
        node("Softmax", ["b"], ["c"], "softmax", axis=-1),
        node("Mul", ["c", "c"], ["y"], "mul"),
    ]
    to = numpy_helper.from_array(np.array([1, -1], np.int64), "to")
    made = model(nodes, [value("x", [1, 3, 4, 4])], [value("y", [1, 48])], [weights("k", [3, 3, 3, 3]), to])
    path = folder / "m.onnx"
    path.write_bytes(made.SerializeToString())
    return read_graph(load(path))


def products(layers=("dense_0", "relu_0", "dense_1", "relu_1", "dense_2"), op="MatMul"):
    """A chain of products and Relus."""
    nodes, initializers, current = [], [], "x"
    for name in layers:
        read = [current]
        if name.startswith("dense"):
            initializers.append(weights(f"{name}_w", (64, 64) if op != "Conv" else (64, 64, 3, 3)))
            read.append(initializers[-1].name)
        out = "y" if name == layers[-1] else f"{name}_out"
        padded = {"pads": [1] * 4} if op == "Conv" and len(read) > 1 else {}
        nodes.append(node("Relu" if len(read) == 1 else op, read, [out], name, **padded))
        current = out
    shape = [1, 64, 8, 8] if op == "Conv" else [16, 64]
    return model(nodes, [value("x", shape)], [value("y", shape)], initializers)


def counting_loop():
    """y = x * 2**3, by a Loop that counts, whose body hands on a condition that nobody gave."""
    body = helper.make_graph(
        [node("Identity", ["keep"], ["keep_out"], "keep_on"), node("Mul", ["state", "by"], ["state_out"], "grow")],
        "body",
        [value("i", [], TensorProto.INT64), value("keep", [], TensorProto.BOOL), value("state", [4])],
        [value("keep_out", [], TensorProto.BOOL), value("state_out", [4])],
        [numpy_helper.from_array(np.float32(2), "by")],
    )
    turns = numpy_helper.from_array(np.int64(3), "turns")
    nodes = [node("Relu", ["x"], ["h"], "act"), node("Loop", ["turns", "", "h"], ["y"], "repeat", body=body)]
    return model(nodes, [value("x", [4])], [value("y", [4])], [turns])
