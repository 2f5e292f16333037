"""Models and samples that are not what they should be: two lines, status 3, nothing written."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from support.command_line import clean, ok, refused, run_in_process, save_input, saved, two_lines
from support.onnx_parts import constant, model, node, value

from trt_helper.errors import InputError, ModelError
from trt_helper.inputs.samples import load_samples
from trt_helper.onnx_model.graph import read_graph
from trt_helper.onnx_model.load import load

SOUND = clean().SerializeToString()
ONE = np.ones((2, 4), np.float32)


pytestmark = pytest.mark.usefixtures("own_folder")


# ----------------------------------------------------------------------------------------------- models


@pytest.mark.parametrize("command", ["locate", "inspect", "compare", "convert"])
def test_a_model_that_is_missing_is_named(command):
    refused(command, "no/such.onnx", says="no/such.onnx does not exist", fix="path of an .onnx file")


@pytest.mark.parametrize("command", ["locate", "inspect", "compare", "convert"])
def test_a_folder_is_no_model(command):
    Path("model.onnx").mkdir()
    refused(command, "model.onnx", says="model.onnx is a folder, not a file")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "m.onnx is empty"),
        (SOUND[: len(SOUND) // 2], "m.onnx is not an ONNX model, or it is truncated"),
        (np.random.default_rng(0).bytes(999), "m.onnx is not an ONNX model, or it is truncated (999 bytes)"),
        (b"# a text\n" * 20, "m.onnx is not an ONNX model"),
        (onnx.ModelProto().SerializeToString() or b"\x08\x09", "m.onnx holds no ONNX graph"),
    ],
    ids=["empty", "truncated", "random", "text", "no graph"],
)
def test_a_file_that_is_no_model_is_refused(content, says):
    Path("m.onnx").write_bytes(content)
    for command in ("locate", "inspect", "convert"):
        refused(command, "m.onnx", says=says, fix="export the model again")


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, len(SOUND) - 1), st.integers(0, 255))
@example(0, 0)
def test_a_model_with_one_wrong_byte_loads_or_is_a_model_error(position, byte):
    broken = bytearray(SOUND)
    broken[position] = byte
    Path("m.onnx").write_bytes(broken)
    try:
        graph = read_graph(load(Path("m.onnx")))
    except ModelError:
        return
    assert graph.layers


def relus(*edges, inputs=("x",), outputs=("y",), op="Relu", **more):
    """A model of one-input layers, written as (from, to)."""
    nodes = [node(op, [a], [b], f"layer{i}", **more) for i, (a, b) in enumerate(edges)]
    return model(nodes, [value(n, [2, 4]) for n in inputs], [value(n, [2, 4]) for n in outputs], domains=("my.own",))


@pytest.mark.parametrize(
    ("proto", "says"),
    [
        (relus(("b", "a"), ("a", "b"), ("x", "y")), "the graph has a cycle"),
        (relus(("ghost", "y")), "node 'layer0' reads 'ghost', which nothing produces"),
        (relus(("x", "y"), outputs=("z",)), "nothing produces the output 'z'"),
        (relus(("x", "y"), outputs=()), "the graph has no outputs"),
        (relus(("x", "y"), ("x", "y")), "is not a sound ONNX graph"),
        (relus(("x", "y"), op="Frobnicate"), "every layer depends on Frobnicate, a custom operator"),
        (relus(("x", "y"), op="Foo", domain="my.own"), "every layer depends on Foo, a custom operator"),
    ],
    ids=["cycle", "dangling input", "dangling output", "no outputs", "made twice", "unknown op", "custom domain"],
)
def test_an_unsound_graph_is_refused_with_the_node_or_tensor_that_is_wrong(proto, says):
    saved(proto)
    for command in ("locate", "inspect", "convert"):
        refused(command, "model.onnx", says=says, fix="export the")


def test_a_quantised_model_is_refused():
    scale, zero = constant("s", np.float32(0.1)), constant("z", np.int8(0))
    pair = [node("QuantizeLinear", ["x", "s", "z"], ["q"], "q"), node("DequantizeLinear", ["q", "s", "z"], ["y"], "d")]
    saved(model(pair, [value("x", [4])], [value("y", [4])], [scale, zero]))
    refused("locate", "model.onnx", says="node 'q' is QuantizeLinear: the model is quantised already", fix="FP32 model")


def test_what_libraries_log_about_a_model_does_not_reach_the_user():
    """onnx_ir warns of a dangling input through `logging`, which prints what nobody handles."""
    saved(relus(("gh\x1b[31most", "y")))
    result = run_in_process("inspect", "model.onnx")
    assert result.status == 3
    assert two_lines(result.err)[0].startswith("model.onnx: node 'layer0' reads 'gh\\x1b[31most'")


def external(**changes):
    """Save a model whose weights lie in weights.bin; `changes` go into the reference to it."""
    proto = clean()
    onnx.save(proto, "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    proto = onnx.load("model.onnx", load_external_data=False)
    entries = {entry.key: entry for entry in proto.graph.initializer[0].external_data}
    for key, text in changes.items():
        entries[key].value = text
    Path("model.onnx").write_bytes(proto.SerializeToString())


def test_a_model_with_external_data_works():
    external()
    assert ok("locate", "model.onnx", "--json").json["verdict"] == "pass"


def test_missing_external_data_is_named():
    external()
    Path("weights.bin").unlink()
    refused("locate", "model.onnx", says="its external data 'weights.bin' is missing", fix=f"put it into {Path.cwd()}")


def test_truncated_external_data_is_refused():
    external()
    Path("weights.bin").write_bytes(Path("weights.bin").read_bytes()[:-1])
    refused("locate", "model.onnx", says="its external data 'weights.bin' is truncated")


@pytest.mark.parametrize("place", ["../outside.bin", "/etc/hostname", "a/../../outside.bin"])
def test_external_data_outside_the_models_folder_is_refused(place):
    external(location=place)
    Path("../outside.bin").write_bytes(bytes(64))
    refused("locate", "model.onnx", says=f"point outside the model's folder: '{place}'", fix="do not trust this file")


def test_external_data_of_a_constant_node_must_not_lie_outside_either():
    proto = clean()
    tensor = onnx.TensorProto(name="k", data_type=onnx.TensorProto.FLOAT, dims=[16], raw_data=bytes(64))
    onnx.external_data_helper.set_external_data(tensor, "../outside.bin", offset=0, length=64)
    tensor.ClearField("raw_data")
    proto.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["k"], name="constant", value=tensor))
    Path("model.onnx").write_bytes(proto.SerializeToString())
    Path("../outside.bin").write_bytes(bytes(64))
    refused("locate", "model.onnx", says="point outside the model's folder: '../outside.bin'", fix="do not trust")


def test_external_data_behind_a_link_out_of_the_folder_is_refused():
    external()
    Path("weights.bin").rename("../outside.bin")
    Path("weights.bin").symlink_to("../outside.bin")
    refused("locate", "model.onnx", says="point outside the model's folder: 'weights.bin'")


def test_a_graph_without_a_name_is_read_and_built():
    proto = clean(batch=2)
    proto.graph.name = ""
    saved(proto)
    ok("convert", "model.onnx", "--no-engine", "--typed-onnx", "typed.onnx")
    onnx.checker.check_model("typed.onnx", full_check=True)


def test_wrong_shapes_in_a_file_are_the_files_fault():
    saved(model([node("Exp", ["x"], ["y"], "exp")], [value("x", [1, 3])], [value("y", [1, 4])]))
    refused(
        *("convert", "model.onnx", "--no-engine", "--typed-onnx", "typed.onnx"),
        says="model.onnx is not valid ONNX: (op_type:Exp, node name: exp): Inferred shape and existing shape differ",
        fix="export the model again",
    )


def test_inputs_that_are_no_tensors_are_refused():
    sequence = helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, [2])
    saved(
        model(
            [node("SequenceAt", ["x", "i"], ["y"], "at")], [sequence], [value("y", [2])], [constant("i", np.int64(0))]
        )
    )
    refused(
        *("locate", "model.onnx"),
        says="the input 'x' is a sequence of tensors, and TensorRT has only tensors of numbers",
        fix="export the model without it",
    )


def test_text_cannot_be_made_up():
    text = TensorProto.STRING
    saved(model([node("Identity", ["x"], ["y"], "same")], [value("x", [2], text)], [value("y", [2], text)]))
    refused("locate", "model.onnx", says="the input 'x' is a tensor of strings", fix="export the model without it")


def test_inputs_in_double_precision_are_made_up_and_judged():
    double = TensorProto.DOUBLE
    saved(model([node("Neg", ["x"], ["y"], "neg")], [value("x", [2], double)], [value("y", [2], double)]))
    assert ok("locate", "model.onnx", "--json").json["fp32_layers"] == []


def test_half_inputs_are_rounded_before_anything_is_judged():
    """The reference takes halves, so the emulator must start from the same halves: a third is none."""
    half = TensorProto.FLOAT16
    third = [constant("third", np.float16(1 / 3))]
    saved(model([node("Sub", ["x", "third"], ["y"], "sub")], [value("x", [1], half)], [value("y", [1], half)], third))
    save_input("x.npz", x=np.float32([1 / 3]))
    result = ok("locate", "model.onnx", "-i", "x.npz", "--atol", "0", "--rtol", "0", "--json").json
    assert result["fp32_layers"] == []
    assert result["before"]["y"]["max"] == 0


# ---------------------------------------------------------------------------------------------- samples


def npz(name, **arrays):
    saved(clean())
    return save_input(name, **arrays)


@pytest.mark.parametrize(
    ("arrays", "says", "fix"),
    [
        ({"xx": ONE}, "s.npz has 'xx', which is no input of the model", "did you mean 'x'? its inputs: x"),
        ({"x": ONE, "pixels": ONE}, "s.npz has 'pixels', which is no input", "its inputs: x"),
        ({}, "s.npz lacks the input 'x'", "its keys must be: x"),
        ({"x": ONE[:, :3]}, "input 'x' has shape [2, 3], the model wants [b, 4]", "reshape it"),
        ({"x": ONE[0]}, "input 'x' has shape [4], the model wants [b, 4]", "batch dimension included"),
        ({"x": ONE[:0]}, "every output for s.npz is empty", "leave this sample out"),
        ({"x": ONE.astype(np.int64)}, "input 'x' is int64, the model wants float32", "convert it"),
        ({"x": np.array(["text"])}, "input 'x' is <U4, the model wants float32", "convert it"),
        ({"x": np.float32([[1, 2, 3, np.nan]])}, "input 'x' holds nan at [0, 3]", "finite numbers"),
        ({"x": np.float32([[1, np.inf, 3, 4]])}, "input 'x' holds inf at [0, 1]", "finite numbers"),
        ({"x": np.float64([[1, 1e300, 3, 4]])}, "input 'x' holds 1e+300 at [0, 1]", "range of the input's type"),
        ({"x": np.array([[{}]], object)}, "s.npz is not a sound .npz file: Object arrays cannot be loaded", "savez"),
    ],
)
def test_samples_that_do_not_fit_are_refused_with_the_array_that_is_wrong(arrays, says, fix):
    npz("s.npz", **arrays)
    refused("locate", "model.onnx", "-i", "s.npz", says=says, fix=fix)


class Trap:
    """Writes a file when it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("sprung").absolute(),)


