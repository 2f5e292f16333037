"""Models that a rewrite or BF16 brings into range: norms in pieces, what only looks like one, large values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx

from support.zoo import Net
from trt_helper.onnx_model.graph import Graph, read_graph
from trt_helper.onnx_model.load import load

WIDTH = 24
EPSILON = 1e-5
Build = Callable[[Net, str], str]


def centred(net: Net, x: str) -> str:
    return net("Sub", x, net("ReduceMean", x, axes=[-1]))


def torch_layer_norm(net: Net, x: str) -> str:
    c = centred(net, x)
    return net(
        "Div", c, net("Sqrt", net("Add", net("ReduceMean", net("Pow", c, 2.0), axes=[-1]), EPSILON)), name="norm"
    )


def by_reciprocal(net: Net, x: str) -> str:
    c = centred(net, x)
    deviation = net("Sqrt", net("Add", EPSILON, net("ReduceMean", net("Mul", c, c), axes=[-1])))
    return net("Mul", net("Reciprocal", deviation), c, name="norm")


def by_power(net: Net, x: str) -> str:
    c = centred(net, x)
    return net(
        "Mul", c, net("Pow", net("Add", net("ReduceMean", net("Mul", c, c), axes=[-1]), EPSILON), -0.5), name="norm"
    )


def by_moments(net: Net, x: str) -> str:
    """Sums, E[x^2] - E[x]^2, weights multiplied into the reciprocal: as TensorFlow's converter writes it."""
    m = net("Mul", net("ReduceSum", x, [-1]), 1 / WIDTH)
    q = net("Div", net("ReduceSum", net("Mul", x, x), [-1]), float(WIDTH))
    v = net("Max", net("Sub", q, net("Mul", m, m)), 0.0)
    inverse = net("Div", 1.0, net("Sqrt", net("Add", v, EPSILON)))
    scaled = net("Mul", inverse, net.normal(WIDTH))
    return net("Mul", net("Sub", x, m), scaled, name="norm")


def rms(net: Net, x: str) -> str:
    return net("Div", x, net("Sqrt", net("Add", net("ReduceMean", net("Mul", x, x), axes=[-1]), EPSILON)), name="norm")


def over_another_axis(net: Net, x: str) -> str:
    """The axis in the middle, as the channels of an image, with weights of it in the divisor."""
    c = net("Sub", x, net("ReduceMean", x, axes=[1]))
    deviation = net("Sqrt", net("Add", net("ReduceMean", net("Mul", c, c), axes=[1]), EPSILON))
    return net("Mul", c, net("Mul", net("Div", 1.0, deviation), net.normal(5, 1)), name="norm")


def rms_over_the_first_axis(net: Net, x: str) -> str:
    return net("Div", x, net("Sqrt", net("Add", net("ReduceMean", net("Mul", x, x), axes=[0]), EPSILON)), name="norm")


SPELLINGS: dict[Build, str] = {
    torch_layer_norm: "LayerNormalization",
    by_reciprocal: "LayerNormalization",
    by_power: "LayerNormalization",
    by_moments: "LayerNormalization",
    rms: "RMSNormalization",
    over_another_axis: "LayerNormalization",
    rms_over_the_first_axis: "RMSNormalization",
}


def variance_of_something_else(net: Net, x: str) -> str:
    c, other = centred(net, x), net("Tanh", x)
    return net("Div", c, net("Sqrt", net("Add", net("ReduceMean", net("Mul", other, other), axes=[-1]), EPSILON)))


def over_two_axes_in_turn(net: Net, x: str) -> str:
    """The mean of one axis, the squares of another."""
    c = net("Sub", x, net("ReduceMean", x, axes=[1]))
    return net("Div", c, net("Sqrt", net("Add", net("ReduceMean", net("Mul", x, x), axes=[2]), EPSILON)))


def without_a_root(net: Net, x: str) -> str:
    c = centred(net, x)
    return net("Div", c, net("Add", net("ReduceMean", net("Mul", c, c), axes=[-1]), EPSILON))


def range_model(folder: Path) -> Graph:
    """Values of some 1e6 between two products, with a transpose in the middle."""
    net = Net(5)
    up = net("Mul", net.input("x", [4, 8]), 1e6, name="up")
    down = net("Mul", net("Transpose", net("Abs", up, name="abs"), perm=[1, 0]), 1e-6, name="down")
    path = folder / "range.onnx"
    onnx.save(net.model("range", [net("Relu", down, name="relu")], [8, 4]), path)
    return read_graph(load(path))


def weighed_by_inverse(folder: Path, epsilon: float = 1e-12) -> Graph:
    """Rows over the sum of their squares, to which `epsilon` is added: its inverse is multiplied."""
    net = Net(7)
    x = net.input("x", [4, WIDTH])
    total = net("Add", net("ReduceSumSquare", x, axes=[-1], name="squares"), epsilon, name="add")
    path = folder / "inverse.onnx"
    onnx.save(
        net.model("inverse", [net("Mul", x, net("Reciprocal", total, name="inverse"), name="weigh")], [4, WIDTH]), path
    )
    return read_graph(load(path))


def unit_rows(folder: Path, epsilon: float = 1e-12) -> Graph:
    """Rows over their length, which is at least `epsilon`, as torch.nn.functional.normalize does it."""
    net = Net(6)
    x = net.input("x", [4, WIDTH])
    bound = net("Clip", net("ReduceL2", x, axes=[-1], name="length"), epsilon, name="bound")
    path = folder / "unit.onnx"
    onnx.save(net.model("unit", [net("Div", x, bound, name="divide")], [4, WIDTH]), path)
    return read_graph(load(path))
