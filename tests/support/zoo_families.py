"""Hazards of numbers: too large, too small, too close together, too far from zero for half precision.

Names in the decorators are the smallest sets of pins; several lines are equally small alternatives.
"""

from __future__ import annotations

import numpy as np

from support.zoo import LENGTH, WIDTH, Net, hazard

TOKEN = (1, LENGTH, 1)
ROW = (1, LENGTH, WIDTH)


def uniform(low: float, high: float, shape: tuple[int, ...]):
    return shape, lambda random: random.uniform(low, high, shape)


def whole(low: int, high: int, shape: tuple[int, ...]):
    return shape, lambda random: random.integers(low, high, shape)


# ---------------------------------------------------------------------------------- norms written out


@hazard("square variance epsilon root", why="the variance of values of some 300 is 90,000")
def layernorm_square(net: Net, h: str) -> str:
    x = net("Mul", h, 300.0, name="scale")
    centred = net("Sub", x, net("ReduceMean", x, axes=[-1], name="mean"), name="centre")
    square = net("Pow", centred, 2.0, name="square")
    variance = net("ReduceMean", square, axes=[-1], name="variance")
    root = net("Sqrt", net("Add", variance, 1e-5, name="epsilon"), name="root")
    return net("Div", centred, root, name="divide")


@hazard("square mean", why="single squares pass 65504, their mean does not")
def rmsnorm_square(net: Net, h: str) -> str:
    x = net("Mul", h, 180.0, name="scale")
    mean = net("ReduceMean", net("Mul", x, x, name="square"), axes=[-1], name="mean")
    root = net("Sqrt", net("Add", mean, 1e-3, name="epsilon"), name="root")
    return net("Mul", net("Div", x, root, name="divide"), net.normal(WIDTH), name="gain")


@hazard("total root", why="every square fits, their sum of 67,600 does not")
def l2norm_sum(net: Net, h: str) -> str:
    x = net("Mul", h, 65.0, name="scale")
    total = net("ReduceSum", net("Mul", x, x, name="square"), -1, name="total")
    return net("Mul", net("Div", x, net("Sqrt", total, name="root"), name="divide"), 4.0, name="gain")


@hazard("total power", why="one layer squares and sums to 160,000; the next one takes the root's reciprocal")
def l2norm_power(net: Net, h: str) -> str:
    x = net("Mul", h, 100.0, name="scale")
    total = net("ReduceSumSquare", x, axes=[-1], name="total")
    return net("Mul", net("Mul", x, net("Pow", total, -0.5, name="power"), name="divide"), 4.0, name="gain")


@hazard("square mean epsilon root", why="squares of 1e-4 are below the smallest half")
def squares_underflow(net: Net, h: str) -> str:
    x = net("Mul", h, 1e-4, name="scale")
    mean = net("ReduceMean", net("Mul", x, x, name="square"), axes=[-1], name="mean")
    root = net("Sqrt", net("Add", mean, 1e-12, name="epsilon"), name="root")
    return net("Div", x, root, name="divide")


@hazard("epsilon divide", why="1e-12 is 0 in half, and rows of padding are divided by it", present=whole(0, 2, TOKEN))
def epsilon_added(net: Net, h: str, present: str) -> str:
    x = net("Mul", h, present, name="mask")
    size = net("ReduceSum", net("Abs", x, name="abs"), -1, name="size")
    return net("Div", x, net("Add", size, 1e-12, name="epsilon"), name="divide")


@hazard("at_least divide", why="a lower bound of 1e-12 is 0 in half", shown=whole(0, 2, TOKEN))
def epsilon_bound(net: Net, h: str, shown: str) -> str:
    x = net("Mul", h, shown, name="mask")
    size = net("ReduceL2", x, axes=[-1], name="size")
    return net("Div", x, net("Max", size, 1e-12, name="at_least"), name="divide")


@hazard("fourth mean root", why="fourth powers of some 20 pass 65504")
def fourth_power(net: Net, h: str) -> str:
    x = net("Mul", h, 20.0, name="scale")
    mean = net("ReduceMean", net("Pow", x, 4.0, name="fourth"), axes=[-1], name="mean")
    return net("Div", x, net("Pow", mean, 0.25, name="root"), name="divide")


