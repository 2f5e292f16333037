"""Converting a plan into an engine: its pins are kept or the engine is refused, and what was done is recorded."""

from __future__ import annotations

import json
from importlib.metadata import version as installed
from pathlib import Path

import numpy as np
import pytest
from support.builder_models import counting_loop, needs_rtx, products
from support.command_line import ok, run, saved, two_lines

from trt_helper.builder.convert import Build, Converted, _require_half, _require_pins, convert
from trt_helper.builder.settings import BuildSettings
from trt_helper.config.plan_file import read_config
from trt_helper.errors import BuildError
from trt_helper.onnx_model.graph import Graph, read_graph
from trt_helper.onnx_model.load import load

PLAN = "model: model.onnx\nFP32_LAYERS_FOR_FP16: [{}]\n"


pytestmark = pytest.mark.usefixtures("own_folder")


def graph_of(proto) -> Graph:
    return read_graph(load(saved(proto)))


def built(graph, pins, **how) -> Converted:
    out = Path("m.trt")
    return convert(graph, graph.plan(pins), engine=out, typed_onnx=None, profile={}, settings=BuildSettings(), **how)


def is_rtx(version: str) -> bool:
    return installed("tensorrt_rtx").startswith(version)


@needs_rtx
@pytest.mark.parametrize("op", ["MatMul", "Gemm", "Conv", "ConvTranspose"])
def test_a_lone_product_is_retained_by_a_guard_and_its_weights_are_fp32_then(op):
    """The size of the engine says the same: its one FP32 weight takes two bytes a value more."""
    layers = ("dense_0", "dense_1", "dense_2")
    proto = products(layers, op="Conv" if op == "ConvTranspose" else op)
    for one in proto.graph.node:
        one.op_type = op
    graph = graph_of(proto)
    nothing = built(graph, [])
    kept = built(graph, ["dense_1"])
    assert [(proof.layer, proof.state) for proof in kept.proofs] == [("dense_1", "honoured")]
    if op in ("MatMul", "Gemm") or is_rtx("1.7"):
        assert [proof.state for proof in kept.builds[0].proofs] == ["demoted"]
        assert (len(kept.builds), set(kept.retention.guards), dict(kept.retention.added)) == (2, {"dense_1"}, {})
    assert kept.engine is not None
    assert nothing.engine is not None
    elements = int(np.prod(proto.graph.initializer[1].dims))
    assert kept.engine.bytes - nothing.engine.bytes > 1.5 * elements


@needs_rtx
def test_what_was_done_is_printed_recorded_and_remembered():
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
    result = run("convert", "-c", "plan.yaml", "--time-limit", "0.01", "--force")
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
def test_an_engine_without_the_fp16_that_was_requested_is_refused():
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
def test_two_conversions_of_a_guarded_plan_are_the_same_bytes():
    graph = graph_of(products(("dense_0", "dense_1", "dense_2")))
    first, second = built(graph, ["dense_1"]), built(graph, ["dense_1"], guards=["dense_1"])
    assert first.engine is not None
    assert second.engine is not None
    assert first.engine.sha256 == second.engine.sha256
    assert (len(first.builds), len(second.builds)) == (2, 1)


@needs_rtx
def test_a_loop_without_a_condition_builds():
    graph = graph_of(counting_loop())
    assert isinstance(built(graph, []).builds[0], Build)
