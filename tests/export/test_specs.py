"""The options `--input`, `--dynamic` and `--model-arg` of `export`, parsed."""

from __future__ import annotations

import pytest

from trt_helper.errors import UsageError
from trt_helper.export.specs import Input, parse_arguments, parse_inputs


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("image:1x3x224x224", Input("image", (1, 3, 224, 224))),
        ("ids:1x128:int64", Input("ids", (1, 128), "int64")),
        ("batch.image:2", Input("batch.image", (2,))),
        ("a:b:2x3", Input("a:b", (2, 3))),
        ("t::int64", Input("t", (), "int64")),
        ("keep:4:bool", Input("keep", (4,), "bool")),
    ],
)
def test_an_input_is_name_shape_and_type(text, expected):
    assert parse_inputs([text]) == (expected,)


@pytest.mark.parametrize("text", ["image", "image:1x3x", "image:0x3", "image:1,3", ":1x3", "image:1x3:float", "x:-1x3"])
def test_what_is_no_input_is_a_usage_error(text):
    with pytest.raises(UsageError):
        parse_inputs([text])


def test_dynamic_axes_have_bounds():
    (given,) = parse_inputs(["image:1x3x224x224"], ["image:0=1..32,2=64..1024", "image:3=64..1024"])
    assert given.dynamic == {0: (1, 32), 2: (64, 1024), 3: (64, 1024)}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("imag:0=1..2", "no --input 'imag'"),
        ("image:4=1..2", "no axis 4"),
        ("image:0=2..8", "axis 0 is 1 in --input, and the range 2..8"),
        ("image:0=1..1", "range 1..1"),
        ("image:0=1-8", "not AXIS=MIN..MAX"),
        ("image:", "not AXIS=MIN..MAX"),
    ],
)
def test_bounds_that_cannot_be_are_usage_errors(text, says):
    with pytest.raises(UsageError, match=says):
        parse_inputs(["image:1x3x8x8"], [text])


def test_the_same_input_twice_is_a_usage_error():
    with pytest.raises(UsageError, match="twice"):
        parse_inputs(["x:1", "x:2"])


def test_arguments_are_python_literals_or_text():
    found = parse_arguments(["n=10", "scale=0.5", "wide=True", "sizes=(1, 2)", "kind=relu", "none=None", "eq=a=b"])
    assert found == {
        "n": 10,
        "scale": 0.5,
        "wide": True,
        "sizes": (1, 2),
        "kind": "relu",
        "none": None,
        "eq": "a=b",
    }
    with pytest.raises(UsageError):
        parse_arguments(["n"])