# --------------------------------------------------------------------------------- activations and sums


@hazard(why="the cube overflows, and tanh of inf is what tanh of a million is")
def gelu_cube_harmless(net: Net, h: str) -> str:
    x = net("Mul", h, 40.0, name="scale")
    cube = net("Mul", net("Mul", x, x, name="square"), x, name="cube")
    inner = net("Add", x, net("Mul", cube, 0.044715, name="weigh"), name="polynomial")
    gate = net("Add", net("Tanh", net("Mul", inner, 0.7978846, name="inner"), name="tanh"), 1.0, name="one")
    return net("Mul", net("Mul", net("Mul", x, gate, name="gated"), 0.5, name="half"), 0.025, name="down")


@hazard("cube weigh", why="the cube overflows, and its weight of 1e-5 would have brought it back")
def cube_matters(net: Net, h: str) -> str:
    x = net("Mul", h, 30.0, name="scale")
    weighed = net("Mul", net("Pow", x, 3.0, name="cube"), 1e-5, name="weigh")
    return net("Add", weighed, net("Div", x, 30.0, name="down"), name="polynomial")


@hazard("exp sum divide", why="softmax without subtracting the largest: exp of 13 is 442,413")
def softmax_raw(net: Net, h: str) -> str:
    scores = net("Add", net("Mul", h, 2.0, name="scale"), 11.0, name="scores")
    exp = net("Exp", scores, name="exp")
    share = net("Div", exp, net("ReduceSum", exp, -1, name="sum"), name="divide")
    return net("Mul", share, 3.0, name="gain")


@hazard("exp sum log", why="log of a sum of exponentials without subtracting the largest")
def log_sum_exp(net: Net, h: str) -> str:
    s = net("Mul", h, 8.0, name="scores")
    log = net("Log", net("ReduceSum", net("Exp", s, name="exp"), -1, name="sum"), name="log")
    return net("Mul", net("Sub", s, log, name="subtract"), 0.1, name="gain")


@hazard("exp log", why="exp of -18 is 0 in half, and its log is not finite")
def log_of_tiny(net: Net, h: str) -> str:
    tiny = net("Exp", net("Sub", h, 20.0, name="shift"), name="exp")
    return net("Add", net("Div", net("Log", tiny, name="log"), 8.0, name="down"), 2.5, name="back")


@hazard("sigmoid rest", why="1 - sigmoid(9) is 1.2e-4: below half's spacing at 1")
def log_of_rest(net: Net, h: str) -> str:
    likely = net("Sigmoid", net("Add", h, 9.0, name="shift"), name="sigmoid")
    log = net("Log", net("Sub", 1.0, likely, name="rest"), name="log")
    return net("Mul", log, 0.2, name="down")


@hazard("total mean", why="70,000 values around 1.2 add up to 84,000", signal=uniform(0.5, 1.9, (1, 70000)))
def sum_of_many(net: Net, h: str, signal: str) -> str:
    total = net("ReduceSum", net("Relu", signal, name="relu"), -1, name="total")
    return net("Mul", h, net("Mul", total, 1 / 70000, name="mean"), name="weigh")


@hazard("sums window", why="running sums pass 65504; their differences do not", steps=uniform(100, 300, (1, 512)))
def running_sum(net: Net, h: str, steps: str) -> str:
    sums = net("CumSum", steps, 1, name="sums")
    early, late = (net("Slice", sums, a, a + LENGTH, 1, name=f"from_{a}") for a in (480, 484))
    window = net("Sub", late, early, name="window")
    gain = net("Div", net("Reshape", window, list(TOKEN), name="reshape"), 800.0, name="down")
    return net("Mul", h, gain, name="weigh")