def test_pickles_are_never_loaded():
    for name in ("array.npz", "file.npz"):
        npz(name, x=np.array([Trap()], object))
        if name == "file.npz":
            Path(name).write_bytes(pickle.dumps(Trap()))
        refused("locate", "model.onnx", "-i", name, says=f"{name} is not a")
    assert not Path("sprung").exists()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda _: b"", "s.npz is not an .npz file, or it is truncated (0 bytes)"),
        (lambda _: b"not a zip", "s.npz is not an .npz file, or it is truncated (9 bytes)"),
        (lambda data: data[: len(data) // 2], "s.npz is not an .npz file, or it is truncated"),
        (lambda data: data.replace(b"NUMPY", b"NUNPY"), "s.npz is not a sound .npz file"),
    ],
    ids=["empty", "text", "truncated", "no array inside"],
)
def test_an_npz_file_that_is_none_is_refused(spoil, says):
    file = npz("s.npz", x=ONE)
    file.write_bytes(spoil(file.read_bytes()))
    refused("locate", "model.onnx", "-i", "s.npz", says=says, fix="numpy.savez(path, INPUT_NAME=array)")


def test_a_single_array_under_the_name_of_an_npz_is_refused():
    with npz("s.npz", x=ONE).open("wb") as stream:
        np.save(stream, ONE)
    refused("locate", "model.onnx", "-i", "s.npz", says="s.npz is not an .npz file", fix="INPUT_NAME=array")


