"""Samples from files, folders, scripts and random numbers: their order, their types, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from support.model_cases import MODELS, save_case
from support.models import Case, f32, i64, parsed

from trt_helper.errors import InputError
from trt_helper.inputs.made_up import random_sample
from trt_helper.inputs.references import references
from trt_helper.inputs.sample import element_count
from trt_helper.inputs.samples import load_samples
from trt_helper.onnx_model.graph import load_graph


@pytest.fixture
def dynamic(tmp_path):
    """Two inputs that share a batch size, and integers."""
    model = parsed(
        """g (float[N,3] a, float[N,K] b, int64[2] ids, bool[N] keep) => (float[N,3] y) {
          [exp] y = Exp(a)
        }"""
    )
    (tmp_path / "model").mkdir()
    return save_case(Case("dynamic", model, {}), tmp_path / "model").graph


def good(batch: int = 2) -> dict[str, np.ndarray]:
    zeros = np.zeros((batch, 3), np.float32)
    return {"a": zeros, "b": np.ones((batch, 5), np.float32), "ids": i64(1, 2), "keep": np.ones(batch, bool)}


def save(path, **arrays):
    np.savez(path, **arrays)
    return path


# -------------------------------------------------------------------------------------------- where from


def test_files_come_in_the_order_given_and_folders_in_the_order_of_names(tmp_path, dynamic):
    (tmp_path / "folder").mkdir()
    for name in ("2", "10", "1"):
        save(tmp_path / "folder" / f"{name}.npz", **good())
    (tmp_path / "folder" / "notes.txt").write_text("ignored")
    last = save(tmp_path / "a.npz", **good())
    found = load_samples(dynamic, [tmp_path / "folder", last])
    names = [sample.source.rsplit("/", 1)[-1] for sample in found]
    assert names == ["1.npz", "10.npz", "2.npz", "a.npz"]


def test_arrays_arrive_unchanged_in_the_models_order_whatever_the_files_order(tmp_path, dynamic):
    given = good()
    (sample,) = load_samples(dynamic, [save(tmp_path / "s.npz", **dict(reversed(given.items())))])
    assert list(sample.feed) == ["a", "b", "ids", "keep"]
    for name, array in given.items():
        np.testing.assert_array_equal(sample.feed[name], array, strict=True)
    assert sample.shapes == {"a": (2, 3), "b": (2, 5), "ids": (2,), "keep": (2,)}
    assert element_count(sample) == 6 + 10 + 2 + 2


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ">f4"])
def test_other_float_types_become_fp32_in_memory_order(tmp_path, dynamic, dtype):
    feed = good() | {"a": np.asfortranarray(np.arange(6).reshape(2, 3)).astype(dtype)}
    (sample,) = load_samples(dynamic, [save(tmp_path / "s.npz", **feed)])
    assert sample.feed["a"].dtype == np.dtype("=f4")
    assert sample.feed["a"].flags.c_contiguous
    assert sample.feed["a"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_half_inputs_take_only_halves(model_case, tmp_path):
    """0.1 is no half: reference and emulator must see the same number."""
    graph = model_case("all_half").graph
    (sample,) = load_samples(graph, [save(tmp_path / "s.npz", x=np.full((2, 4), 0.1, np.float32))])
    assert sample.feed["x"].dtype == np.float32
    assert set(sample.feed["x"].ravel()) == {np.float32(np.float16(0.1))}
    made = random_sample(graph, {}).feed["x"]
    np.testing.assert_array_equal(made, made.astype(np.float16).astype(np.float32))


def test_inputs_saved_by_polygraphy_are_read(tmp_path, dynamic):
    polygraphy = pytest.importorskip("polygraphy.json", reason="pip install polygraphy to read its files")
    path = tmp_path / "inputs.json"
    polygraphy.save_json([good(2), good(3)], str(path))
    found = load_samples(dynamic, [path])
    assert [sample.shapes["a"] for sample in found] == [(2, 3), (3, 3)]
    assert [sample.source for sample in found] == [f"{path}[0]", f"{path}[1]"]
    np.testing.assert_array_equal(found[1].feed["b"], good(3)["b"])


@pytest.mark.parametrize("name", ["load_data", "mine"])
def test_a_loader_script_yields_samples(tmp_path, dynamic, name):
    script = tmp_path / "loader.py"
    script.write_text(
        f"""import numpy as np
def {name}():
    for size in (1, 4):
        yield {{"a": np.zeros((size, 3), np.float32), "b": np.zeros((size, 1), np.float32),
               "ids": [1, 2], "keep": np.zeros(size, bool)}}
