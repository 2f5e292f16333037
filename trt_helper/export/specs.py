"""Parse the export options --input, --dynamic and --model-arg."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from trt_helper.errors import UsageError, nearest

DTYPES = ("float32", "float16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool")
SHAPE = re.compile(r"[1-9][0-9]{0,8}(x[1-9][0-9]{0,8})*")
RANGE = re.compile(r"([0-9]{1,2})=([1-9][0-9]{0,8})\.\.([1-9][0-9]{0,8})")
Bounds = tuple[int, int]  # smallest and largest size


@dataclass(frozen=True, slots=True)
class Input:
    """One input tensor of forward.

    Attributes:
        name: A parameter of forward. `batch.image` is the entry "image" of a dictionary that is passed as `batch`, and
            `state.0` is the first element of a tuple. Names that forward does not have are passed by position.
        shape: The shape to export and compare with.
        dtype: One of `DTYPES`.
        dynamic: Axis -> (smallest, largest) size.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    dynamic: Mapping[int, Bounds] = field(default_factory=dict)


def parse_inputs(inputs: Sequence[str], dynamic: Sequence[str] = ()) -> tuple[Input, ...]:
    """Parse the values of --input and --dynamic.

    Args:
        inputs: Texts `NAME:1x3x224x224[:dtype]`; `NAME::dtype` is a scalar.
        dynamic: Texts `NAME:0=1..32,2=64..1024`: the sizes of axes.

    Raises:
        UsageError: A text is malformed or the two do not fit together.
    """
    found: dict[str, Input] = {}
    for text in inputs:
        given = _parse_input(text)
        if given.name in found:
            raise UsageError(f"--input names {given.name!r} twice", fix="give every input once")
        found[given.name] = given
    for text in dynamic:
        name, _, axes = text.rpartition(":")
        if name not in found:
            near = nearest(name, found)
            raise UsageError(
                f"--dynamic {text!r}: there is no --input {name!r}",
                fix=f"did you mean {near!r}?" if near else "write NAME:AXIS=MIN..MAX, such as image:0=1..32",
            )
        found[name] = replace(found[name], dynamic={**found[name].dynamic, **_parse_axes(found[name], axes, text)})
    return tuple(found.values())


def _parse_input(text: str) -> Input:
    head, _, last = text.rpartition(":")
    dtype = "float32"
    if last in DTYPES:
        dtype, (head, _, last) = last, head.rpartition(":")
    elif head and SHAPE.fullmatch(head.rpartition(":")[2]):
        raise UsageError(f"--input {text!r}: {last!r} is no type", fix=f"it is one of: {', '.join(DTYPES)}")
    if not head or not (last == "" or SHAPE.fullmatch(last)):
        raise UsageError(
            f"--input {text!r} is not NAME:SHAPE or NAME:SHAPE:TYPE",
            fix="such as image:1x3x224x224 or ids:1x128:int64; NAME::int64 is a scalar",
        )
    return Input(head, tuple(int(size) for size in last.split("x")) if last else (), dtype)


def _parse_axes(given: Input, axes: str, text: str) -> dict[int, Bounds]:
    found: dict[int, Bounds] = {}
    for part in axes.split(","):
        match = RANGE.fullmatch(part.strip())
        if match is None:
            raise UsageError(
                f"--dynamic {text!r}: {part!r} is not AXIS=MIN..MAX", fix="such as image:0=1..32,2=64..512"
            )
        axis, low, high = (int(number) for number in match.groups())
        if axis >= len(given.shape):
            raise UsageError(
                f"--dynamic {text!r}: {given.name!r} has {len(given.shape)} axes, and so no axis {axis}",
                fix="axes are counted from 0",
            )
        if not low <= given.shape[axis] <= high or low == high:
            raise UsageError(
                f"--dynamic {text!r}: axis {axis} is {given.shape[axis]} in --input, and the range {low}..{high}",
                fix="give MIN < MAX, with the size of --input among them",
            )
        found[axis] = (low, high)
    return found


def parse_arguments(texts: Sequence[str]) -> dict[str, Any]:
    """Parse `NAME=VALUE` arguments for the user's callable: VALUE is a Python literal, otherwise text.

    Raises:
        UsageError: A text is not NAME=VALUE.
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (equals and name.isidentifier()):
            raise UsageError(f"--model-arg {text!r} is not NAME=VALUE", fix="such as --model-arg num_classes=10")
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            found[name] = value
    return found
