"""Files for other tools: trtexec's command line, Engine Explorer's layers, notes for Netron."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace

import onnx
import onnx_ir as ir
import pytest
from support.builder_models import built, convs, needs_rtx

from trt_helper.builder.interchange import PREFIX, annotated, engine_explorer, trtexec_typed, trtexec_weak
from trt_helper.builder.layer_info import EngineLayer, EngineTensor, parse_layers
from trt_helper.builder.settings import BuildSettings
from trt_helper.config.plan_file import Config
from trt_helper.errors import ConfigError
from trt_helper.onnx_model.graph import read_graph
from trt_helper.onnx_model.load import load
from trt_helper.onnx_model.typed import write

RANGES = {"x": ((1, 3), (2, 3), (4, 3))}


@pytest.fixture
def graph(tmp_path):
    made = convs("c0", "r0", "mid", "r1", "c2")  # all FP32: a plain model
    path = tmp_path / "my model.onnx"
    onnx.save(made, path)
    return read_graph(load(path))


def words(command):
    return dict(word.removeprefix("--").partition("=")[::2] for word in shlex.split(command)[1:])


def test_the_typed_model_needs_no_layer_to_be_named(tmp_path):
    settings = BuildSettings(workspace=512 << 20, extra={"builder_optimization_level": "4"})
    command = trtexec_typed(tmp_path / "a b.onnx", tmp_path / "m.trt", RANGES, settings)
    said = words(command)
    assert said["onnx"] == str(tmp_path / "a b.onnx")  # a space is quoted
    assert said["stronglyTyped"] == said["noTF32"] == ""
    assert (said["memPoolSize"], said["builderOptimizationLevel"]) == ("workspace:512", "4")
    assert [said[f"{which}Shapes"] for which in ("min", "opt", "max")] == ["x:1x3", "x:2x3", "x:4x3"]
    assert "fp16" not in said  # it would be refused together with --stronglyTyped


def test_weak_typing_names_every_pin_in_topological_order(graph, tmp_path):
    plan = graph.plan(["c2", "mid"])
    said = words(
        trtexec_weak(graph.source.path, tmp_path / "m.trt", graph, plan, {}, BuildSettings(extra={"TF32": "on"}))
    )
    assert (said["fp16"], said["precisionConstraints"]) == ("", "obey")
    assert said["layerPrecisions"] == said["layerOutputTypes"] == "mid:fp32,c2:fp32"
    assert "noTF32" not in said
    nothing = words(trtexec_weak(graph.source.path, tmp_path / "m.trt", graph, graph.plan([]), {}, BuildSettings()))
    assert "layerPrecisions" not in nothing


@pytest.mark.parametrize(("name", "said"), [("a,b", "a*b:fp32"), ("s/n:0", "s/n:0:fp32")])
def test_a_comma_in_a_name_becomes_trtexecs_wildcard(tmp_path, name, said):
    graph = renamed(tmp_path, name)
    command = trtexec_weak(graph.source.path, tmp_path / "m.trt", graph, graph.plan([name]), {}, BuildSettings())
    assert words(command)["layerPrecisions"] == said


def test_a_name_that_trtexec_cannot_read_is_an_error(tmp_path):
    graph = renamed(tmp_path, "a,b,c")
    with pytest.raises(ConfigError, match="'a,b,c'"):
        trtexec_weak(graph.source.path, tmp_path / "m.trt", graph, graph.plan(["a,b,c"]), {}, BuildSettings())


def renamed(folder, name):
    made = convs("c0", "r0", "mid", "r1", "c2")
    next(node for node in made.graph.node if node.name == "mid").name = name
    onnx.save(made, folder / "named.onnx")
    return read_graph(load(folder / "named.onnx"))


def test_engine_explorer_finds_the_keys_that_it_reads():
    """Those of `trex/parser.py`, `layer.py` and `activations.py` in NVIDIA/TensorRT, tools/experimental."""
    tensors = [EngineTensor("x", "FP32", (1, 4)), EngineTensor("h", "FP16", (1, 4)), EngineTensor("y", "BF16", (1, 4))]
    first = EngineLayer("a", "kgen", ("n", "m"), (tensors[0],), (), (tensors[1],), "t")
    second = replace(first, name="b", inputs=(tensors[1],), outputs=(tensors[2],))
    record = json.loads(engine_explorer([first, second]))
    assert record["Bindings"] == ["x", "y"]
    assert [layer["Inputs"][0]["Format/Datatype"] for layer in record["Layers"]] == ["Float", "Half"]
    assert record["Layers"][1]["Outputs"][0]["Format/Datatype"] == "BFloat16"
    assert record["Layers"][0]["Metadata"] == "[ONNX Layer: n]+[ONNX Layer: m]"


@needs_rtx
def test_what_is_written_for_engine_explorer_is_what_the_engine_said(tmp_path):
    layers = built(tmp_path, convs("mid", "r1")).layers
    again = parse_layers(engine_explorer(layers).decode())
    assert len(layers) > 1
    for one, other in zip(layers, again, strict=True):
        assert (one.name, one.kind, one.tactic) == (other.name, other.kind, other.tactic)
        assert (one.inputs, one.constants, one.outputs) == (other.inputs, other.constants, other.outputs)


def test_netron_shows_precision_cause_and_error_of_a_layer(graph, tmp_path):
    evidence = {"layers": {"mid": {"op": "Conv", "cause": "overflow: values up to 8e+04", "max-error-without": 0.99}}}
    typed = annotated(graph, graph.plan(["mid"]), Config(evidence=evidence))
    write(typed, tmp_path / "annotated.onnx")
    onnx.checker.check_model(tmp_path / "annotated.onnx", full_check=True)
    notes = {
        node.name: {entry.key.removeprefix(PREFIX): entry.value for entry in node.metadata_props}
        for node in onnx.load(tmp_path / "annotated.onnx").graph.node
    }
    said = {"precision": "FP32", "pinned": "yes", "cause": "overflow: values up to 8e+04", "max-error-without": "0.99"}
    assert said.items() <= notes["mid"].items()
    assert notes["c0"]["precision"] == "FP16"
    assert "pinned" not in notes["c0"]


def test_odd_evidence_written_by_hand_leaves_the_notes_out(graph):
    for evidence in ({"layers": 3}, {"layers": {"mid": "because"}}, {}):
        typed = annotated(graph, graph.plan(["mid"]), Config(evidence=evidence))
        (mid,) = [node for node in typed.model.graph if isinstance(node, ir.Node) and node.name == "mid"]
        assert PREFIX + "cause" not in mid.metadata_props