"""
    )
    found = load_samples(dynamic, [], script=f"{script}" if name == "load_data" else f"{script}:{name}")
    assert [sample.shapes["a"][0] for sample in found] == [1, 4]


# ---------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("change", "says", "fix"),
    [
        ({"A": f32(1)}, "has 'A', which is no input", "its inputs: a, b, ids, keep"),
        ({"a": None}, "lacks the input 'a'", "a, b, ids, keep"),
        ({"a": np.zeros((2, 4), np.float32)}, r"shape \[2, 4\], the model wants \[N, 3\]", "reshape"),
        ({"a": np.zeros(3, np.float32)}, r"shape \[3\]", "reshape"),
        ({"a": np.array([[1, 2, np.nan]] * 2, np.float32)}, r"holds nan at \[0, 2\]", "finite"),
        ({"a": np.array([[1, 2, np.inf]] * 2, np.float32)}, r"holds inf at \[0, 2\]", "finite"),
        ({"ids": np.array([1, 2], np.int32)}, "'ids' is int32, the model wants int64", "convert"),
        ({"a": np.zeros((2, 3), np.int64)}, "'a' is int64, the model wants float32", "convert"),
        ({"b": np.zeros((3, 5), np.float32)}, "'N' is 2 in 'a' and 3 in 'b'", "agree"),
    ],
)
def test_a_sample_that_does_not_fit_is_refused(tmp_path, dynamic, change, says, fix):
    feed = {name: array for name, array in (good() | change).items() if array is not None}
    with pytest.raises(InputError, match=says) as error:
        load_samples(dynamic, [save(tmp_path / "s.npz", **feed)])
    assert fix in error.value.fix
    assert error.value.exit_status == 3


def test_json_that_polygraphy_did_not_write_is_refused(tmp_path, dynamic):
    (tmp_path / "s.json").write_text(json.dumps({"a": [1]}))
    with pytest.raises(InputError):
        load_samples(dynamic, [tmp_path / "s.json"])


# ------------------------------------------------------------------------------------------------ random


@pytest.mark.parametrize("name", MODELS)
def test_random_samples_fit_the_model_and_depend_on_the_seed_alone(model_case, name):
    graph = model_case(name).graph
    sizes = {value.name: (2,) for value in graph.inputs if name == "made_of_shapes" and value.name == "n"}
    first, again, other = (random_sample(graph, sizes, seed=seed).feed for seed in (0, 0, 1))
    for value in graph.inputs:
        array = first[value.name]
        assert array.dtype == value.dtype.numpy()
        assert all(
            size == wanted for size, wanted in zip(array.shape, value.shape, strict=True) if isinstance(wanted, int)
        )
        np.testing.assert_array_equal(array, again[value.name])
    assert any(array.dtype.kind == "f" and not np.array_equal(array, other[key]) for key, array in first.items()) or (
        not any(array.dtype.kind == "f" for array in first.values())
    )


def test_a_first_dimension_is_one_unless_a_shape_is_given_for_any_input_that_shares_it(dynamic):
    assert load_samples(dynamic, [])[0].shapes == {"a": (1, 3), "b": (1, 8), "ids": (2,), "keep": (1,)}
    (sample,) = load_samples(dynamic, [], shapes={"b": (4, 7)})
    assert sample.shapes == {"a": (4, 3), "b": (4, 7), "ids": (2,), "keep": (4,)}


def test_sizes_are_tried_until_the_model_runs(tmp_path):
    """Halved and doubled again, two branches meet for multiples of 4 alone; 32 rows and more go through the pool."""
    model = parsed(
        """g (float[n,3,H,W] x) => (float[n,3,a,b] y) {
          [half] p = AveragePool <kernel_shape=[4,4], strides=[4,4]> (x)
          [twice] u = Resize <mode="nearest"> (p, "", scales)
          [meet] y = Add(u, x)
        }""",
        scales=f32(1, 1, 4, 4),
    )
    graph = save_case(Case("branches", model, {}), tmp_path).graph
    assert load_samples(graph, [])[0].shapes == {"x": (1, 3, 64, 64)}


def test_without_a_size_that_works_shapes_are_named(tmp_path):
    model = parsed("g (float[n,m] x) => (float[n,5] y) { [product] y = MatMul(x, w) }", w=np.ones((7, 5), np.float32))
    graph = save_case(Case("seven", model, {}), tmp_path).graph
    with pytest.raises(InputError, match=r"\[n, m\] of input 'x' is dynamic") as error:
        load_samples(graph, [])
    assert error.value.fix == "give sizes: --shapes x:NxN"
    assert load_samples(graph, [], shapes={"x": (2, 7)})[0].shapes == {"x": (2, 7)}


def test_a_size_that_is_too_large_to_make_up_is_passed_over(tmp_path):
    """512 in each of three dynamic dimensions of five is more than a sample may have; 8 fits, and works."""
    model = parsed(
        "g (float[n,64,a,b,c] x) => (float[n,64,a,b,c] y) { [near] y = Mul(x, w) }", w=np.ones((8, 8, 8), np.float32)
    )
    graph = save_case(Case("five", model, {}), tmp_path).graph
    assert load_samples(graph, [])[0].shapes == {"x": (1, 64, 8, 8, 8)}


def test_a_sum_of_named_dimensions_is_their_sum(tmp_path):
    """As exporters of transformers write the length of a mask."""
    value = onnx.helper.make_tensor_value_info
    past, mask = value("past", 1, [1, "past"]), value("mask", 1, [1, "past + 2"])
    node = onnx.helper.make_node("Concat", ["past", "two"], ["y"], axis=1)
    last = onnx.helper.make_node("Add", ["y", "mask"], ["z"])
    two = onnx.numpy_helper.from_array(np.ones((1, 2), np.float32), "two")
    graph = onnx.helper.make_graph([node, last], "g", [past, mask], [value("z", 1, None)], [two])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    model.graph.output[0].type.tensor_type.shape.SetInParent()
    onnx.save(model, tmp_path / "sum.onnx")
    assert load_samples(load_graph(tmp_path / "sum.onnx"), [])[0].shapes == {"past": (1, 8), "mask": (1, 10)}


def test_made_up_values_are_in_the_range_that_the_first_layers_expect(tmp_path):
    model = parsed(
        """g (int64[2,9] ids, int64[2,9] types, float[1,500] pixels, float[1,500] root, uint8[300] bytes) =>
             (float[2,9,4] e, float[1,500] p, float[1,500] r, float[300] b) {
          [word] w = Gather(table, ids)
          [kind] k = Gather(kinds, types)
          [sum] e = Add(w, k)
          [scale] p = Div(pixels, range)
          [sqrt] r = Sqrt(root)
          [cast] b = Cast <to=1> (bytes)
        }""",
        table=np.ones((1000, 4), np.float32),
        kinds=np.ones((2, 4), np.float32),
        range=np.array(255, np.float32),
    )
    feed = load_samples(save_case(Case("ranges", model, {}), tmp_path).graph, [])[0].feed
    assert feed["ids"].max() > 100
    assert set(feed["types"].ravel()) == {0, 1}
    assert feed["pixels"].min() >= 0
    assert 200 < feed["pixels"].max() <= 255
    assert feed["root"].min() >= 0
    assert feed["bytes"].max() > 200


def test_an_input_may_be_empty_and_not_all_outputs(tmp_path):
    """The first step of a decoder has no past."""
    model = parsed(
        "g (float[1,p] past, float[1,3] x) => (float[1,q] y) { [join] j = Concat <axis=1> (past, x) [exp] y = Exp(j) }"
    )
    graph = save_case(Case("past", model, {}), tmp_path).graph
    samples = load_samples(graph, [save(tmp_path / "s.npz", past=np.zeros((1, 0), np.float32), x=np.ones((1, 3)))])
    assert references(graph, samples)[0]["y"].shape == (1, 3)
    alone = save_case(Case("alone", parsed("g (float[n] x) => (float[n] y) { [exp] y = Exp(x) }"), {}), tmp_path).graph
    nothing = load_samples(alone, [save(tmp_path / "n.npz", x=np.zeros(0, np.float32))])
    with pytest.raises(InputError, match="is empty: nothing can be judged"):
        references(alone, nothing)


def test_minus_infinity_may_be_in_a_mask(tmp_path):
    model = parsed("g (float[1,3] x) => (float[1,3] y) { [soft] y = Softmax(x) }")
    graph = save_case(Case("mask", model, {}), tmp_path).graph
    (sample,) = load_samples(graph, [save(tmp_path / "s.npz", x=np.array([[0, -np.inf, 1]], np.float32))])
    assert np.isneginf(sample.feed["x"]).sum() == 1


def test_complex_numbers_cannot_be_made_up(tmp_path):
    model = parsed("g (complex64[2] s, float[2] x) => (float[2] y) { [exp] y = Exp(x) }")
    with pytest.raises(InputError, match="'s' holds"):
        load_samples(save_case(Case("complex", model, {}), tmp_path).graph, [])
