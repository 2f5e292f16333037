"""The precision that a typed model requests of each layer, and the formulas that tell layers apart."""

from __future__ import annotations

import onnx
from support.builder_models import convs, requested, weights
from support.onnx_parts import model, node, value


def test_what_a_typed_model_requests_of_its_layers():
    known = requested(convs("mid", "r1"))
    assert (known["c0"].half, known["mid"].half, known["r1"].half) == (True, False, False)
    assert (known["mid"].alone, known["r1"].alone) == (False, False)
    assert requested(convs("mid"))["mid"].alone
    assert (known["c0"].full, known["mid"].full) == (False, True)


def test_formulas_tell_constants_apart_and_look_through_movement():
    nodes = [
        node("Mul", ["x", "two"], ["a"], "twice"),
        node("Reshape", ["x", "shape"], ["r"], "reshape"),
        node("Mul", ["r", "two"], ["b"], "twice_again"),
        node("Mul", ["x", "three"], ["c"], "thrice"),
    ]
    constants = [weights("two", ()), weights("three", (1,)), weights("w", (4,))]
    constants[0].raw_data, constants[1].raw_data = b"\0\0\0\x40", b"\0\0\x40\x40"
    shape = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(constants[2]).astype("int64")[:1], "shape")
    made = model(nodes, [value("x", [4])], [value(name, None) for name in "abc"], [*constants[:2], shape])
    known = requested(made)
    assert known["twice"].formula == known["twice_again"].formula != known["thrice"].formula
