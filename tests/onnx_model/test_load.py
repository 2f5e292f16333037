"""Reading a model: what is accepted untouched, what is refused and with which words."""

from __future__ import annotations

import hashlib

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from support.model_cases import MODELS
from support.models import parsed
from support.onnx_parts import node, value
from support.refused_models import REFUSED
from support.special_models import external_model, save_external

from trt_helper.emulator.emulator import Emulator
from trt_helper.errors import ModelError
from trt_helper.onnx_model.graph import read_graph
from trt_helper.onnx_model.load import load

SAYS = {
    "quantised": ("'quantise' is QuantizeLinear: the model is quantised already", "FP32 model"),
    "custom_domain": ("every layer depends on Swish, a custom operator", "standard operators"),
    "cycle": ("the graph has a cycle", "export the model again"),
    "dangling_input": ("node 'sum' reads 'ghost', which nothing produces", "export the model again"),
    "dangling_output": ("nothing produces the output 'ghost'", "export the model again"),
    "no_outputs": ("the graph has no outputs", "export the model again"),
    "unknown_operator": ("every layer depends on Frobnicate, a custom operator", "standard operators"),
    "all_constant": ("every output is a constant", "nothing to decide"),
    "sequence_left": ("'pieces' is SplitToSequence: TensorRT has no sequences", "without lists"),
    "unfoldable": ("'pieces' is SplitToSequence", "without lists"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_judged_is_refused_with_the_reason_and_what_to_do(tmp_path, name):
    path = tmp_path / "model.onnx"
    path.write_bytes(REFUSED[name]().SerializeToString())
    with pytest.raises(ModelError) as error:
        read_graph(load(path))
    what, fix = SAYS[name]
    assert what in error.value.message
    assert fix in error.value.fix
    assert error.value.exit_status == 3
    assert "\n" not in error.value.message


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"\x00\xff" * 50, r"not an ONNX model, or it is truncated \(100 bytes\)"),
        (b"hello, world", "not an ONNX model"),
        (onnx.ModelProto(ir_version=8).SerializeToString(), "holds no ONNX graph"),
        (external_model().SerializeToString()[:-100], "truncated"),
    ],
)
def test_a_file_that_is_no_model_is_refused(tmp_path, content, says):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=says) as error:
        load(path)
    assert str(path) in error.value.message


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path):
    with pytest.raises(ModelError, match="does not exist"):
        load(tmp_path / "none.onnx")
    with pytest.raises(ModelError, match="is a folder"):
        load(tmp_path)


@pytest.mark.parametrize("name", MODELS)
def test_reading_a_model_leaves_its_file_alone(model_case, name):
    before = MODELS[name]().model.SerializeToString()
    assert model_case(name).graph.source.path.read_bytes() == before
    assert model_case(name).graph.source.sha256 == hashlib.sha256(before).hexdigest()


def test_nodes_in_another_order_are_sorted(model_case):
    assert [layer.name for layer in model_case("unsorted").graph.layers] == ["one", "two", "three"]


# ---------------------------------------------------------------------------------------- external data


@pytest.mark.parametrize("files", [("w.bin", "w.bin"), ("a.bin", "b.bin"), ("deep/a.bin", "b.bin")])
def test_external_data_beside_the_model_is_read_and_part_of_its_digest(tmp_path, files):
    path = save_external(tmp_path, files=files)
    model = load(path)
    names = sorted(set(files))
    data = b"".join(file.read_bytes() for file in (path, *(tmp_path / name for name in names)))
    assert model.sha256 == hashlib.sha256(data).hexdigest()
    with (tmp_path / files[1]).open("r+b") as stream:
        stream.write(b"\x01")
    assert load(path).sha256 != model.sha256


def escape_upwards(folder):
    path = save_external(folder)
    (folder / "weights.bin").rename(folder.parent / "weights.bin")
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        next(entry for entry in tensor.external_data if entry.key == "location").value = "../weights.bin"
    path.write_bytes(model.SerializeToString())
    return path


def escape_by_link(folder):
    path = save_external(folder)
    (folder / "weights.bin").rename(folder.parent / "weights.bin")
    (folder / "weights.bin").symlink_to(folder.parent / "weights.bin")
    return path


@pytest.mark.parametrize("escape", [escape_upwards, escape_by_link])
def test_external_data_outside_the_folder_is_refused_though_it_is_there(tmp_path, escape):
    folder = tmp_path / "model"
    folder.mkdir()
    with pytest.raises(ModelError, match="outside the model's folder") as error:
        load(escape(folder))
    assert "do not trust" in error.value.fix


def test_external_data_that_is_missing_or_short_is_refused(tmp_path):
    path = save_external(tmp_path)
    data = (tmp_path / "weights.bin").read_bytes()
    (tmp_path / "weights.bin").write_bytes(data[:-1])
    with pytest.raises(ModelError, match=r"'weights\.bin' is truncated"):
        load(path)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelError, match=r"'weights\.bin' is missing"):
        load(path)


def test_a_dangling_read_inside_a_subgraph_is_refused(tmp_path):
    model = parsed(
        """g (float[2] x, bool c) => (float[2] y) {
          [choose] y = If (c) <then_branch = t () => (float[2] a) { [inner] a = Neg(ghost) },
                               else_branch = e () => (float[2] b) { b = Identity(x) }>
        }"""
    )
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="'inner' reads 'ghost'"):
        load(path)


