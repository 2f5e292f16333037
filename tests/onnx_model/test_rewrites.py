"""Rewrites of a model: which are found, and that they compute the same in FP32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.builder_models import needs_rtx
from support.rewritable_models import (
    SPELLINGS,
    WIDTH,
    Build,
    over_two_axes_in_turn,
    torch_layer_norm,
    variance_of_something_else,
    without_a_root,
)
from support.zoo import Net

from trt_helper.builder.build import build
from trt_helper.builder.engine_program import read_program
from trt_helper.builder.settings import BuildSettings
from trt_helper.emulator.emulator import Emulator
from trt_helper.errors import ConfigError
from trt_helper.onnx_model.graph import Graph, read_graph
from trt_helper.onnx_model.load import load
from trt_helper.onnx_model.rewrites import EPSILONS, find
from trt_helper.onnx_model.typed import render, write
from trt_helper.values import REWRITE_KINDS, Plan, Reading, Rewrite


def graph_of(build: Build, folder: Path) -> Graph:
    net = Net(7)
    y = build(net, net("Mul", net.input("x", [2, 5, WIDTH]), 1.5))
    path = folder / "norm.onnx"
    onnx.save(net.model("norm", [net("Add", y, net.normal(WIDTH))], [2, 5, WIDTH]), path)
    return read_graph(load(path))


def reference(graph: Graph, feed: dict[str, np.ndarray]) -> np.ndarray:
    session = ort.InferenceSession(str(graph.source.path), providers=["CPUExecutionProvider"])
    return session.run(None, feed)[0]


@pytest.mark.parametrize(("build", "op"), SPELLINGS.items(), ids=lambda value: getattr(value, "__name__", value))
def test_a_norm_in_pieces_becomes_one_operator_that_computes_the_same(build, op, tmp_path):
    graph = graph_of(build, tmp_path)
    offered = find(graph.model.graph, ["norms"])
    assert offered == (Rewrite("norms", "norm", op),)
    rewritten = read_graph(graph.source, offered)
    assert [layer.op for layer in rewritten.layers if layer.op != "Transpose"] == ["Mul", op, "Add"]
    assert len(graph.layers) > len(rewritten.layers)
    feed = {"x": np.random.default_rng(3).normal(3, 2, (2, 5, WIDTH)).astype(np.float32)}
    found = next(iter(Emulator(rewritten).reference(feed).values()))
    np.testing.assert_allclose(found, reference(graph, feed), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("build", [over_two_axes_in_turn, variance_of_something_else, without_a_root])
def test_what_only_looks_like_a_norm_is_left_alone(build, tmp_path):
    assert find(graph_of(build, tmp_path).model.graph, REWRITE_KINDS) == ()


def test_the_layers_that_went_into_a_norm_answer_by_its_name(tmp_path):
    graph = graph_of(torch_layer_norm, tmp_path)
    rewritten = read_graph(graph.source, find(graph.model.graph, ["norms"]))
    (root,) = [layer.name for layer in graph.layers if layer.op == "Sqrt"]
    assert rewritten.plan([root]).fp32 == {"norm"}


def test_a_rewrite_that_the_model_does_not_offer_is_named_with_the_nearest(tmp_path):
    graph = graph_of(torch_layer_norm, tmp_path)
    with pytest.raises(ConfigError, match="'nrm' by norms") as caught:
        read_graph(graph.source, [Rewrite("norms", "nrm", "LayerNormalization")])
    assert "'norm'" in caught.value.fix


def test_only_constants_beyond_the_range_are_brought_into_it(tmp_path):
    """-1e9 becomes what a half can hold together with a score; -inf, 3.5 and 60000 stay."""
    weights = [
        numpy_helper.from_array(np.array(v, np.float32), n) for n, v in (("mask", [-1e9, 0]), ("big", [6e4, 3.5]))
    ]
    nodes = [helper.make_node("Add", ["x", "mask"], ["a"], "a"), helper.make_node("Mul", ["a", "big"], ["y"], "y")]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [info("x", TensorProto.FLOAT, [2])], [info("y", TensorProto.FLOAT, [2])], weights
    )
    path = tmp_path / "mask.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    model = load(path)
    offered = find(read_graph(model).model.graph, ["constants"])
    assert offered == (Rewrite("constants", "mask"),)
    initializers = read_graph(model, offered).model.graph.initializers
    np.testing.assert_array_equal(initializers["mask"].const_value.numpy(), [-32768.0, 0.0])
    np.testing.assert_array_equal(initializers["big"].const_value.numpy(), np.array([6e4, 3.5], np.float32))


def bounded(folder: Path, **epsilons: float) -> Graph:
    """Each of the epsilons is added; the one that is called scale is multiplied, too."""
    nodes, last = [], "x"
    for name in epsilons:
        nodes.append(helper.make_node("Add", [last, name], [f"{name}_added"], f"{name}_added"))
        last = f"{name}_added"
    if "scale" in epsilons:
        nodes.append(helper.make_node("Mul", [last, "scale"], ["scaled"], "scaled"))
        last = "scaled"
    weights = [numpy_helper.from_array(np.array(value, np.float32), name) for name, value in epsilons.items()]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", last))
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y], weights), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    path = folder / "bounded.onnx"
    onnx.save(model, path)
    return read_graph(load(path))


def test_only_an_epsilon_that_becomes_zero_is_raised(tmp_path):
    """2^-25 (3e-8) is the largest number that rounds to 0. A factor is no epsilon, and a negative number no bound."""
    graph = bounded(tmp_path, tiny=1e-12, half_step=2.0**-25, held=4e-8, below=-1e-12, scale=1e-11)
    offered = find(graph.model.graph, ["constants"])
    assert offered == (Rewrite("constants", "tiny", EPSILONS[0]), Rewrite("constants", "half_step", EPSILONS[0]))


@pytest.mark.parametrize("value", EPSILONS)
def test_an_epsilon_is_raised_to_an_fp16_number_of_the_size_that_is_asked_for(value, tmp_path):
    """FP16's smallest number is 2^-24, its smallest one with 11 bits 2^-14."""
    graph = bounded(tmp_path, tiny=1e-12, other=3.0)
    changed = read_graph(graph.source, [Rewrite("constants", "tiny", value)]).model.graph.initializers
    raised = changed["tiny"].const_value.numpy()
    assert raised.astype(np.float16) == {EPSILONS[0]: 2.0**-24, EPSILONS[1]: 2.0**-14}[value]
    assert changed["other"].const_value.numpy() == np.float32(3)