@hazard("add_1 norm_1 add_2 norm_2", why="the residual stream doubles past 65504; what reads it brings it down")
def residual_stream(net: Net, h: str) -> str:
    x = net("Mul", h, 16000.0, name="embed")
    norm = h
    for index in (1, 2):
        weight = 16000.0 * np.eye(WIDTH) + net.normal(WIDTH, WIDTH, scale=200.0)
        x = net("Add", x, net("MatMul", norm, weight, name=f"branch_{index}"), name=f"add_{index}")
        ones, zeros = np.ones(WIDTH), np.zeros(WIDTH)
        norm = net("LayerNormalization", x, ones, zeros, axis=-1, name=f"norm_{index}")
    return norm


# ------------------------------------------------------------------------------------------- constants


@hazard("bias", why="0 times -1e9 is 0; 0 times -inf is NaN", visible=whole(0, 2, (1, 1, LENGTH)))
def mask_times_zero(net: Net, h: str, visible: str) -> str:
    bias = net("Mul", net("Sub", 1.0, visible, name="hidden"), -1e9, name="bias")
    return _attend(net, h, lambda scores: net("Add", scores, bias, name="masked"))


@hazard("bias masked softmax", why="rows without any visible key: softmax of -1e9 everywhere is uniform, of -inf NaN")
def mask_on_every_key(net: Net, h: str) -> str:
    seen = np.tril(np.ones((LENGTH, LENGTH)))
    seen[[0, 5]] = 0
    loud = net("Greater", net("ReduceMax", h, axes=[-1], keepdims=1, name="peak"), 0.0, name="loud")
    visible = net("Mul", net("Cast", loud, to=1, name="cast"), seen[None], name="visible")
    bias = net("Mul", net("Sub", 1.0, visible, name="hidden"), -1e9, name="bias")
    return _attend(net, h, lambda scores: net("Add", scores, bias, name="masked"))


@hazard("masked softmax", why="rows without any visible key, masked by Where", seen=uniform(0, 1, (1, 1, LENGTH)))
def mask_by_where(net: Net, h: str, seen: str) -> str:
    level = np.where(np.arange(LENGTH) % 5 == 2, 2.0, 0.5)[None, :, None]
    visible = net("Greater", seen, level, name="visible")
    return _attend(net, h, lambda scores: net("Where", visible, scores, -1e9, name="masked"))


def _attend(net: Net, h: str, mask) -> str:
    keys = net("Transpose", h, perm=[0, 2, 1], name="keys")
    scores = net("Mul", net("MatMul", h, keys, name="scores"), 0.1, name="scaled")
    return net("MatMul", net("Softmax", mask(scores), axis=-1, name="softmax"), h, name="values")


@hazard("up relu down", why="1e5 is no half; what is multiplied by it is divided by it again")
def large_constant(net: Net, h: str) -> str:
    up = net("LeakyRelu", net("Mul", h, 1e5, name="up"), alpha=0.5, name="relu")
    return net("Div", up, 1e5, name="down")


@hazard("product rescale", why="weights of 1e-8 are 0 in half, and 2.5e7 is inf")
def tiny_weights_rescaled(net: Net, h: str) -> str:
    product = net("MatMul", h, net.normal(WIDTH, WIDTH, scale=1e-8), name="product")
    return net("Mul", product, 2.5e7, name="rescale")


@hazard("product", why="weights of 3e-8 are below half's grid; what they read and write is not")
def tiny_weights(net: Net, h: str) -> str:
    product = net("MatMul", net("Mul", h, 10000.0, name="scale"), net.normal(WIDTH, WIDTH, scale=3e-8), name="product")
    return net("Mul", product, 800.0, name="rescale")


@hazard("numerator denominator quotient", why="a quotient of two numbers of 1e-8")
def small_quotient(net: Net, h: str) -> str:
    a = net("Mul", h, 1e-8, name="numerator")
    b = net("Mul", net("Add", net("Abs", h, name="abs"), 1.0, name="one"), 1e-8, name="denominator")
    return net("Div", a, b, name="quotient")


@hazard("divide bound down", why="divided by 1e-6 values of 1 are a million")
def divided_by_small(net: Net, h: str) -> str:
    steps = net("Clip", net("Div", h, 1e-6, name="divide"), -2e6, 2e6, name="bound")
    return net("Mul", steps, 5e-7, name="down")