# ----------------------------------------------------------------------------- what a stranger's file may not do


def outside(name="w", location="../secret.bin"):
    """A tensor whose values are in a file outside the model's folder."""
    tensor = onnx.TensorProto(name=name, data_type=onnx.TensorProto.FLOAT, dims=[2], raw_data=b"")
    onnx.external_data_helper.set_external_data(tensor, location, offset=0, length=8)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    return tensor


def around(*, nodes=(), functions=(), shape=(2,), initializers=(), sparse=()):
    """A model that is sound but for what is put into it. Without `shape` the checker has a harmless complaint."""
    x, y = value("x", [2]), value("y", shape)
    graph = helper.make_graph([node("Tanh", ["x"], ["y"], "act"), *nodes], "g", [x], [y], list(initializers))
    graph.sparse_initializer.extend(sparse)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9, functions=list(functions))


def function(name, *nodes):
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    return helper.make_function("own", name, ["a"], ["b"], nodes, opsets)


def in_a_function():
    body = [node("Constant", [], ["c"], value=outside()), node("Add", ["a", "c"], ["b"])]
    return around(functions=[function("f", *body)], nodes=[node("f", ["x"], ["z"], "call", domain="own")])


def in_a_sparse_tensor():
    sparse = onnx.SparseTensorProto(dims=[4], values=outside("s"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.arange(2), "i"))
    return around(sparse=[sparse])


def in_a_list_of_tensors():
    attribute = onnx.AttributeProto(name="many", type=onnx.AttributeProto.TENSORS, tensors=[outside()])
    strange = node("Strange", ["x"], ["z"], "strange", domain="own")
    strange.attribute.append(attribute)
    return around(nodes=[strange])


def in_training():
    model = around()
    model.training_info.add().initialization.initializer.append(outside())
    return model


@pytest.mark.parametrize("make", [in_a_function, in_a_sparse_tensor, in_a_list_of_tensors, in_training])
def test_weights_outside_the_folder_are_refused_wherever_they_hang(tmp_path, make):
    (tmp_path / "secret.bin").write_bytes(b"\0" * 8)
    (tmp_path / "model").mkdir()
    path = tmp_path / "model" / "model.onnx"
    path.write_bytes(make().SerializeToString())
    with pytest.raises(ModelError, match="outside the model's folder"):
        load(path)


def test_weights_in_a_function_are_read_from_the_models_folder_and_no_other(tmp_path, monkeypatch):
    body = [node("Constant", [], ["c"], value=outside(location="c.bin")), node("Add", ["a", "c"], ["b"])]
    model = around(functions=[function("f", *body)], nodes=[node("f", ["x"], ["z"], "call", domain="own")])
    model.graph.output.append(value("z", [2]))
    path = tmp_path / "model" / "model.onnx"
    path.parent.mkdir()
    path.write_bytes(model.SerializeToString())
    (path.parent / "c.bin").write_bytes(np.float32([1, 2]).tobytes())
    (tmp_path / "c.bin").write_bytes(np.float32([7, 7]).tobytes())
    monkeypatch.chdir(tmp_path)
    graph = read_graph(load(path))
    found = Emulator(graph).reference({"x": np.zeros(2, np.float32)})
    assert found["z"].tolist() == [1, 2]


@pytest.mark.parametrize("shape", [(2,), None], ids=["sound", "an output without a shape"])
@pytest.mark.parametrize(
    ("functions", "says"),
    [
        ([function("f", node("f", ["a"], ["b"], domain="own"))], "'f' calls itself"),
        (
            [
                function("f", node("g", ["a"], ["b"], domain="own")),
                function("g", node("f", ["a"], ["b"], domain="own")),
            ],
            "calls itself",
        ),
    ],
    ids=["itself", "each other"],
)
def test_functions_without_an_end_are_refused(tmp_path, functions, says, shape):
    path = tmp_path / "model.onnx"
    path.write_bytes(around(functions=functions, shape=shape).SerializeToString())
    with pytest.raises(ModelError, match=says):
        load(path)


def short():
    return onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[4], raw_data=b"\0" * 8)


@pytest.mark.parametrize("shape", [(2,), None], ids=["sound", "an output without a shape"])
@pytest.mark.parametrize(
    "parts",
    [
        {"initializers": [short()]},
        {"nodes": [node("Constant", [], ["c"], "c", value=short())]},
        {"nodes": [node("Conv", ["x"], ["c"], "c", no_such_attribute=1)]},
        {"functions": [function("f", node("Conv", ["a"], ["b"], no_such_attribute=1))]},
    ],
    ids=["initializer", "constant", "node", "function"],
)
def test_a_harmless_complaint_hides_no_other(tmp_path, parts, shape):
    """onnx.checker stops at the first: an output without a shape once let all that follows through."""
    path = tmp_path / "model.onnx"
    path.write_bytes(around(**parts, shape=shape).SerializeToString())
    with pytest.raises(ModelError):
        load(path)


def test_an_output_without_a_shape_alone_is_no_obstacle(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(around(shape=None).SerializeToString())
    assert load(path)
