"""The cases: every hazard by itself, several together, sizes and samples, subgraphs, and models without any."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from support import zoo_structure  # noqa: F401 - registers its hazards, and those of zoo_families
from support.zoo import (
    HAZARDS,
    LENGTH,
    WIDTH,
    Net,
    Sizes,
    attention,
    case,
    chain,
    convolutions,
    hazard,
    norm,
    products,
    side_by_side,
)
from support.zoo_families import ROW, uniform

for _name in HAZARDS:
    if _name != "twins":  # they are no hazard by themselves
        chain(_name, [_name])

# ------------------------------------------------------------------------------------------- together

chain("two_in_a_row", ["coordinates", "l2norm_sum"], why="independent: neither hides the other")
chain("three_in_a_row", ["coordinates", "large_constant", "fourth_power"], why="three independent ones")
chain("first_hides_second", ["mask_times_zero", "l2norm_sum"], why="NaN from the first hides the second")
chain("first_hides_two", ["mask_times_zero", "offset_of_3000", "cube_matters"], why="NaN hides noise and overflow")
chain("cancelling_before_overflow", ["twins", "rmsnorm_square"], why="pinning one of two twins does harm")
side_by_side("two_branches", ["softmax_raw", "rotary_angles"], why="overflow in one branch, lost angles in the other")
side_by_side("two_branches_not_finite", ["log_of_tiny", "squares_underflow"], why="not finite on both sides")

chain(
    "three_kinds_together",
    ["squares_underflow", "coordinates_in_a_stack", "vote_of_three"],
    why="underflow, a lost fraction in a stack, and a vote",
)


def far_down(net: Net, h: str) -> str:
    with net.scope("between"):
        h = norm(net, products(net, h, blocks=60))
    result = HAZARDS["rmsnorm_square"].add(net, h)
    return net("Add", h, net("MatMul", result, net.normal(WIDTH, WIDTH, scale=WIDTH**-0.5)))


case("long_model", far_down, [HAZARDS["rmsnorm_square"]], why="400 layers, so that roundings are grouped at first")

# ------------------------------------------------------------------------- first layers and last layers


@hazard("smaller", why="the model's own input passes 65504", far=uniform(70000, 90000, ROW))
def large_input(net: Net, h: str, far: str) -> str:
    return net("Mul", h, net("Mul", far, 1e-4, name="smaller"), name="weigh")


@hazard("larger", why="the model's own output passes 65504")
def large_output(net: Net, y: str) -> str:
    return net("Mul", y, 1e5, name="larger")


@hazard("offset_1 shift_1", why="one head loses a coordinate that it computes itself")
def near_head(net: Net, y: str) -> str:
    return net("Sub", net("Add", y, 3000.0, name="shift_1"), 3000.0, name="offset_1")


@hazard("up_2 down_2", why="the other head overflows")
def loud_head(net: Net, y: str) -> str:
    return net("Div", net("Mul", net("Tanh", y, name="tanh"), 2e5, name="up_2"), 2e5, name="down_2")


def as_it_is(_net: Net, h: str) -> str:
    return h


chain("large_input", ["large_input"])
case(
    "large_output",
    as_it_is,
    [HAZARDS["large_output"]],
    why=HAZARDS["large_output"].why,
    atol=5e3,
    finish=lambda net, y: [HAZARDS["large_output"].add(net, y)],
)
case(
    "two_heads",
    as_it_is,
    [HAZARDS["near_head"], HAZARDS["loud_head"]],
    why="each output has its own hazard",
    finish=lambda net, y: [HAZARDS["near_head"].add(net, y), HAZARDS["loud_head"].add(net, y)],
)

# -------------------------------------------------------------------------------- samples and shapes


@hazard(
    "square mean epsilon root", why="only a loud sample overflows", loudness=((1, 1, 1), lambda _: np.ones((1, 1, 1)))
)
def loud_sample(net: Net, h: str, loudness: str) -> str:
    x = net("Mul", h, loudness, name="scale")
    mean = net("ReduceMean", net("Mul", x, x, name="square"), axes=[-1], name="mean")
    return net("Div", x, net("Sqrt", net("Add", mean, 1e-3, name="epsilon"), name="root"), name="divide")


LOUD = {"loudness": np.full((1, 1, 1), 400, np.float32)}
FIVE = ((1, LENGTH),) * 5
chain("one_sample_of_five", ["loud_sample"], sizes=Sizes(FIVE, extra={1: LOUD}))
chain("a_held_out_sample", ["loud_sample"], sizes=Sizes(FIVE, extra={3: LOUD}))


@hazard(
    "whole fraction",
    why="only a far sample loses its fraction",
    farness=((1, 1, 1), lambda r: r.uniform(1, 2, (1, 1, 1))),
)
def far_sample(net: Net, h: str, farness: str) -> str:
    fraction = net("Sub", farness, net("Floor", farness, name="whole"), name="fraction")
    return net("Mul", h, fraction, name="weigh")


FAR = {"farness": np.full((1, 1, 1), 5001.6, np.float32)}
BOTH = ["loud_sample", "far_sample"]
chain("each_sample_its_own", BOTH, why="each sample needs other pins", sizes=Sizes(extra={0: LOUD, 1: FAR}))
chain("held_out_needs_more", BOTH, why="the held-out one needs more", sizes=Sizes(FIVE, extra={0: LOUD, 3: FAR}))


@hazard("total mean", why="the sum over a long sequence passes 65504, over a short one it does not")
def sum_over_length(net: Net, h: str) -> str:
    total = net("ReduceSum", net("Mul", net("Abs", h, name="abs"), 1000.0, name="loud"), 1, name="total")
    count = net("Cast", net("Gather", net("Shape", h, name="shape"), 1, name="length"), to=1, name="count")
    return net("Mul", h, net("Div", net("Div", total, count, name="mean"), 500.0, name="down"), name="weigh")


@hazard("total mean", why="the sum over a large batch passes 65504, over one item it does not")
def sum_over_batch(net: Net, h: str) -> str:
    loud = net("Mul", net("Abs", h, name="abs"), 1000.0, name="loud")
    total = net("ReduceSum", loud, [0, 1], name="total")
    shape = net("Shape", h, name="shape")
    rows = net("ReduceProd", net("Slice", shape, 0, 2, name="sizes"), axes=[0], name="rows")
    mean = net("Div", total, net("Cast", rows, to=1, name="count"), name="mean")
    return net("Mul", h, net("Div", mean, 500.0, name="down"), name="weigh")


chain("longer_sample", ["sum_over_length"], sizes=Sizes(((1, LENGTH), (1, 160)), length="length"))
chain("larger_batch", ["sum_over_batch"], sizes=Sizes(((1, LENGTH), (16, LENGTH)), batch="batch"))

# ------------------------------------------------------------------------------ nothing to be pinned


def clean_convolutions(net: Net, h: str) -> str:
    h = convolutions(net, net("Transpose", h, perm=[0, 2, 1]), blocks=3)
    return net("Transpose", h, perm=[0, 2, 1])


def clean_attention(net: Net, h: str) -> str:
    return attention(net, attention(net, h))


def clean_mixture(net: Net, h: str) -> str:
    left, right = net.many("Split", h, outputs=2, axis=-1)
    gated = net("Mul", left, net("Sigmoid", right))
    return net("Concat", gated, net("Erf", net("Clip", right, -2.0, 2.0)), axis=-1)


def clean_batchnorm(net: Net, h: str) -> str:
    """Running variances of 4e7 look like an overflow; they are folded into the convolution first."""
    x = net("Conv", net("Transpose", h, perm=[0, 2, 1]), net.normal(WIDTH, WIDTH, 1, scale=1500.0))
    variance = net.random.uniform(2e7, 6e7, WIDTH)
    x = net("BatchNormalization", x, np.ones(WIDTH), np.zeros(WIDTH), net.normal(WIDTH, scale=1e3), variance)
    return net("Transpose", x, perm=[0, 2, 1])


for _build in (clean_batchnorm, clean_convolutions, clean_attention, clean_mixture):
    case(_build.__name__, _build, why="nothing here is beyond half precision")


# The layers of a branch are decided one by one. A loop stays FP32 as a whole: what would overflow inside does not.


@hazard("up down", why="a branch passes 65504 and comes back")
def inside_if(net: Net, h: str) -> str:
    up, down = (
        helper.make_node("Mul", [a, f"if_{b}_by"], [f"if_{b}"], name=f"inside_if/{b}")
        for a, b in ((h, "up"), ("if_up", "down"))
    )
    weights = [helper.make_tensor(f"if_{n}_by", TensorProto.FLOAT, [], [v]) for n, v in (("up", 1e6), ("down", 1e-6))]
    then = helper.make_graph([up, down], "then", [], [_result("if_down")], weights)
    other = helper.make_graph(
        [helper.make_node("Neg", [h], ["if_neg"], name="if_neg")], "else", [], [_result("if_neg")]
    )
    peak = net("ReduceMax", h, keepdims=0)
    return net("If", net("Greater", peak, 0.0), name="choose", then_branch=then, else_branch=other)


def inside_loop(net: Net, h: str) -> str:
    """Ten times the square of the norm, six times over, is 1e6; then it is brought down again."""
    nodes = [
        helper.make_node("Mul", ["state", "loop_by"], ["loop_state"], name="loop_grow"),
        helper.make_node("Identity", ["keep_on"], ["loop_keep_on"], name="loop_keep_on"),
        helper.make_node("Mul", ["loop_state", "loop_less"], ["loop_small"], name="loop_shrink"),
    ]
    weights = [helper.make_tensor(f"loop_{n}", TensorProto.FLOAT, [], [v]) for n, v in (("by", 10.0), ("less", 1e-6))]
    scalar = [
        helper.make_tensor_value_info("index", TensorProto.INT64, []),
        helper.make_tensor_value_info("keep_on", TensorProto.BOOL, []),
    ]
    results = [helper.make_tensor_value_info("loop_keep_on", TensorProto.BOOL, []), _result("loop_state")]
    body = helper.make_graph(nodes, "body", [*scalar, _result("state")], [*results, _result("loop_small")], weights)
    _, small = net.many("Loop", net("Squeeze", [6], name="turns"), "", h, outputs=2, name="repeat", body=body)
    return net("Squeeze", net("Slice", small, 5, 6, 0), 0)


def _result(name: str):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, LENGTH, WIDTH])


case("inside_if", HAZARDS["inside_if"].add, [HAZARDS["inside_if"]], why=HAZARDS["inside_if"].why)
case("inside_loop", inside_loop, why="the body overflows in half, and is left in FP32 as a whole")
