"""Shapes from the command line, from samples and from a config; profiles for TensorRT."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.command_line import clean, saved
from support.model_cases import save_case
from support.models import Case, parsed
from support.onnx_parts import constant, model, node, value

from trt_helper.errors import InputError
from trt_helper.inputs.made_up import random_sample
from trt_helper.inputs.sample import Sample
from trt_helper.inputs.shapes import (
    exported_ranges,
    frozen,
    parse_shapes,
    profile,
    ranges_of,
    recorded_ranges,
    widened,
)
from trt_helper.onnx_model.graph import PROVENANCE, read_graph
from trt_helper.onnx_model.load import load

ONE = ((1, 4),) * 3


@pytest.fixture
def graph(tmp_path, monkeypatch):
    """`x` is [b, 4]."""
    monkeypatch.chdir(tmp_path)
    return read_graph(load(saved(clean())))


@pytest.fixture
def pair(tmp_path, monkeypatch):
    """`x` is [b, 4], `ids:0` is [b, ?] and int64, `fixed` is [4]."""
    monkeypatch.chdir(tmp_path)
    inputs = [value("x", ["b", 4]), value("ids:0", ["b", None], 7), value("fixed", [4])]
    layers = [
        node("Cast", ["ids:0"], ["f"], "cast", to=1),
        node("ReduceMax", ["f"], ["m"], "most"),
        node("Add", ["x", "m"], ["s"], "add"),
        node("Mul", ["s", "fixed"], ["y"], "mul"),
    ]
    return read_graph(load(saved(model(layers, inputs, [value("y", ["b", 4])], [constant("u", np.float32(1))]))))


# ------------------------------------------------------------------------------------- the command line


def test_one_shape_is_smallest_usual_and_largest(graph):
    assert parse_shapes(["x:3x4"], graph) == {"x": ((3, 4),) * 3}
    assert parse_shapes(["x:1x4,2x4,8x4"], graph) == {"x": ((1, 4), (2, 4), (8, 4))}
    assert parse_shapes([], graph) == {}


def test_a_name_may_hold_a_colon(pair):
    assert parse_shapes(["ids:0:2x7"], pair) == {"ids:0": ((2, 7),) * 3}


def test_the_last_of_two_shapes_for_an_input_counts(graph):
    assert parse_shapes(["x:3x4", "x:5x4"], graph) == {"x": ((5, 4),) * 3}


@pytest.mark.parametrize(
    ("text", "says", "fix"),
    [
        ("x", "--shapes 'x': the model has no input ''", "its inputs: x"),
        ("xx:1x4", "--shapes 'xx:1x4': the model has no input 'xx'", "did you mean 'x'?"),
        ("pixels:1x4", "the model has no input 'pixels'", "its inputs: x"),
        ("x:", "--shapes 'x:' is no shape", "NAME:1x3x224x224"),
        ("x:axb", "--shapes 'x:axb' is no shape", "NAME:MIN,OPT,MAX"),
        ("x:-1x4", "is no shape", "NAME:MIN,OPT,MAX"),
        ("x:0x4", "is no shape", "NAME:MIN,OPT,MAX"),
        ("x:1 x4", "is no shape", "NAME:MIN,OPT,MAX"),
        ("x:\uff11x4", "is no shape", "NAME:MIN,OPT,MAX"),
        ("x:1x4\n", "is no shape", "NAME:MIN,OPT,MAX"),
        ("x:9999999999x4", "is no shape", "NAME:MIN,OPT,MAX"),
        ("x:1x4,2x4", "is no shape", "with three of them"),
        ("x:1x4,2x4,", "is no shape", "with three of them"),
        ("x:1x4,2x4,3x4,4x4", "is no shape", "with three of them"),
        ("x:4", "--shapes x:4 does not fit x, which is [b, 4]", "give every dimension"),
        ("x:1x5", "--shapes x:1x5 does not fit x, which is [b, 4]", "must be the same"),
        ("x:2x4,1x4,8x4", "not min <= opt <= max", "in this order"),
        ("x:1x4,8x4,2x4", "not min <= opt <= max", "in this order"),
    ],
)
def test_what_is_no_shape_of_the_input_is_refused(graph, text, says, fix):
    with pytest.raises(InputError) as caught:
        parse_shapes([text], graph)
    assert says in caught.value.message
    assert fix in caught.value.fix


# ---------------------------------------------------------------------------------------------- samples


def sample(**shapes):
    return Sample("made", {name: np.zeros(shape, np.float32) for name, shape in shapes.items()})


HAS_X = SimpleNamespace(inputs=(ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT)),))
sizes = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=6)


@given(sizes)
def test_the_range_of_samples_holds_every_sample_and_the_usual_one_is_one_of_them(shapes):
    low, usual, high = ranges_of(HAS_X, [sample(x=shape) for shape in shapes])["x"]
    assert usual in shapes
    for shape in shapes:
        assert all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True))
    assert {low[0], high[0]} <= {shape[0] for shape in shapes}
    assert {low[1], high[1]} <= {shape[1] for shape in shapes}


def test_the_usual_size_is_that_of_the_middle_sample():
    assert ranges_of(HAS_X, [sample(x=(n, 4)) for n in (9, 1, 2)])["x"] == ((1, 4), (2, 4), (9, 4))


def test_a_random_sample_takes_the_given_size_for_every_input_of_the_same_symbol(pair):
    made = random_sample(pair, {"x": (3, 4)})
    assert made.shapes == {"x": (3, 4), "ids:0": (3, 8), "fixed": (4,)}
    assert made.feed["ids:0"].dtype == np.int64
    assert random_sample(pair, {}).shapes == {"x": (1, 4), "ids:0": (1, 8), "fixed": (4,)}


def test_random_samples_repeat_and_another_seed_gives_others(graph):
    first, again, other = (random_sample(graph, {}, seed).feed["x"] for seed in (0, 0, 1))
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()


# --------------------------------------------------------------------------------- configs and profiles


def test_what_locate_recorded_is_read_back(graph):
    assert recorded_ranges({"shapes": {"x": [[1, 4], [2, 4], [8, 4]]}}, graph) == {"x": ((1, 4), (2, 4), (8, 4))}


@pytest.mark.parametrize(
    "recorded",
    [
        *(None, 5, [], {"x": 5}, {"x": None}, {"x": [[1, 4]]}, {"x": [[1], [1], [1]]}, {"x": [["a", 4]] * 3}),
        *({"x": [[1, 4], [1, 4], [1]]}, {"z": [[1, 4]] * 3}, {5: [[1, 4]] * 3}, {"x": {}}, {"x": "abc"}),
    ],
)
def test_evidence_that_does_not_fit_the_model_is_left_out(graph, recorded):
    assert recorded_ranges({"shapes": recorded}, graph) == {}
    assert recorded_ranges({}, graph) == {}


def test_a_profile_has_the_dynamic_inputs_only_and_says_what_was_made_up(pair):
    ranges, guessed = profile(pair, {"x": ((1, 4), (2, 4), (8, 4)), "fixed": ONE})
    assert ranges == {"x": ((1, 4), (2, 4), (8, 4)), "ids:0": ((1, 1), (2, 1), (8, 1))}  # b is the same dimension
    assert guessed == ("ids:0",)


# -------------------------------------------------------------------------------- what export wrote


def exported(tmp_path, ranges):
    """A model with dynamic dimensions N and L, and the ranges that `export` would have written into it."""
    model = parsed("g (float[N,3,L] x) => (float[N,3,L] y) { [exp] y = Exp(x) }")
    model.metadata_props.add(key=PROVENANCE, value=json.dumps({"ranges": ranges}))
    return save_case(Case("exported", model, {}), tmp_path).graph


def test_the_ranges_that_export_wrote_widen_those_of_the_samples(tmp_path):
    graph = exported(tmp_path, {"x": [[1, 3, 8], [2, 3, 16], [8, 3, 64]]})
    written = exported_ranges(graph)
    assert written == {"x": ((1, 3, 8), (2, 3, 16), (8, 3, 64))}
    seen = {"x": ((4, 3, 4), (4, 3, 32), (4, 3, 32))}
    assert widened(seen, written) == {"x": ((1, 3, 4), (4, 3, 32), (8, 3, 64))}
    assert widened({}, written) == written
    assert widened(seen, {}) == seen


@pytest.mark.parametrize(
    "ranges",
    [
        {"x": [[1, 3, 8], [2, 3, 16]]},
        {"x": [[9, 3, 8], [2, 3, 16], [8, 3, 64]]},
        {"x": [[0, 3, 8], [2, 3, 16], [8, 3, 64]]},
        {"x": [[1, 8], [2, 16], [8, 64]]},
        {"x": "many"},
        {"other": [[1, 3, 8], [2, 3, 16], [8, 3, 64]]},
        [1],
    ],
)
def test_ranges_that_make_no_sense_are_not_believed(tmp_path, ranges):
    assert exported_ranges(exported(tmp_path, ranges)) == {}


def test_an_input_that_sets_shapes_has_a_range_of_its_values_wherever_a_profile_is_made(tmp_path):
    """Its own shape, [2], is no value of it."""
    text = "g (float[1,6] x, int64[2] s, int64[2] n) => (float[a,b] y, int64[2] m) { y = Reshape(x, s) m = Neg(n) }"
    graph = save_case(Case("sizes", parsed(text), {}), tmp_path).graph
    rows = [np.array(row) for row in ([6, 1], [2, 3], [1, 6])]
    samples = [Sample("s", {"x": np.ones((1, 6), np.float32), "s": row, "n": row}) for row in rows]
    ranges = ranges_of(graph, samples)
    assert ranges["s"] == ((1, 1), (2, 3), (6, 6))
    assert ranges["n"] == ((2,), (2,), (2,))
    assert profile(graph, ranges)[0] == {"s": ((1, 1), (2, 3), (6, 6))}
    recorded = {"shapes": {name: [list(part) for part in parts] for name, parts in ranges.items()}}
    assert recorded_ranges(recorded, graph) == ranges


def test_a_dynamic_dimension_with_one_size_is_frozen(tmp_path):
    graph = exported(tmp_path, {})
    assert frozen(graph, {"x": ((1, 3, 8), (1, 3, 8), (1, 3, 64))}) == {"x": ["N = 1"]}
    assert frozen(graph, {"x": ((1, 3, 8), (2, 3, 8), (4, 3, 64))}) == {}
