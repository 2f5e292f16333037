"""The kernels of the emulator: which layers share one, what they cannot compute, and how they round."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.models import f32

from trt_helper.emulator.kernels import EmulationError, Kernels, Rounder
from trt_helper.values import Plan

TWINS = {  # layers that differ in one thing only
    "what is read": "y = Cast<to = 1>(x) z = Cast<to = 1>(i)",
    "an attribute": "y = Concat<axis = 0>(x, x) z = Concat<axis = 1>(x, x)",
    "a number of attributes": "y = LeakyRelu<alpha = 0.1>(x) z = LeakyRelu<alpha = 0.1000001>(x)",
    "a tensor": "y = ConstantOfShape<value = float[1] {1}>(i) z = ConstantOfShape<value = float[1] {2}>(i)",
    "what is written": "y, p = MaxPool<kernel_shape = [2]>(q) z = MaxPool<kernel_shape = [2]>(q)",
}


@pytest.mark.parametrize("what", TWINS)
def test_layers_that_differ_in_one_thing_have_kernels_of_their_own(what):
    text = f"g (float[2, 3] x, int64[2] i, float[1, 2, 3] q) => (float[a] y, float[b] z) {{ {TWINS[what]} }}"
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    kernels = Kernels(model)
    assert len({kernels.of(node) for node in model.graph}) == 2


def test_equal_layers_share_a_kernel_and_others_do_not(model_case):
    nodes = model_case("unnamed_and_doubly_named").graph.nodes
    shared = model_case("shared_initializer").graph
    kernels = Kernels(shared.model)
    assert kernels.of(shared.nodes["one"]) is kernels.of(shared.nodes["two"])
    assert kernels.of(shared.nodes["one"]) is not kernels.of(nodes["twin"])


def test_a_layer_that_cannot_compute_what_it_is_fed_says_so(model_case):
    case = model_case("shared_initializer")
    with pytest.raises(EmulationError, match=r"cannot be computed|cannot compute a layer") as error:
        case.emulator.run(Plan(), {"x": np.zeros((2, 5), np.float32)})
    assert error.value.exit_status == 3


# ------------------------------------------------------------------------------------------------------------- rounding


def halves() -> np.ndarray:
    """All 65536 half-precision numbers as FP32."""
    return np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32)


def around(values: np.ndarray) -> np.ndarray:
    """The values and their neighbours in FP32."""
    down, up = np.float32(-np.inf), np.float32(np.inf)
    with np.errstate(invalid="ignore"):
        return np.concatenate([values, np.nextafter(values, down), np.nextafter(values, up)])


def test_rounding_is_ieee_half_for_every_half_every_tie_and_their_neighbours():
    """Against numpy; signs of zero included, of NaN only that it is one."""
    ordered = np.unique(halves()[np.isfinite(halves())])
    ties = ((ordered[1:].astype(np.float64) + ordered[:-1]) / 2).astype(np.float32)
    given = np.concatenate([around(halves()), around(ties)])
    with np.errstate(over="ignore"):
        expected = given.astype(np.float16).astype(np.float32)
    found = Rounder()(given)
    numbers = ~np.isnan(given)
    np.testing.assert_array_equal(found[numbers].view(np.uint32), expected[numbers].view(np.uint32))
    assert np.isnan(found[~numbers]).all()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (65504.0, 65504.0),
        (65519.996, 65504.0),
        (65520.0, np.inf),
        (-65520.0, -np.inf),
        (2049.0, 2048.0),  # tie to even
        (2051.0, 2052.0),  # tie to even
        (2.0**-24, 2.0**-24),  # smallest subnormal
        (2.0**-25, 0.0),  # tie to even
        (1.0001 * 2.0**-25, 2.0**-24),
        (1e-12, 0.0),  # a typical epsilon
        (-1e9, -np.inf),  # a typical mask
        (np.inf, np.inf),
    ],
)
def test_rounding_of(given, expected):
    assert Rounder()(f32(given)).tolist() == [expected]


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_rounding_twice_is_rounding_once(values):
    rounding = Rounder()
    once = rounding(f32(*values))
    np.testing.assert_array_equal(rounding(once), once)
