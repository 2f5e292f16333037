"""The search for what keeps a demoted pin in FP32: first a guard, then a light neighbour, then nothing."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from support.builder_models import products, weights
from support.command_line import saved
from support.onnx_parts import model, node, value

from trt_helper.builder.pin_retention import RetentionSearch, guard
from trt_helper.builder.proof import PinProof
from trt_helper.onnx_model.graph import Graph, read_graph
from trt_helper.onnx_model.load import load
from trt_helper.onnx_model.typed import render


def graph_of(proto) -> Graph:
    return read_graph(load(saved(proto)))


def proof(layer, state):
    return PinProof(layer, state, (), (), (), (), "because")


pytestmark = pytest.mark.usefixtures("own_folder")


def test_a_pin_is_guarded_then_given_a_light_neighbour_and_then_left_as_it_was():
    graph = graph_of(products())
    search = RetentionSearch(graph, graph.plan(["dense_1"]))
    tried = []
    while search.escalate([proof("dense_1", "demoted"), *(proof(name, "fused") for name in search.retention().added)]):
        tried.append((dict(search.retention().added), set(search.retention().guards)))
    assert tried == [({}, {"dense_1"}), ({"relu_0": "dense_1"}, set()), ({"relu_1": "dense_1"}, set()), ({}, set())]
    assert search.retention().plan(graph.plan(["dense_1"])) == graph.plan(["dense_1"])


def test_a_light_neighbour_is_found_through_layers_that_only_move():
    nodes = [
        node("Relu", ["x"], ["a"], "relu"),
        node("Transpose", ["a"], ["b"], "turn", perm=[1, 0]),
        node("Transpose", ["b"], ["c"], "back", perm=[1, 0]),
        node("MatMul", ["c", "w"], ["y"], "dense"),
    ]
    graph = graph_of(model(nodes, [value("x", [16, 64])], [value("y", [16, 64])], [weights("w", (64, 64))]))
    search = RetentionSearch(graph, graph.plan(["dense"]))
    assert search.escalate([proof("dense", "demoted")])
    assert search.escalate([proof("dense", "demoted")])
    assert dict(search.retention().added) == {"relu": "dense"}


def test_a_pin_that_is_kept_keeps_what_retains_it_while_another_is_escalated():
    graph = graph_of(products(("dense_0", "relu_0", "dense_1", "relu_1", "dense_2", "relu_2")))
    search = RetentionSearch(graph, graph.plan(["dense_0", "dense_2"]))
    assert search.escalate([proof("dense_0", "demoted"), proof("dense_2", "demoted")])
    assert search.escalate([proof("dense_0", "honoured"), proof("dense_2", "demoted")])
    assert dict(search.retention().added) == {"relu_1": "dense_2"}
    assert set(search.retention().guards) == {"dense_0"}
    assert not search.escalate(
        [proof("dense_0", "honoured"), proof("dense_2", "honoured"), proof("relu_1", "honoured")]
    )


def test_a_pin_that_is_not_computed_at_all_is_not_escalated():
    graph = graph_of(products())
    assert not RetentionSearch(graph, graph.plan(["dense_1"])).escalate([proof("dense_1", "gone")])


def test_a_product_is_no_neighbour_because_it_costs_much():
    graph = graph_of(products(("dense_0", "dense_1", "dense_2")))
    search = RetentionSearch(graph, graph.plan(["dense_1"]))
    tried = []
    while search.escalate([proof("dense_1", "demoted")]):
        tried.append(dict(search.retention().added))
    assert tried == [{}, {}]  # the guard, and nothing


def test_a_guard_takes_no_name_that_is_there():
    graph = graph_of(products(("dense_1",)))
    typed = render(graph, graph.all_pinned())
    (weight,) = typed.model.graph.initializers.values()
    typed.model.graph.initializers.pop(weight.name)
    weight.name = "dense_1_guard_0"
    typed.model.graph.register_initializer(weight)
    guard(typed, ["dense_1"])
    onnx.checker.check_model(ir.serde.serialize_model(typed.model), full_check=True)


def test_a_guard_changes_no_bit():
    graph = graph_of(products(("dense_1",)))
    typed = render(graph, graph.all_pinned())
    before = ir.serde.serialize_model(typed.model).SerializeToString()
    guard(typed, ["dense_1"])
    after = ir.serde.serialize_model(typed.model)
    assert [one.op_type for one in after.graph.node] == ["LeakyRelu", "MatMul"]
    onnx.checker.check_model(after, full_check=True)
    only = model(
        [node("LeakyRelu", ["x"], ["y"], "g", alpha=1.0)], [value("x", [8])], [value("y", [8])]
    ).SerializeToString()
    odd = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -3.4e38, 1.5], np.float32)
    (y,) = onnxruntime.InferenceSession(only, providers=["CPUExecutionProvider"]).run(None, {"x": odd})
    assert y.tobytes() == odd.tobytes()
    x = np.random.default_rng(0).standard_normal((16, 64)).astype(np.float32)
    results = [
        onnxruntime.InferenceSession(one, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for one in (before, after.SerializeToString())
    ]
    assert np.array_equal(*results)