def test_an_npz_that_holds_no_arrays_is_refused():
    npz("s.npz", x=ONE)
    with zipfile.ZipFile("s.npz", "w") as archive:
        archive.writestr("x", "a text")
    refused("locate", "model.onnx", "-i", "s.npz", says="input 'x' is |S6, the model wants float32")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_an_npz_with_one_wrong_byte_is_read_or_is_an_input_error(data):
    """Zip, inflate and numpy's header each fail in their own way."""
    np.savez_compressed("s.npz", x=np.arange(8, dtype=np.float32).reshape(2, 4))
    content = bytearray(Path("s.npz").read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    Path("s.npz").write_bytes(content)
    graph = read_graph(load(saved(clean())))
    try:
        (sample,) = load_samples(graph, [Path("s.npz")])
    except InputError:
        return
    assert sample.feed["x"].shape[1] == 4


def test_a_folder_without_samples_and_a_missing_one_are_refused():
    npz("s.npz", x=ONE)
    Path("folder").mkdir()
    refused(
        "locate", "model.onnx", "-i", "folder", says="folder holds no .npz file", fix="its keys are the input names"
    )
    refused("locate", "model.onnx", "-i", "nowhere", says="nowhere does not exist", fix="--inputs takes .npz files")


@pytest.mark.parametrize("text", ['{"a":', "[1, 2]", "5", '[{"x": {"array": "AAAA", "polygraphy_class": "ndarray"}}]'])
def test_json_that_does_not_hold_saved_inputs_is_refused(text):
    npz("s.npz", x=ONE)
    Path("s.json").write_text(text)
    refused("locate", "model.onnx", "-i", "s.json", says="s.json")


def test_dynamic_sizes_that_contradict_each_other_are_refused():
    both = [value("x", ["b", 4]), value("z", ["b", 4])]
    saved(model([node("Add", ["x", "z"], ["y"], "add")], both, [value("y", ["b", 4])]))
    save_input("s.npz", x=ONE, z=np.ones((3, 4), np.float32))
    refused("locate", "model.onnx", "-i", "s.npz", says="s.npz: 'b' is 2 in 'x' and 3 in 'z'", fix="dimensions agree")
    shapes = ("--shapes", "x:2x4", "--shapes", "z:3x4")
    refused("locate", "model.onnx", *shapes, says="'b' is 2 in 'x' and 3 in 'z'")


# --------------------------------------------------------------------------------- data loader scripts


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = 1", "feed.py has no function 'load_data'"),
        ("def load_data():\n    return []", "'load_data' of feed.py yields no sample"),
        ("def load_data():\n    return None", "feed.py raises TypeError: 'NoneType' object is not iterable"),
        ("def load_data(n):\n    yield n", "feed.py raises TypeError: load_data() missing 1 required"),
        ("def load_data():\n    yield None", "feed.py[0] is no dictionary of arrays by input name, but None"),
        ("def load_data():\n    yield {1: 2}", "feed.py[0] is no dictionary of arrays by input name"),
        ("def load_data():\n    yield {'x': [[1, 2], [3]]}", "feed.py raises ValueError"),
        ("def load_data():\n    yield {'x': 1.5}", "feed.py[0]: input 'x' has shape []"),
        ("def load_data():\n    pass\n    raise KeyError('no\\nkey')", "feed.py, line 3 raises KeyError: 'no\\nkey'"),
        ("import no_such_module", "feed.py, line 1 raises ModuleNotFoundError"),
        ("def (", "feed.py raises SyntaxError"),
        ("import sys\nsys.exit(0)", "feed.py, line 2 raises SystemExit"),
    ],
)
def test_a_loader_script_that_fails_is_the_users_own_error(text, says):
    saved(clean())
    Path("feed.py").write_text(text)
    refused("locate", "model.onnx", "--data-loader-script", "feed.py", says=says)


def test_a_loader_script_or_function_that_is_missing_is_named():
    saved(clean())
    refused(
        "locate", "model.onnx", "--data-loader-script", "no.py", says="no.py does not exist", fix="FILE.py:function"
    )
    Path("feed.py").write_text("load_data = 5")
    refused("locate", "model.onnx", "--data-loader-script", "feed.py:load", says="feed.py has no function 'load'")
