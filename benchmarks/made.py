"""Models of known size for the benchmarks, with seeded random weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
HALF_MAX = 65504.0
MOVEMENT = frozenset(["Concat", "Expand", "Gather", "Reshape", "Slice", "Split", "Transpose", "Unsqueeze"])
Array = np.ndarray


class Network:
    """Collects nodes and weights; every method returns the name of its output.

    It also collects the layers that FP16 would harm, grouped by the `scope` in which they were found.
    """

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.scope = ""  # goes into the names of the nodes
        self._random = np.random.default_rng(0)
        self._harmed: dict[str, set[str]] = {}  # scope -> tensors whose makers must stay in FP32
        self._large: dict[str, set[str]] = {}  # scope -> tensors whose makers and readers must stay in FP32

    def random(self, *shape: int, scale: float) -> Array:
        return (self._random.standard_normal(shape) * scale).astype(np.float32)

    def weight(self, *shape: int, scale: float | None = None) -> str:
        name = f"w{len(self.weights)}"
        array = self.random(*shape, scale=scale if scale is not None else float(np.sqrt(2 / np.prod(shape[1:]))))
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def constant(self, array: Array) -> str:
        name = f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def number(self, value: float) -> str:
        return self.constant(np.array(value, np.float32))

    def ints(self, *numbers: int) -> str:
        return self.constant(np.array(numbers, dtype=np.int64))

    def input(self, name: str, *shape: int, kind: int = TensorProto.FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        return self.nodes_of(op, *inputs, outputs=1, **attributes)[0]

    def nodes_of(self, op: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        """As `node`, with several outputs."""
        out = f"{op}_{len(self.nodes)}"
        outs = [out, *(f"{out}_{index}" for index in range(1, outputs))]
        name = f"/{self.scope}/{out}" if self.scope else f"/{out}"
        self.nodes.append(helper.make_node(op, list(inputs), outs, name=name, **attributes))
        return outs

    def harmed(self, *tensors: str) -> None:
        """The makers of these tensors must stay in FP32."""
        self._harmed.setdefault(self.scope, set()).update(tensors)

    def reaches(self, tensor: str, size: float) -> str:
        """Values of that size occur in `tensor`: beyond FP16, its makers and its readers must stay in FP32."""
        if abs(size) > HALF_MAX:
            self._large.setdefault(self.scope, set()).add(tensor)
        return tensor

    def planted(self) -> tuple[frozenset[str], ...]:
        """The names of the layers that must stay in FP32, each in the group of the scope that named it first."""
        seen: set[str] = set()
        groups = []
        for scope in dict.fromkeys((*self._harmed, *self._large)):
            large = self._moved(self._large.get(scope, set()))
            made = large | self._unmoved(self._harmed.get(scope, set()))
            names = {node.name for node in self._computing() if made & {*node.output} or large & {*node.input}} - seen
            seen |= names
            groups.append(frozenset(names))
        return tuple(groups)

    def _computing(self) -> list[onnx.NodeProto]:
        return [node for node in self.nodes if node.op_type not in MOVEMENT]

    def _moved(self, tensors: set[str]) -> set[str]:
        """`tensors` and what is made of them by moving."""
        found = set(tensors)
        for node in self.nodes:
            if node.op_type in MOVEMENT and found & {*node.input}:
                found.update(node.output)
        return found

    def _unmoved(self, tensors: set[str]) -> set[str]:
        """`tensors` and what they are made of by moving."""
        found = set(tensors)
        for node in reversed(self.nodes):
            if node.op_type in MOVEMENT and found & {*node.output}:
                found.update(node.input)
        return found

    def save(self, path: Path, shape: tuple[int, ...], out: str, *, external: bool = False) -> None:
        """Write a model of one input `x` and one output."""
        self.input("x", *shape)
        self.write(path, {out: out}, external=external)

    def write(self, path: Path, outputs: Mapping[str, str], *, external: bool = False) -> None:
        """Write the model. `outputs` maps the names of its outputs to tensors, each made by a node."""
        names = {tensor: name for name, tensor in outputs.items()}
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in self.nodes]
        for node in nodes:
            node.input[:] = [names.get(name, name) for name in node.input]
            node.output[:] = [names.get(name, name) for name in node.output]
        graph = helper.make_graph(
            nodes,
            "made",
            self.inputs,
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            initializer=self.weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
        if not external:  # a protobuf of more than 2 GiB cannot be inferred
            inferred = {value.name: value for value in onnx.shape_inference.infer_shapes(model).graph.output}
            for value in model.graph.output:
                value.CopyFrom(inferred[value.name])
        onnx.save(model, path, save_as_external_data=external, location=f"{path.stem}.data" if external else None)


def residual_cnn(path: Path, blocks: int = 16, channels: int = 64, size: int = 32) -> None:
    """Blocks of two 3x3 convolutions beside a skip connection."""
    net = Network()
    y = net.node("Conv", "x", net.weight(channels, 3, 3, 3), pads=[1] * 4)
    for _ in range(blocks):
        inner = net.node("Relu", net.node("Conv", y, net.weight(channels, channels, 3, 3), pads=[1] * 4))
        outer = net.node("Conv", inner, net.weight(channels, channels, 3, 3, scale=0.02), pads=[1] * 4)
        y = net.node("Relu", net.node("Add", y, outer))
    net.save(path, (1, 3, size, size), net.node("GlobalAveragePool", y))


def transformer(path: Path, blocks: int = 4, width: int = 256, heads: int = 4, length: int = 64) -> None:
    """Pre-norm blocks of attention and a GELU feed-forward, norms as single operators."""
    net = Network()
    y = "x"
    split, merged = net.ints(1, length, heads, width // heads), net.ints(1, length, width)
    for _ in range(blocks):
        y = net.node("Add", y, _attention(net, _norm(net, y, width), width, heads, split, merged))
        inner = net.node("MatMul", _norm(net, y, width), net.weight(width, 4 * width, scale=0.03))
        gate = net.node("Sigmoid", net.node("Mul", inner, net.weight(1, scale=1.7)))
        y = net.node(
            "Add", y, net.node("MatMul", net.node("Mul", inner, gate), net.weight(4 * width, width, scale=0.02))
        )
    net.save(path, (1, length, width), _norm(net, y, width))


def densenet(path: Path, blocks: tuple[int, ...] = (6, 12, 24, 16), growth: int = 32, size: int = 224) -> None:
    """DenseNet-121 as in the ONNX model zoo: some 900 nodes, each norm with a scale and a shift of its own."""
    net = Network()
    channels = 64

    def norm_conv(x: str, read: int, written: int, kernel: int) -> str:
        ones = [net.weight(read, scale=0.05) for _ in range(3)]
        variance = net.constant(np.ones(read, np.float32))
        y = net.node("BatchNormalization", x, net.constant(np.ones(read, np.float32)), *ones[:2], variance)
        y = net.node("Mul", y, net.node("Unsqueeze", net.constant(np.ones(read, np.float32)), net.ints(1, 2)))
        y = net.node("Relu", net.node("Add", y, net.node("Unsqueeze", ones[2], net.ints(1, 2))))
        return net.node("Conv", y, net.weight(written, read, kernel, kernel), pads=[kernel // 2] * 4) if written else y

    y = net.node("Conv", "x", net.weight(channels, 3, 7, 7), pads=[3] * 4, strides=[2, 2])
    y = net.node("MaxPool", y, kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2])
    for block, layers in enumerate(blocks):
        for _ in range(layers):
            y = net.node("Concat", y, norm_conv(norm_conv(y, channels, 4 * growth, 1), 4 * growth, growth, 3), axis=1)
            channels += growth
        if block < len(blocks) - 1:
            y = net.node("AveragePool", norm_conv(y, channels, channels // 2, 1), kernel_shape=[2, 2], strides=[2, 2])
            channels //= 2
    y = net.node("GlobalAveragePool", norm_conv(y, channels, 0, 1))
    net.save(path, (1, 3, size, size), net.node("Conv", y, net.weight(1000, channels, 1, 1)))


def wide(path: Path, layers: int = 36, width: int = 4096) -> None:
    """Products with 64 MiB of weights each, in a file beside the model; 36 of them are 2.4 GB."""
    net = Network()
    y = "x"
    for _ in range(layers):
        y = net.node("Relu", net.node("MatMul", y, net.weight(width, width)))
    net.save(path, (1, width), y, external=True)


def _norm(net: Network, x: str, width: int) -> str:
    return net.node("LayerNormalization", x, net.weight(width, scale=1.0), axis=-1)


def _attention(net: Network, x: str, width: int, heads: int, split: str, merged: str) -> str:
    def project(order: list[int]) -> str:
        flat = net.node("MatMul", x, net.weight(width, width, scale=0.05))
        return net.node("Transpose", net.node("Reshape", flat, split), perm=order)

    query, key, value = project([0, 2, 1, 3]), project([0, 2, 3, 1]), project([0, 2, 1, 3])
    scores = net.node("Mul", net.node("MatMul", query, key), net.weight(1, scale=(width // heads) ** -0.5))
    mixed = net.node("MatMul", net.node("Softmax", scores, axis=-1), value)
    flat = net.node("Reshape", net.node("Transpose", mixed, perm=[0, 2, 1, 3]), merged)
    return net.node("MatMul", flat, net.weight(width, width, scale=0.05))