@pytest.mark.parametrize("value", ["", "1", "nonsense"])
def test_an_epsilon_is_raised_to_no_other_number(value, tmp_path):
    graph = bounded(tmp_path, tiny=1e-12)
    with pytest.raises(ConfigError, match="'tiny' by constants"):
        read_graph(graph.source, [Rewrite("constants", "tiny", value)])


# ---------------------------------------------------------------------------------------------- logs


def logarithm(folder: Path, kind: str, opset: int = 17, axis: int = -1) -> Graph:
    nodes = {
        "softmax": [helper.make_node("LogSoftmax", ["x"], ["y"], name="log", axis=axis)],
        "sigmoid": [
            helper.make_node("Sigmoid", ["x"], ["s"], name="sigmoid"),
            helper.make_node("Log", ["s"], ["y"], name="log"),
        ],
    }[kind]
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", 3, 8]) for name in "xy"]
    model = helper.make_model(
        helper.make_graph(nodes, "g", infos[:1], infos[1:]),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=8,
    )
    path = folder / "log.onnx"
    onnx.save(model, path)
    return read_graph(load(path))


@pytest.mark.parametrize("opset", [13, 17, 18, 20])
@pytest.mark.parametrize(("kind", "axis"), [("softmax", -1), ("softmax", 1), ("sigmoid", 0)])
def test_a_logarithm_is_computed_without_underflow(tmp_path, kind, axis, opset):
    """In FP64 it is finite everywhere; as it stands it is not, in FP16 or as a kernel computes it in FP32."""
    graph = logarithm(tmp_path, kind, opset, axis)
    offered = find(graph.model.graph, ["logs"])
    assert offered == (Rewrite("logs", "log"),)
    rewritten = read_graph(graph.source, offered)
    x = np.random.default_rng(0).uniform(-150, 50, (2, 3, 8)).astype(np.float32)
    exact = x.astype(np.float64)
    if kind == "sigmoid":
        exact = -np.logaddexp(0, -exact)
    else:
        exact = exact - exact.max(axis=axis, keepdims=True)
        exact = exact - np.log(np.exp(exact).sum(axis=axis, keepdims=True))
    (found,) = Emulator(rewritten).reference({"x": x}).values()
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-5)
    (half,) = Emulator(rewritten).run(Plan(), {"x": x}).values()
    assert np.abs(half - exact).max() < 0.25, "a few roundings of numbers up to 256"
    (as_it_was,) = Emulator(graph).run(Plan(), {"x": x}).values()
    assert not np.isfinite(as_it_was).all()
    assert rewritten.layers[-1].name == "log"


