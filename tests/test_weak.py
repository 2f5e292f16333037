"""Weak typing: what a plan tells TensorRT, and how the parsed network is told.

No TensorRT that is weakly typed runs here. The networks are real ones, of TensorRT-RTX's ONNX parser; what TensorRT-RTX
1.7 lacks of ILayer is laid over its layers as NVIDIA documents it (TensorRT 10 Python API, Layer Base Classes).
"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from builder_models import FLOAT, model, needs_rtx, node, value, weights
from onnx import TensorProto, numpy_helper

from trt_helper.asked import asked_of
from trt_helper.builder import BuildSettings, Told
from trt_helper.builder.process import Limits, run
from trt_helper.builder.rtx import PACKAGE_VARIABLE
from trt_helper.cli import common
from trt_helper.convert import convert
from trt_helper.errors import BuildError, ConfigError, MachineError
from trt_helper.graph import read_graph
from trt_helper.model import load
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
    """conv -> reshape -> softmax -> mul, the shape arithmetic of the reshape beside it."""
    nodes = [
        node("Conv", ["x", "k"], ["a"], "conv", pads=[1, 1, 1, 1]),
        node("Reshape", ["a", "to"], ["b"], "reshape"),
        node("Softmax", ["b"], ["c"], "softmax", axis=-1),
        node("Mul", ["c", "c"], ["y"], "mul"),
    ]
    to = numpy_helper.from_array(np.array([1, -1], np.int64), "to")
    made = model(nodes, [value("x", [1, 3, 4, 4])], [value("y", [1, 48])], [weights("k", [3, 3, 3, 3]), to])
    path = tmp_path / "m.onnx"
    path.write_bytes(made.SerializeToString())
    return read_graph(load(path))


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
            self._precision, self.precision_is_set = wanted, True

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


@pytest.mark.parametrize("refuses", ["precision", "output"])
def test_a_layer_that_does_not_take_its_precision_is_an_error(real, refuses):
    """TensorRT logs the refusal; the bindings raise nothing (seen on TensorRT-RTX 1.4)."""
    weak, _, network = real
    with pytest.raises(BuildError, match="does not take FLOAT as the precision of its layer 'gelu'"):
        weak.tell(Network(network, refuses=[refuses]), Told({"gelu": "FP32"}, frozenset({"gelu"})))


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


# ------------------------------------------------------------------------------------------ the whole way

# A package `tensorrt` of TensorRT-RTX's parser and builder. ILayer takes precisions and writes them down; the flags of
# weak typing stand for one that changes nothing here, so that all of the engine is FP32.
STAND_IN = """
import tensorrt_rtx
from pathlib import Path
globals().update({name: value for name, value in vars(tensorrt_rtx).items() if not name.startswith("__")})
__version__ = "stand-in"
for name in ("FP16", "OBEY_PRECISION_CONSTRAINTS"):
    setattr(BuilderFlag, name, BuilderFlag.STRICT_NANS)
taken = {}
def take(layer, precision):
    taken[layer.name] = precision
    with Path(__file__).with_name("told.txt").open("a") as file:
        print(layer.metadata, precision.name, file=file)
ILayer.precision = property(lambda layer: taken.get(layer.name), take)
ILayer.precision_is_set = property(lambda layer: layer.name in taken)
ILayer.set_output_type = lambda layer, index, precision: None
ILayer.output_type_is_set = lambda layer, index: layer.name in taken
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    package = tmp_path / "packages" / "tensorrt"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(str(package.parent))
    return package / "told.txt"


def weakly(graph, pins, engine):
    settings = BuildSettings(tensorrt=True, weakly_typed=True)
    return convert(graph, graph.plan(pins), engine=engine, typed_onnx=None, profile={}, settings=settings)


@needs_rtx
def test_convert_tells_the_plan_and_looks_into_the_engine(graph, tmp_path, stand_in):
    found = weakly(graph, ["conv", "softmax", "mul"], tmp_path / "m.trt")
    told = {line.partition("] ")[::2] for line in stand_in.read_text().splitlines() if line[0] == "["}
    assert told == {(f"[ONNX Layer: {name}", "FLOAT") for name in ("conv", "reshape", "softmax", "mul")}
    assert [proof.state for proof in found.proofs] == ["honoured"] * 3
    record = json.loads((tmp_path / "m.trt.json").read_text())["engine"]
    assert record["settings"] == {"tensorrt": True, "weakly_typed": True}
    assert record["builder"] == "TensorRT stand-in (weakly typed)"


@needs_rtx
def test_an_engine_in_which_tensorrt_chose_no_fp16_is_an_error(graph, tmp_path, stand_in):
    with pytest.raises(
        BuildError, match=r"2 layers were to be FP16, and TensorRT stand-in .weakly typed. made all .* FP32"
    ):
        weakly(graph, ["softmax"], tmp_path / "m.trt")
    assert "softmax" in stand_in.read_text()
    assert not list(tmp_path.glob("*.trt*"))


# ------------------------------------------------------------------------------------------ on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("weakly", [False, True], ids=["strong", "weak"])
def test_tensorrt_builds_and_the_pins_are_proven(tmp_path, weakly):
    try:
        common.is_tensorrt("tensorrt")
    except MachineError as error:
        pytest.skip(error.message)
    size = 256
    nodes = [node("MatMul", ["x", "w0"], ["a"], "m0"), node("Relu", ["a"], ["b"], "r0")]
    nodes += [node("MatMul", ["b", "w1"], ["c"], "m1"), node("Relu", ["c"], ["d"], "r1")]
    nodes += [node("MatMul", ["d", "w2"], ["y"], "m2")]
    held = [weights(f"w{index}", [size, size]) for index in range(3)]
    path = tmp_path / "m.onnx"
    made = model(nodes, [value("x", [size, size], FLOAT)], [value("y", [size, size], FLOAT)], held)
    path.write_bytes(made.SerializeToString())
    graph = read_graph(load(path))
    settings = BuildSettings(tensorrt=True, weakly_typed=weakly)
    try:
        found = convert(
            graph, graph.plan(["m1", "r1"]), engine=tmp_path / "m.trt", typed_onnx=None, profile={}, settings=settings
        )
    except ConfigError as error:
        pytest.skip(error.message)  # TensorRT 11 has no weak typing, 8.6 no strong
    states = {proof.layer: proof.state for proof in found.proofs}
    assert states["m1"] == "honoured"
    assert found.engine.has_narrow
    assert ("(weakly typed)" in found.engine.builder) is weakly
