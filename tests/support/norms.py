"""Norms in pieces, as exporters spell them, and what only looks like one."""

from __future__ import annotations

from collections.abc import Callable

from support.zoo import Net

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


SPELLINGS: dict[Build, str] = {
    torch_layer_norm: "LayerNormalization",
    by_reciprocal: "LayerNormalization",
    by_power: "LayerNormalization",
    by_moments: "LayerNormalization",
    rms: "RMSNormalization",
}


def over_another_axis(net: Net, x: str) -> str:
    c = net("Sub", x, net("ReduceMean", x, axes=[1]))
    return net("Div", c, net("Sqrt", net("Add", net("ReduceMean", net("Mul", c, c), axes=[1]), EPSILON)))


def variance_of_something_else(net: Net, x: str) -> str:
    c, other = centred(net, x), net("Tanh", x)
    return net("Div", c, net("Sqrt", net("Add", net("ReduceMean", net("Mul", other, other), axes=[-1]), EPSILON)))


def without_a_root(net: Net, x: str) -> str:
    c = centred(net, x)
    return net("Div", c, net("Add", net("ReduceMean", net("Mul", c, c), axes=[-1]), EPSILON))
