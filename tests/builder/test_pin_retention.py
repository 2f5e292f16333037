"""Pins that TensorRT-RTX does not keep by itself: held by a guard or a neighbour, remembered, or refused."""

from __future__ import annotations

import json
from importlib.metadata import version as installed
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from support.builder_models import model, needs_rtx, node, value, weights
from support.cli_helpers import ok, own_folder, run, saved, two_lines

from trt_helper.builder.convert import Build, Converted, _require_half, _require_pins, convert
from trt_helper.builder.pin_retention import RetentionSearch, guard
from trt_helper.builder.proof import PinProof
from trt_helper.builder.settings import BuildSettings
from trt_helper.config.plan_file import read_config
from trt_helper.errors import BuildError
from trt_helper.onnx_model.graph import Graph, read_graph
from trt_helper.onnx_model.load import load
from trt_helper.onnx_model.typed import render, state_conditions

PLAN = "model: model.onnx\nFP32_LAYERS_FOR_FP16: [{}]\n"


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch):
    own_folder(tmp_path, monkeypatch)


def products(layers=("dense_0", "relu_0", "dense_1", "relu_1", "dense_2"), op="MatMul"):
    """A chain of products and Relus."""
    nodes, held, current = [], [], "x"
    for name in layers:
        read = [current]
        if name.startswith("dense"):
            held.append(weights(f"{name}_w", (64, 64) if op != "Conv" else (64, 64, 3, 3)))
            read.append(held[-1].name)
        out = "y" if name == layers[-1] else f"{name}_out"
        padded = {"pads": [1] * 4} if op == "Conv" and len(read) > 1 else {}
        nodes.append(node("Relu" if len(read) == 1 else op, read, [out], name, **padded))
        current = out
    shape = [1, 64, 8, 8] if op == "Conv" else [16, 64]
    return model(nodes, [value("x", shape)], [value("y", shape)], held)


def graph_of(proto) -> Graph:
    return read_graph(load(saved(proto)))


def built(graph, pins, **how) -> Converted:
    out = Path("m.trt")
    return convert(graph, graph.plan(pins), engine=out, typed_onnx=None, profile={}, settings=BuildSettings(), **how)


def is_rtx(version: str) -> bool:
    return installed("tensorrt_rtx").startswith(version)


# ------------------------------------------------------------------------------------------ real engines


@needs_rtx
@pytest.mark.parametrize("op", ["MatMul", "Gemm", "Conv", "ConvTranspose"])
def test_a_lone_product_is_held_by_a_guard_and_its_weights_are_fp32_then(op):
    """The size of the engine says the same: its one FP32 weight takes two bytes a value more."""
    layers = ("dense_0", "dense_1", "dense_2")
    proto = products(layers, op="Conv" if op == "ConvTranspose" else op)
    for one in proto.graph.node:
        one.op_type = op
    graph = graph_of(proto)
    nothing = built(graph, [])
    held = built(graph, ["dense_1"])
    assert [(proof.layer, proof.state) for proof in held.proofs] == [("dense_1", "honoured")]
    if op in ("MatMul", "Gemm") or is_rtx("1.7"):
        assert [proof.state for proof in held.builds[0].proofs] == ["demoted"]
        assert (len(held.builds), set(held.retention.guards), dict(held.retention.added)) == (2, {"dense_1"}, {})
    assert held.engine is not None
    assert nothing.engine is not None
    elements = int(np.prod(proto.graph.initializer[1].dims))
    assert held.engine.bytes - nothing.engine.bytes > 1.5 * elements


@needs_rtx
def test_what_was_done_is_told_recorded_and_remembered():
    saved(products(("dense_0", "dense_1", "dense_2")))
    Path("plan.yaml").write_text(PLAN.format("dense_1"))
    first = ok("convert", "-c", "plan.yaml")
    assert "guarded: dense_1" in first.out
    assert "note: plan.yaml now says what keeps its pins" in first.err
    beside = json.loads(Path("model.trt.json").read_text())
    assert [build["pins"] for build in beside["builds"]] == [{"demoted": 1}, {"honoured": 1}]
    config = read_config(Path("plan.yaml"))
    assert config.fp32_layers == ("dense_1",)
    assert config.evidence["engine"]["guards"] == ["dense_1"]
    assert config.evidence["engine"]["not-kept-without"]["dense_1"].startswith("demoted: ")
    text, engine = Path("plan.yaml").read_bytes(), Path("model.trt").read_bytes()
    second = ok("convert", "-c", "plan.yaml", "--json")
    assert (second.json["builds"], second.json["guarded"]) == (1, ["dense_1"])
    assert (Path("plan.yaml").read_bytes(), Path("model.trt").read_bytes()) == (text, engine)


@needs_rtx
def test_a_plan_whose_pins_are_kept_leaves_its_config_alone():
    saved(products())
    Path("plan.yaml").write_text(PLAN.format("dense_1, relu_1"))
    result = ok("convert", "-c", "plan.yaml", "--json")
    assert (result.json["builds"], result.json["guarded"], result.json["added"]) == (1, [], {})
    assert Path("plan.yaml").read_text() == PLAN.format("dense_1, relu_1")


@needs_rtx
def test_an_engine_is_not_touched_before_its_pins_are_proved():
    saved(products(("dense_0", "dense_1", "dense_2")))
    Path("plan.yaml").write_text(PLAN.format("dense_1"))
    Path("model.trt").write_text("old")
    result = run("convert", "-c", "plan.yaml", "--time-limit", "0.01")
    assert result.status == 4
    assert "passed the time limit" in two_lines(result.err)[0]
    assert Path("model.trt").read_text() == "old"
    assert sorted(path.name for path in Path().iterdir()) == ["model.onnx", "model.trt", "plan.yaml"]


