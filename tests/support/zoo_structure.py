"""Hazards of structure: what is moved must move together, constants that are only moved, sets of pins that compete.

Names in the decorators are the smallest sets of pins; several strings are equally small alternatives.
"""

from __future__ import annotations

import numpy as np
from onnx import numpy_helper

from support.zoo import LENGTH, WIDTH, Net, hazard
from support.zoo_families import ROW, TOKEN, whole

# ------------------------------------------------------------------------- movement inside the region


@hazard("square variance root", why="groups are formed by Reshape and Transpose between square and root")
def group_norm_moves(net: Net, h: str) -> str:
    x = net("Mul", h, 320.0, name="scale")
    square = net("Transpose", net("Mul", x, x, name="square"), perm=[0, 2, 1], name="channels_first")
    groups = net("Reshape", square, [1, 4, WIDTH * LENGTH // 4], name="groups")
    root = net("Sqrt", net("ReduceMean", groups, axes=[-1], name="variance"), name="root")
    wide = net("Expand", root, [1, 4, WIDTH // 4], name="expand")
    return net("Div", x, net("Reshape", wide, [1, 1, WIDTH], name="back"), name="divide")


@hazard("exp sink sum divide", why="a softmax over two tensors that Concat joins and Slice parts")
def softmax_with_sink(net: Net, h: str) -> str:
    exp = net("Exp", net("Mul", h, 6.0, name="scores"), name="exp")
    level = net("Abs", net("Slice", h, 0, 2, -1, name="first"), name="level")
    sink = net("Exp", net("Add", net("Mul", level, 3.0, name="steep"), 11.5, name="base"), name="sink")
    joined = net("Concat", exp, sink, axis=-1, name="join")
    share = net("Div", joined, net("ReduceSum", joined, -1, name="sum"), name="divide")
    return net("Mul", net("Slice", share, 0, WIDTH, -1, name="part"), 3.0, name="gain")


@hazard(
    "offset",
    why="a coordinate beyond 2048 is stacked on activations, turned and cut out again",
    plane=(ROW, lambda r: 3000 + r.uniform(-1, 1, ROW)),
)
def coordinates_in_a_stack(net: Net, h: str, plane: str) -> str:
    stack = net("Transpose", net("Concat", h, plane, axis=-1, name="stack"), perm=[0, 2, 1], name="turn")
    cut = net("Transpose", net("Slice", stack, WIDTH, 2 * WIDTH, 1, name="cut"), perm=[0, 2, 1], name="turn_back")
    return net("Mul", h, net("Sub", cut, 3000.0, name="offset"), name="weigh")


@hazard("shift", why="scores near 3000 tie in half: ArgMax picks another one")
def argmax_of_near_scores(net: Net, h: str) -> str:
    best = net("ArgMax", net("Add", h, 3000.0, name="shift"), axis=-1, keepdims=0, name="best")
    return net("Mul", h, net("Gather", net.normal(WIDTH, WIDTH), best, axis=0, name="gather"), name="weigh")


# ------------------------------------------------------------------- constants that are only moved


@hazard("offset", why="a table of coordinates beyond 2048: Gather only moves it", entry=whole(0, 64, TOKEN[:2]))
def table_of_coordinates(net: Net, h: str, entry: str) -> str:
    table = 5000 + net.random.uniform(-1, 1, (64, WIDTH))
    rows = net("Gather", table, net("Cast", entry, to=7, name="cast"), axis=0, name="gather")
    return net("Mul", h, net("Sub", rows, 5000.0, name="offset"), name="weigh")


@hazard("bias", why="a tensor filled with -1e9 by ConstantOfShape times 0", open_keys=whole(0, 2, (1, 1, LENGTH)))
def filled_mask_times_zero(net: Net, h: str, open_keys: str) -> str:
    value = numpy_helper.from_array(np.array([-1e9], np.float32))
    filled = net("ConstantOfShape", [1, LENGTH, LENGTH], value=value, name="filled")
    bias = net("Mul", filled, net("Sub", 1.0, open_keys, name="hidden"), name="bias")
    keys = net("Transpose", h, perm=[0, 2, 1], name="keys")
    scores = net("Mul", net("MatMul", h, keys, name="scores"), 0.1, name="scaled")
    weights = net("Softmax", net("Add", scores, bias, name="masked"), axis=-1, name="softmax")
    return net("MatMul", weights, h, name="values")


@hazard("keep", why="padded with -1e9, and what was padded is multiplied by 0")
def padded_with_large(net: Net, h: str) -> str:
    less = net("Mul", h, 0.5, name="less")
    padded = net("Pad", less, [0, 0, 0, 0, 4, 0], np.float32(-1e9), name="pad")
    mask = (np.arange(LENGTH + 4) < LENGTH).astype(np.float32)[None, :, None]
    return net("MatMul", net.normal(LENGTH, LENGTH + 4, scale=0.3), net("Mul", padded, mask, name="keep"), name="mix")


@hazard("weigh", why="a constant row of some 1e6 is joined to activations, and weighed by 1e-6")
def constant_in_a_concat(net: Net, h: str) -> str:
    row = net.random.uniform(-1e6, 1e6, (1, 1, WIDTH))
    joined = net("Concat", net("Mul", h, 0.5, name="less"), row, axis=1, name="join")
    weights = np.where(np.arange(LENGTH + 1) < LENGTH, 1.0, 1e-6)[None, :, None]
    return net(
        "MatMul", net.normal(LENGTH, LENGTH + 1, scale=0.3), net("Mul", joined, weights, name="weigh"), name="mix"
    )


# --------------------------------------------------------------------------- long and wide regions


@hazard(" ".join(["up", *(f"turn_{i}" for i in range(8)), "down"]), why="ten layers in a row beyond 65504")
def ten_in_a_row(net: Net, h: str) -> str:
    x = net("Mul", h, 4e5, name="up")
    for index in range(8):
        x = net(("Neg", "LeakyRelu")[index % 2], x, name=f"turn_{index}", **({"alpha": 0.8} if index % 2 else {}))
    return net("Div", x, 4e5, name="down")


@hazard("up down_0 down_1 down_2", why="five readers of one overflow: three bring it down, two saturate anyway")
def five_readers(net: Net, h: str) -> str:
    up = net("Mul", net("Add", net("Abs", h, name="abs"), 1.0, name="one"), 3e5, name="up")
    parts = [net("Mul", up, weight, name=f"down_{i}") for i, weight in enumerate((1e-6, 2e-6, 3e-6))]
    parts += [net("Tanh", up, name="tanh"), net("Sigmoid", up, name="sigmoid")]
    return net("Sum", *parts, name="sum")


# ------------------------------------------------------------------------------ sets of pins that compete


@hazard("left difference", "right difference", why="inf - inf is NaN; with either side finite the gate is right")
def either_side_of_a_gate(net: Net, h: str) -> str:
    a = net("Add", net("Abs", h, name="abs"), 1.0, name="one")
    left, right = net("Mul", a, 2e5, name="left"), net("Mul", a, 9e4, name="right")
    gate = net("Tanh", net("Abs", net("Sub", left, right, name="difference"), name="size"), name="gate")
    return net("Mul", h, gate, name="weigh")


@hazard("left difference", why="the left side is one layer, the right side would be three")
def shorter_side_of_a_gate(net: Net, h: str) -> str:
    a = net("Add", net("Abs", h, name="abs"), 1.0, name="one")
    left = net("Mul", a, 2e5, name="left")
    right = net("Mul", a, 3e5, name="right_1")
    right = net("Mul", net("LeakyRelu", right, alpha=0.5, name="right_2"), 0.3, name="right_3")
    gate = net("Tanh", net("Abs", net("Sub", left, right, name="difference"), name="size"), name="gate")
    return net("Mul", h, gate, name="weigh")


@hazard(
    "up_0 down_0 up_1 down_1",
    "up_0 down_0 up_2 down_2",
    "up_1 down_1 up_2 down_2",
    why="the median of three: one may be wrong, so no single rounding does harm",
)
def vote_of_three(net: Net, h: str) -> str:
    a, b, c = (
        net("Mul", net("Mul", h, (1e5, 2e5, 3e5)[i], name=f"up_{i}"), (1e-5, 5e-6, 1 / 3e5)[i], name=f"down_{i}")
        for i in range(3)
    )
    low, high = net("Min", a, b, name="low"), net("Max", a, b, name="high")
    return net("Max", low, net("Min", high, c, name="middle"), name="median")


@hazard(why="two equal roundings cancel: each alone does harm, both together do not")
def twins(net: Net, h: str) -> str:
    first, second = (net("Mul", h, 0.3, name=name) for name in ("first", "second"))
    difference = net("Mul", net("Sub", first, second, name="difference"), 3000.0, name="loud")
    return net("Add", h, difference, name="add")