@hazard("inverse rescale", why="1 / 1e-6 passes 65504", spread=uniform(0.5e-6, 2e-6, TOKEN))
def inverse_of_subnormal(net: Net, h: str, spread: str) -> str:
    inverse = net("Mul", net("Reciprocal", spread, name="inverse"), 1e-6, name="rescale")
    return net("Mul", h, inverse, name="weigh")


# ------------------------------------------------------------------------------- resolution, not range


@hazard("shift mean centre", why="half's spacing at 3000 is 2")
def offset_of_3000(net: Net, h: str) -> str:
    x = net("Add", h, 3000.7, name="shift")
    return net("Sub", x, net("ReduceMean", x, axes=[-1], name="mean"), name="centre")


@hazard(
    "square mean_square mean square_of_mean variance",
    why="E[x^2] - E[x]^2 of values around 88: 7744 minus 7744",
    level=uniform(-1.5, 1.5, (1, LENGTH, 64)),
)
def variance_by_moments(net: Net, h: str, level: str) -> str:
    x = net("Add", net("Floor", net("Mul", level, 16.0, name="steps"), name="floor"), 1408.0, name="shift")
    x = net("Mul", x, 1 / 16, name="grid")
    mean = net("ReduceMean", x, axes=[-1], name="mean")
    mean_square = net("ReduceMean", net("Mul", x, x, name="square"), axes=[-1], name="mean_square")
    variance = net("Sub", mean_square, net("Mul", mean, mean, name="square_of_mean"), name="variance")
    return net("Mul", h, variance, name="weigh")


@hazard("offset", why="a coordinate of 4000.25 is 4000 in half", position=(ROW, lambda r: 4000 + r.uniform(-1, 1, ROW)))
def coordinates(net: Net, h: str, position: str) -> str:
    return net("Mul", h, net("Sub", position, 4000.0, name="offset"), name="weigh")


@hazard("whole fraction", why="the fraction of a coordinate beyond 2048", place=uniform(2100, 6000, TOKEN))
def coordinate_fraction(net: Net, h: str, place: str) -> str:
    fraction = net("Sub", place, net("Floor", place, name="whole"), name="fraction")
    return net("Mul", h, fraction, name="weigh")


@hazard("angle sin cos", why="half's spacing at an angle of 600 is a half", step=whole(700, 1100, TOKEN))
def rotary_angles(net: Net, h: str, step: str) -> str:
    frequencies = np.linspace(0.6, 1.4, WIDTH // 2)
    angle = net("Mul", step, frequencies, name="angle")
    angles = net("Concat", angle, angle, axis=-1, name="twice")
    left, right = net.many("Split", h, outputs=2, axis=-1, name="split")
    turned = net("Concat", net("Neg", right, name="negative"), left, axis=-1, name="turned")
    straight = net("Mul", h, net("Cos", angles, name="cos"), name="straight")
    return net("Add", straight, net("Mul", turned, net("Sin", angles, name="sin"), name="across"), name="add")


@hazard(
    "index",
    why="row * 64 + column: odd indices beyond 2048 are no halves",
    row=whole(0, 64, TOKEN[:2]),
    column=whole(0, 64, TOKEN[:2]),
)
def gather_by_cell(net: Net, h: str, row: str, column: str) -> str:
    index = net("Add", net("Mul", row, 64.0, name="start"), column, name="index")
    return _look_up(net, h, index)


@hazard("scale whole", why="the index is computed in float, up to 4095", share=uniform(0.55, 1, TOKEN[:2]))
def gather_by_share(net: Net, h: str, share: str) -> str:
    index = net("Floor", net("Mul", share, 4095.0, name="scale"), name="whole")
    return _look_up(net, h, index)


def _look_up(net: Net, h: str, index: str) -> str:
    rows = net("Gather", net.normal(4096, WIDTH), net("Cast", index, to=7, name="cast"), axis=0, name="gather")
    return net("Mul", h, rows, name="weigh")
