"""A small network with one norm that FP16 cannot hold, and the plan that `locate` finds for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from cli_helpers import constant, model, node, ok, save_input, value

NORM = ("/norm/Pow", "/norm/ReduceMean", "/norm/Add", "/norm/Sqrt")  # what has to stay in FP32
SQUARE = NORM[0]


def network(*, square=SQUARE, gain=300.0, head=1.0, retrained=0.0):
    """x -> dense (values about `gain`) -> x / sqrt(mean(x^2)) -> head -> y.

    Squares of about `gain`^2 = 90000 pass 65504; at a gain of 3 nothing does. The norm's result is about 1,
    so `head` = 1e6 makes the last layer overflow instead. `retrained` moves every weight by that share.
    """
    random = np.random.default_rng(0)
    move = np.random.default_rng(1)

    def weight(*shape, scale):
        exact = random.standard_normal(shape) * scale / np.sqrt(shape[0])
        return (exact * (1 + retrained * move.standard_normal(shape))).astype(np.float32)

    _, mean, shift, root = NORM
    return model(
        [
            node("MatMul", ["x", "w"], ["h"], "dense"),
            node("Pow", ["h", "two"], ["square"], square),
            node("ReduceMean", ["square"], ["mean"], mean, axes=[-1], keepdims=1),
            node("Add", ["mean", "eps"], ["shifted"], shift),
            node("Sqrt", ["shifted"], ["root"], root),
            node("Div", ["h", "root"], ["n"], "/norm/Div"),
            node("MatMul", ["n", "v"], ["y"], "head"),
        ],
        [value("x", ["b", 16])],
        [value("y", ["b", 4])],
        [
            constant("w", weight(16, 16, scale=gain)),
            constant("v", weight(16, 4, scale=head)),
            constant("two", np.float32(2)),
            constant("eps", np.float32(1e-5)),
        ],
    )


def write_project(**changes):
    """models/net.onnx, samples/*.npz and configs/net.yaml, found by `locate`, in the working folder."""
    Path("models").mkdir(exist_ok=True)
    write_model(**changes)
    random = np.random.default_rng(2)
    for index in range(3):
        save_input(f"samples/{index}.npz", x=random.standard_normal((2, 16)).astype(np.float32))
    ok("locate", "models/net.onnx", "--inputs", "samples", "--atol", "0.02", "--rtol", "0", "-o", "configs/net.yaml")


def write_model(name="net", **changes):
    Path(f"models/{name}.onnx").write_bytes(network(**changes).SerializeToString())