@needs_rtx
def test_the_settings_that_are_set_stand_in_the_sidecar():
    saved(products())
    ok("convert", "model.onnx", "--builder-arg", "WEIGHT_STREAMING=on", "--time-limit", "90")
    settings = json.loads(Path("model.trt.json").read_text())["engine"]["settings"]
    assert settings == {"extra": {"WEIGHT_STREAMING": "on"}, "time_limit": 90.0}


@needs_rtx
@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["--builder-arg", "VERSION_COMPATIBLE=on"], 4, "libnvinfer_lean"),
        (["--plugin", "bad.so"], 3, "cannot load the plugin library bad.so: Unable to load library"),
        (["--plugin", "none.so"], 3, "there is no plugin library none.so"),
    ],
)
def test_what_tensorrt_rtx_lacks_is_said(words, status, says):
    saved(products())
    Path("bad.so").write_text("no library")
    result = run("convert", "model.onnx", *words)
    assert result.status == status
    assert says in two_lines(result.err)[0]
    assert not Path("model.trt").exists()


@needs_rtx
def test_an_engine_without_the_fp16_that_was_asked_for_is_refused():
    """An engine with every layer pinned stands for one whose builder ignored the types."""
    graph = graph_of(products())
    full = built(graph, graph.candidates)
    assert full.engine is not None
    assert {proof.state for proof in full.proofs} == {"honoured"}
    _require_half(graph, graph.all_pinned(), full.engine)
    with pytest.raises(BuildError, match=r"5 layers were to be FP16, and TensorRT-RTX .* made all .* FP32") as caught:
        _require_half(graph, graph.plan([]), full.engine)
    assert caught.value.exit_status == 4
    half = built(graph, ["dense_1", "relu_1"])
    assert half.engine is not None
    _require_half(graph, graph.plan([]), half.engine)


@needs_rtx
def test_a_pin_that_stays_in_fp16_is_refused():
    graph = graph_of(products(("dense_0", "dense_1", "dense_2")))
    first, second = built(graph, ["dense_1"]).builds
    _require_pins(second)
    with pytest.raises(BuildError, match=r"does not keep 'dense_1' in FP32") as caught:
        _require_pins(first)
    assert caught.value.exit_status == 4


@needs_rtx
def test_two_conversions_of_a_held_plan_are_the_same_bytes():
    graph = graph_of(products(("dense_0", "dense_1", "dense_2")))
    first, second = built(graph, ["dense_1"]), built(graph, ["dense_1"], guards=["dense_1"])
    assert first.engine is not None
    assert second.engine is not None
    assert first.engine.sha256 == second.engine.sha256
    assert (len(first.builds), len(second.builds)) == (2, 1)


# -------------------------------------------------------------------------------------- without an engine


def proof(layer, state):
    return PinProof(layer, state, (), (), (), (), "because")


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


def test_a_pin_that_is_kept_keeps_what_holds_it_while_another_climbs():
    graph = graph_of(products(("dense_0", "relu_0", "dense_1", "relu_1", "dense_2", "relu_2")))
    search = RetentionSearch(graph, graph.plan(["dense_0", "dense_2"]))
    assert search.escalate([proof("dense_0", "demoted"), proof("dense_2", "demoted")])
    assert search.escalate([proof("dense_0", "honoured"), proof("dense_2", "demoted")])
    assert dict(search.retention().added) == {"relu_1": "dense_2"}
    assert set(search.retention().guards) == {"dense_0"}
    assert not search.escalate(
        [proof("dense_0", "honoured"), proof("dense_2", "honoured"), proof("relu_1", "honoured")]
    )


def test_a_pin_that_is_not_computed_at_all_is_not_climbed_for():
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
    (held,) = typed.model.graph.initializers.values()
    typed.model.graph.initializers.pop(held.name)
    held.name = "dense_1_guard_0"
    typed.model.graph.register_initializer(held)
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


def counting_loop():
    """y = x * 2**3, by a Loop that counts, whose body hands on a condition that nobody gave."""
    body = onnx.helper.make_graph(
        [node("Identity", ["keep"], ["keep_out"], "keep_on"), node("Mul", ["state", "by"], ["state_out"], "grow")],
        "body",
        [value("i", [], onnx.TensorProto.INT64), value("keep", [], onnx.TensorProto.BOOL), value("state", [4])],
        [value("keep_out", [], onnx.TensorProto.BOOL), value("state_out", [4])],
        [onnx.numpy_helper.from_array(np.float32(2), "by")],
    )
    turns = onnx.numpy_helper.from_array(np.int64(3), "turns")
    nodes = [node("Relu", ["x"], ["h"], "act"), node("Loop", ["turns", "", "h"], ["y"], "repeat", body=body)]
    return model(nodes, [value("x", [4])], [value("y", [4])], [turns])


def test_a_loop_that_counts_gets_a_condition_and_turns_as_often():
    typed = render(graph_of(counting_loop()), graph_of(counting_loop()).plan([]))
    state_conditions(typed.model)
    proto = ir.serde.serialize_model(typed.model)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": np.array([1, 2, 3, -4], np.float32)})
    assert y.tolist() == [8, 16, 24, 0]


@needs_rtx
def test_a_loop_without_a_condition_builds():
    graph = graph_of(counting_loop())
    assert isinstance(built(graph, []).builds[0], Build)
