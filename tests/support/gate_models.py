"""A small network with one norm that FP16 cannot hold, the plan that `locate` finds for it, and `gate` on both."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import yaml

from support.command_line import ok, save_input
from support.onnx_parts import constant, model, node, value

NORM = ("/norm/Pow", "/norm/ReduceMean", "/norm/Add", "/norm/Sqrt")  # what has to stay in FP32
SQUARE = NORM[0]
CONFIG, BASELINE = Path("configs/net.yaml"), Path("configs/net.baseline.json")


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


def gate(*words, status=0):
    """The one config's part of `gate --json`, which must end with `status`."""
    result = ok("gate", CONFIG, "--json", *words, status=status).json
    assert (result["schema"], result["command"]) == (1, "gate")
    (found,) = result["configs"]
    assert found["status"] == status
    assert result["verdict"] == found["verdict"] == {0: "pass", 1: "fail", 3: "error"}[status]
    return found


def rules(found, level):
    return [finding["rule"] for finding in found["findings"] if finding["level"] == level]


def subjects(found, rule):
    return [finding["subject"] for finding in found["findings"] if finding["rule"] == rule]


def edit(path, change):
    data = yaml.safe_load(path.read_text()) if path.suffix == ".yaml" else json.loads(path.read_text())
    change(data)
    path.write_text(yaml.safe_dump(data, sort_keys=False) if path.suffix == ".yaml" else json.dumps(data))


def entry():
    (only,) = json.loads(BASELINE.read_text())["baselines"].values()
    return only
