"""Weak typing: what a plan tells TensorRT, and how the parsed network is told.

No TensorRT that is weakly typed runs here. The networks are real ones, of TensorRT-RTX's ONNX parser; what TensorRT-RTX
1.7 lacks of ILayer is laid over its layers as NVIDIA documents it (TensorRT 10 Python API, Layer Base Classes).
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from builder_models import model, needs_rtx, node, reshaped, value, weights
from onnx import TensorProto, numpy_helper

from trt_helper.asked import asked_of
from trt_helper.builder import BuildSettings, Told
from trt_helper.builder.process import Limits, run
from trt_helper.builder.rtx import PACKAGE_VARIABLE
from trt_helper.errors import BuildError, ConfigError
from trt_helper.told import untyped
from trt_helper.values import Plan

PARSED = {  # node -> the types of the layers that the parser makes of it (seen on TensorRT-RTX 1.4.0 and 1.7.1)
    "gelu": ["ACTIVATION"],
    "mish": ["ACTIVATION", "ACTIVATION", "ELEMENTWISE"],
    "gemm": ["MATRIX_MULTIPLY", "ELEMENTWISE"],
    "log": ["SOFTMAX", "UNARY"],
}


def several_layers():
    """Nodes that become one layer, several layers, layers on shapes, and layers without a name between them."""
    nodes = [
        node("Gelu", ["x"], ["a"], "gelu"),
        node("Mish", ["a"], ["b"], "mish"),
        node("Gemm", ["b", "w", "bias"], ["c"], "gemm"),
        node("LogSoftmax", ["c"], ["d"], "log", axis=-1),
        node("ReduceMax", ["d", "rows"], ["peak"], "peak", keepdims=0),
        node("Mul", ["d", "peak"], ["f"], "scaled"),
        node("Greater", ["f", "half"], ["e"], "greater"),
        node("Where", ["e", "f", "c"], ["y"], "where"),
        node("Shape", ["y"], ["shape"], "shape"),
    ]
    made = model(
        nodes,
        [value("x", [2, 8])],
        [value("y", [2, 8]), value("shape", [2], TensorProto.INT64)],
        [
            *(weights("w", [8, 8]), weights("bias", [8])),
            numpy_helper.from_array(np.array(0.5, np.float32), "half"),
            numpy_helper.from_array(np.array([0]), "rows"),
        ],
    )
    made.opset_import[0].version = 20
    return made


# ------------------------------------------------------------------------------------------ what is told


@pytest.fixture
def graph(tmp_path):
    return reshaped(tmp_path)


def test_the_model_is_fp32_and_only_what_is_not_half_is_told(graph):
    made, told = untyped(graph, graph.plan(["softmax"]), ())
    assert made.casts == 0
    assert not any(asked.half for asked in asked_of(made.model).values())
    assert told == Told({"softmax": "FP32"}, frozenset({"softmax"}))


def test_what_keeps_a_value_wide_between_two_pins_is_told_and_need_not_be_found(graph):
    _, told = untyped(graph, graph.plan(["conv", "softmax"]), ())
    assert told == Told(dict.fromkeys(["conv", "reshape", "softmax"], "FP32"), frozenset({"conv", "softmax"}))


def test_bf16_is_told_and_has_to_be_found(graph):
    _, told = untyped(graph, graph.plan(["conv"], ["mul"]), ())
    assert (told.precisions["conv"], told.precisions["mul"]) == ("FP32", "BF16")
    assert told.pins == {"conv", "mul"}
    assert "softmax" not in told.precisions


def test_a_guard_is_told_with_its_pin(graph):
    made, told = untyped(graph, graph.plan(["softmax"]), ["softmax"])
    (added,) = [one.name for one in made.model.graph if one.op_type == "LeakyRelu"]
    assert told.precisions == {"softmax": "FP32", added: "FP32"}
    assert told.pins == {"softmax", added}


def test_nothing_pinned_is_nothing_told(graph):
    assert untyped(graph, Plan(), ())[1] == Told()


# ------------------------------------------------------------------------------------------ how it is told


class Layer:
    """A parsed layer that takes a precision. `refuses` is what it does not take, as TensorRT-RTX 1.4 takes nothing."""

    def __init__(self, real, *, metadata=None, refuses=()):
        self._real, self._metadata, self._refuses = real, metadata, refuses
        self.precision_is_set, self._precision, self.types = False, None, {}

    def __getattr__(self, name):  # name, type, num_inputs, get_output, ... of the real one
        return getattr(self._real, name)

    @property
    def metadata(self):
        return self._real.metadata if self._metadata is None else self._metadata

    @property
    def precision(self):
        return self._precision

    @precision.setter
    def precision(self, wanted):
        if "precision" not in self._refuses:
            self._precision, self.precision_is_set = wanted, "remembering" not in self._refuses

    def set_output_type(self, index, wanted):
        assert 0 <= index < self._real.num_outputs
        if "output" not in self._refuses:
            self.types[index] = wanted

    def output_type_is_set(self, index):
        return index in self.types


class Network:
    def __init__(self, real, **how):
        self._real = real
        self.layers = [Layer(real.get_layer(index), **how) for index in range(real.num_layers)]
        self.num_layers = real.num_layers

    def get_layer(self, index):
        return self.layers[index]

    def told(self):
        return [one for one in self.layers if one.precision_is_set]


@pytest.fixture(scope="module")
def real():
    """(the weak module, TensorRT's own names, the parsed network of `several_layers`)."""
    pytest.importorskip("tensorrt_rtx", reason="pip install 'trt-helper[rtx]'")
    weak = import_module("trt_helper.builder.weak")
    trt = weak.trt
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(several_layers().SerializeToString())
    yield weak, trt, network
    del parser, network, builder


@pytest.mark.parametrize("name", PARSED)
def test_every_layer_of_a_node_is_told_and_no_other(real, name):
    weak, trt, network = real
    given = Network(network)
    weak.tell(given, Told({name: "FP32"}, frozenset({name})))
    assert [one.type.name for one in given.told() if one.metadata] == PARSED[name]
    assert all(one.precision == trt.DataType.FLOAT for one in given.told())
    assert all(one.types == {0: trt.DataType.FLOAT} for one in given.told())
    others = {one.type.name for one in given.told() if not one.metadata}
    assert others <= {"SHUFFLE", "UNSQUEEZE", "SQUEEZE"}


def test_a_layer_without_a_node_is_told_what_all_its_readers_are_told(real):
    """The parser brings LogSoftmax's result, which two nodes read, and a factor into shape by layers of its own."""
    weak, _, network = real

    def nameless(*names):
        given = Network(network)
        weak.tell(given, Told(dict.fromkeys(names, "FP32"), frozenset(names)))
        return [one.name.rstrip("_0123456789") for one in given.told() if not one.metadata]

    assert nameless("peak", "scaled") == ["ONNXTRT_ShapeShuffle", "ONNXTRT_Broadcast"]
    assert nameless("scaled") == ["ONNXTRT_Broadcast"]
    assert nameless("log", "peak") == []


def test_bf16_is_another_type(real):
    weak, trt, network = real
    given = Network(network)
    weak.tell(given, Told({"gelu": "BF16", "mish": "FP32"}, frozenset({"gelu", "mish"})))
    found = {one.metadata: (one.precision, one.types[0]) for one in given.told()}
    assert found["[ONNX Layer: gelu]"] == (trt.DataType.BF16,) * 2
    assert found["[ONNX Layer: mish]"] == (trt.DataType.FLOAT,) * 2


def test_a_comparison_computes_in_fp32_and_its_booleans_stay(real):
    weak, trt, network = real
    given = Network(network)
    weak.tell(given, Told({"greater": "FP32"}, frozenset({"greater"})))
    (one,) = [layer for layer in given.told() if layer.metadata == "[ONNX Layer: greater]"]
    assert (one.precision, one.types) == (trt.DataType.FLOAT, {})


def test_without_metadata_the_name_decides(real):
    weak, _, network = real
    given = Network(network, metadata="")
    weak.tell(given, Told({"gelu": "FP32"}, frozenset({"gelu"})))
    assert [one.name for one in given.told()] == ["gelu"]


@pytest.mark.parametrize(
    ("pins", "says"),
    [
        (["gelu", "not there"], "without a layer for 'not there', so the pin cannot be proven"),
        (["shape"], "without a layer for 'shape'"),  # it has layers, of integers
        ([f"n{index}" for index in range(6)], "'n0', 'n1', 'n2', 'n3' and 2 more"),
    ],
)
def test_a_pin_that_no_layer_can_be_told_of_is_an_error(real, pins, says):
    weak, _, network = real
    with pytest.raises(BuildError) as caught:
        weak.tell(Network(network), Told(dict.fromkeys(pins, "FP32"), frozenset(pins)))
    assert says in caught.value.message
    assert "--typing strong" in caught.value.fix


def test_what_need_not_be_found_is_no_error(real):
    weak, _, network = real
    given = Network(network)
    weak.tell(given, Told({"gone": "FP32"}, frozenset()))
    assert given.told() == []


@pytest.mark.parametrize("refuses", ["precision", "output", "remembering"])
def test_a_layer_that_does_not_take_its_precision_is_an_error(real, refuses):
    """TensorRT logs the refusal; the bindings raise nothing (seen on TensorRT-RTX 1.4)."""
    weak, _, network = real
    with pytest.raises(BuildError, match="does not take FLOAT as the precision of its layer 'gelu'"):
        weak.tell(Network(network, refuses=[refuses]), Told({"gelu": "FP32"}, frozenset({"gelu"})))


class Config:
    """A builder's config that remembers its flags."""

    def __init__(self):
        self.flags = []

    def set_flag(self, flag):
        self.flags.append(flag)


def flags(*names):
    return type("BuilderFlag", (), {name: name.lower() for name in names})


@pytest.mark.parametrize(("precision", "more"), [("FP32", []), ("BF16", ["bf16"])])
def test_fp16_is_allowed_and_what_is_told_is_an_order(real, monkeypatch, precision, more):
    weak, trt, _ = real
    monkeypatch.setattr(trt, "BuilderFlag", flags("FP16", "OBEY_PRECISION_CONSTRAINTS", "BF16"))
    config = Config()
    weak.set_flags(config, Told({"gelu": precision}, frozenset({"gelu"})))
    assert config.flags == ["fp16", "obey_precision_constraints", *more]


def test_a_version_without_bf16_says_so(real, monkeypatch):
    weak, trt, _ = real
    monkeypatch.setattr(trt, "BuilderFlag", flags("FP16", "OBEY_PRECISION_CONSTRAINTS"))
    with pytest.raises(ConfigError, match="has no BF16"):
        weak.set_flags(Config(), Told({"gelu": "BF16"}))
    weak.set_flags(Config(), Told({"gelu": "FP32"}))


@pytest.mark.parametrize("lacks", ["FP16", "OBEY_PRECISION_CONSTRAINTS", "precision"])
def test_weak_typing_takes_the_flags_and_precisions_of_layers(real, monkeypatch, lacks):
    """TensorRT 11 has neither; each of them alone would not do."""
    weak, trt, _ = real
    names = {"FP16", "OBEY_PRECISION_CONSTRAINTS"} - {lacks}
    monkeypatch.setattr(trt, "BuilderFlag", flags(*names))
    monkeypatch.setattr(trt, "ILayer", type("ILayer", (), {} if lacks == "precision" else {"precision": None}))
    with pytest.raises(ConfigError, match="has no weak typing"):
        weak.new_network(None)


@pytest.mark.parametrize(("explicit", "expected"), [(0, 1), (3, 8), (None, 0)])
def test_the_network_is_of_an_explicit_batch_where_that_has_to_be_said(real, monkeypatch, explicit, expected):
    """8.6 needs the flag, whose number says which bit it is; a version without it has no other kind."""
    weak, trt, _ = real
    kinds = {} if explicit is None else {"EXPLICIT_BATCH": explicit}
    monkeypatch.setattr(trt, "BuilderFlag", flags("FP16", "OBEY_PRECISION_CONSTRAINTS"))
    monkeypatch.setattr(trt, "ILayer", type("ILayer", (), {"precision": None}))
    monkeypatch.setattr(trt, "NetworkDefinitionCreationFlag", type("Flag", (), kinds))
    builder = type("Builder", (), {"create_network": staticmethod(lambda made: made)})
    assert weak.new_network(builder) == expected


# ------------------------------------------------------------------------------------------ where there is none


def test_tensorrt_rtx_is_refused_before_anything_is_done():
    with pytest.raises(ConfigError, match="TensorRT-RTX has no weak typing") as caught:
        BuildSettings(weakly_typed=True)
    assert "--typing strong" in caught.value.fix
    assert BuildSettings(tensorrt=True, weakly_typed=True).stated() == {"tensorrt": True, "weakly_typed": True}


@needs_rtx
def test_bindings_without_weak_typing_are_refused_in_the_building_process(tmp_path):
    """TensorRT-RTX 1.7 has the classes of TensorRT 11, and 1.4 those of 10, whose precisions it takes from nobody."""
    path = tmp_path / "m.onnx"
    path.write_bytes(several_layers().SerializeToString())
    request = {
        "typed": str(path),
        "out": str(tmp_path / "m.trt"),
        "partial": str(tmp_path / "m.part"),
        "profiles": [],
        "settings": BuildSettings(tensorrt=True, weakly_typed=True).stated(),
        "told": {"gelu": "FP32"},
        "pins": ["gelu"],
    }
    with pytest.raises((ConfigError, BuildError)) as caught:
        run(
            "trt_helper.builder.rtx_child",
            request,
            limits=Limits(60),
            on_event=lambda _: None,
            leftover=tmp_path / "m.part",
            environment={PACKAGE_VARIABLE: "tensorrt_rtx"},
        )
    assert "has no weak typing" in caught.value.message or "does not take FLOAT" in caught.value.message
    assert "--typing strong" in caught.value.fix
    assert not Path(request["partial"]).exists()
