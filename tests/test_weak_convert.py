"""`convert --typing weak` as a whole, with a package that stands in for TensorRT 10."""

from __future__ import annotations

import json

import pytest
from builder_models import FLOAT, model, needs_rtx, node, reshaped, value, weights

from trt_helper.builder import BuildSettings
from trt_helper.cli import common
from trt_helper.convert import convert
from trt_helper.errors import BuildError, ConfigError, MachineError
from trt_helper.graph import read_graph
from trt_helper.model import load

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
def graph(tmp_path):
    return reshaped(tmp_path)


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