def test_a_softmax_over_several_axes_is_left_alone(tmp_path):
    assert find(logarithm(tmp_path, "softmax", opset=11, axis=1).model.graph, ["logs"]) == ()


# ---------------------------------------------------------------------------------------------- rows

ROWS = {
    "row": ("MatMul", (1, 64), (64, 8), {}),
    "row of a batch of one": ("MatMul", (1, 1, 64), (64, 8), {}),
    "row of each batch": ("MatMul", (4, 1, 64), (4, 64, 8), {}),
    "column": ("MatMul", (5, 64), (64, 1), {}),
    "Gemm": ("Gemm", (1, 64), (64, 8), {}),
    "Gemm transposed": ("Gemm", (1, 64), (8, 64), {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    "Gemm column": ("Gemm", (64, 5), (64, 1), {"transA": 1}),
}


def product(folder: Path, op: str, a: tuple, b: tuple, attributes: dict) -> tuple[Graph, dict[str, np.ndarray]]:
    random = np.random.default_rng(0)
    weights = {"w": random.standard_normal(b).astype(np.float32)}
    if op == "Gemm":
        columns = b[0] if attributes.get("transB") else b[1]
        weights["c"] = random.standard_normal(columns).astype(np.float32)
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node(op, ["x", *weights], ["y"], name="product", **attributes)],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, a)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(array, name) for name, array in weights.items()],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    path = folder / "product.onnx"
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return read_graph(load(path)), {"x": random.standard_normal(a).astype(np.float32)}


@pytest.mark.parametrize("kind", ROWS)
def test_a_product_with_one_row_is_computed_with_two(tmp_path, kind):
    graph, feed = product(tmp_path, *ROWS[kind])
    offered = find(graph.model.graph, ["rows"])
    assert offered == (Rewrite("rows", "product"),)
    rewritten = read_graph(graph.source, offered)
    assert [layer.op for layer in rewritten.layers] == ["Concat", ROWS[kind][0], "Slice"]
    emulator = Emulator(rewritten)
    (found,) = emulator.reference(feed).values()
    np.testing.assert_allclose(found, reference(graph, feed), rtol=1e-5, atol=1e-5)
    (half,), (rounded_once,) = (
        e.run(Plan(), feed).values() for e in (emulator, Emulator(graph, reading=Reading.ONE_STEP))
    )
    assert np.abs(half - rounded_once).max() <= 2.0**-10 * np.abs(half).max()
    assert find(rewritten.model.graph, ["rows"]) == ()


@pytest.mark.parametrize(
    ("a", "b"), [((2, 64), (64, 8)), ((1, 4), (4, 8)), (("n", 64), (64, 8)), ((2, 1, 64), (64, 8)), ((64,), (64, 8))]
)
def test_any_other_product_is_left_alone(tmp_path, a, b):
    graph, _ = product(tmp_path, "MatMul", tuple(2 if size == "n" else size for size in a), b, {})
    if "n" in a:
        graph.model.graph.inputs[0].shape = ir.Shape(a)
    assert find(graph.model.graph, ["rows"]) == ()


@needs_rtx
@pytest.mark.parametrize("kind", ROWS)
def test_the_kernel_that_is_built_for_two_rows_multiplies_on_tensor_cores(tmp_path, kind):
    """And the one for one row does not, at these sizes."""
    graph, _ = product(tmp_path, *ROWS[kind])
    found = []
    for rewrites in ((), find(graph.model.graph, ["rows"])):
        write(render(read_graph(graph.source, rewrites), Plan()), tmp_path / "typed.onnx")
        build(tmp_path / "typed.onnx", tmp_path / "model.trt", profiles=[], settings=BuildSettings())
        found.append([step.kind for step in read_program(tmp_path / "model.trt").steps])
    assert found[0] == []
    assert found[1][0] == "fully_connected"
