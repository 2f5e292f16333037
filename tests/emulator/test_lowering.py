"""A layer is judged in the steps of its kernel, and not as one operator: what each step rounds, overflows or loses."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.kernel_steps import STEPS, gelu_tanh, short_product, vector_product
from support.lowered_models import OneOperator, lowered_models
from support.model_cases import save_case
from support.models import Case
from support.zoo import Net

from trt_helper.emulator.emulator import Emulator
from trt_helper.emulator.lowering import LOWERED
from trt_helper.onnx_model.graph import read_graph
from trt_helper.onnx_model.load import load
from trt_helper.values import Plan, Reading

ONE_HALF = 2.0**-10  # a function that numpy and ONNX Runtime compute apart may be rounded to the next half


def emulated(tmp_path, one: OneOperator, plan=lambda _graph: Plan()):
    case = save_case(one.case(), tmp_path)
    (found,) = case.emulator.run(plan(case.graph), case.feed).values()
    return found, case


def assert_nearly(found, expected):
    """Equal but for a few elements, which are at most two halves apart."""
    expected = expected.astype(np.float32)
    assert found.shape == expected.shape
    apart = ~np.isclose(found, expected, rtol=2.0**-11, atol=0, equal_nan=True)
    assert np.mean(apart) < 0.06
    np.testing.assert_allclose(found, expected, rtol=4 * ONE_HALF, atol=2 * ONE_HALF * np.abs(expected).max() / 8)


@pytest.mark.parametrize("operator", sorted(LOWERED))
def test_every_row_computes_what_its_steps_in_numpy_do(tmp_path, operator):
    one = lowered_models()[operator]
    found, _ = emulated(tmp_path, one)
    with np.errstate(all="ignore"):
        assert_nearly(found, STEPS[operator](*one.arrays))


@pytest.mark.parametrize("operator", sorted(LOWERED.keys() - {"LogSoftmax"}))
def test_a_pinned_layer_is_the_operator_itself(tmp_path, operator):
    found, case = emulated(tmp_path, lowered_models()[operator], lambda graph: graph.all_pinned())
    np.testing.assert_array_equal(found, *case.emulator.reference(case.feed).values())


def test_the_other_gelu_has_steps_of_its_own(tmp_path):
    x = lowered_models()["Gelu"].inputs
    found, _ = emulated(tmp_path, OneOperator("Gelu", x, attributes={"approximate": "tanh"}))
    assert_nearly(found, gelu_tanh(x[0].astype(np.float16)))


NORMAL = np.random.default_rng(3).standard_normal


@pytest.mark.parametrize(
    ("a", "b", "in_terms"),
    [
        ((1, 256), (256, 8), True),
        ((256,), (256, 8), True),
        ((4, 256), (256, 1), True),
        ((2, 4, 256), (256, 1), True),
        ((4, 1, 64), (4, 64, 8), True),
        ((1, 1, 256), (256, 8), True),
        ((2, 1, 256), (256, 8), False),
        ((2, 256), (256, 8), False),
        ((4, 1, 64), (1, 64, 8), False),
    ],
)
def test_a_product_with_one_row_or_column_is_computed_in_terms(tmp_path, a, b, in_terms):
    """As read from the kernels for these very shapes; tests/builder/test_kernel_steps.py reads some of them again."""
    one = OneOperator("MatMul", (NORMAL(a).astype(np.float32), NORMAL(b).astype(np.float32)))
    found, case = emulated(tmp_path, one)
    left, right = one.arrays
    whole = (left.astype(np.float32) @ right.astype(np.float32)).astype(np.float16)
    terms = vector_product(left if left.ndim > 1 else left[None], right).reshape(whole.shape)
    assert np.mean(found == (terms if in_terms else whole)) > 0.9
    assert case.emulator.rounds_inside("layer") == in_terms


@pytest.mark.parametrize("terms", [3, 4, 5])
def test_few_terms_are_added_up_in_half(tmp_path, terms):
    """A rotation of many points, say."""
    one = OneOperator("MatMul", (NORMAL((100, terms)).astype(np.float32), NORMAL((terms, 3)).astype(np.float32)))
    found, _ = emulated(tmp_path, one)
    same = found == short_product(*one.arrays)
    assert same.all() if terms <= 4 else np.mean(same) < 0.95


@pytest.mark.parametrize(
    ("terms", "rows", "by_terms"), [(3, "n", True), (5, "n", False), (256, "n", False), (256, 1, True)]
)
def test_rows_that_are_not_known_may_be_many_but_few_terms_are_few(tmp_path, terms, rows, by_terms):
    """As read from kernels for shapes with a range of rows (tests/builder/test_kernel_steps.py)."""
    one = OneOperator("MatMul", (np.ones((1, terms), np.float32),), (np.ones((terms, 8), np.float32),))
    model = one.model()
    model.graph.input[0].type.tensor_type.shape.dim[0].Clear()
    if rows == "n":
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = rows
    else:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = rows
    case = save_case(Case("rows", model, one.case().feed), tmp_path)
    assert case.emulator.rounds_inside("layer") == by_terms


def test_a_softmax_of_an_old_opset_is_over_all_axes_behind_the_first(tmp_path):
    x = NORMAL((2, 3, 4)).astype(np.float32)
    found, _ = emulated(tmp_path, OneOperator("Softmax", (x,), opset=11, attributes={"axis": 1}))
    assert_nearly(found, STEPS["Softmax"](x.astype(np.float16).reshape(2, 12)).reshape(x.shape))


@pytest.mark.parametrize("direction", ["reverse", "bidirectional"])
@pytest.mark.parametrize("operator", ["LSTM", "GRU", "RNN"])
def test_recurrent_layers_run_in_every_direction(tmp_path, operator, direction):
    one = lowered_models()[operator]
    times = 2 if direction == "bidirectional" else 1
    constants = tuple(np.concatenate([array] * times) for array in one.constants)
    turned = OneOperator(operator, one.inputs, constants, attributes={**one.attributes, "direction": direction})
    found, _ = emulated(tmp_path, turned)
    x, *weights = one.arrays
    backwards = STEPS[operator](x[::-1], *weights)[::-1]
    expected = [STEPS[operator](x, *weights), backwards] if times == 2 else [backwards]
    assert_nearly(found, np.concatenate(expected, axis=1))


@pytest.mark.parametrize("options", [{}, {"interleaved": 1}, {"rotary_embedding_dim": 8}])
@pytest.mark.parametrize("layout", ["heads apart", "heads together", "by position"])
def test_a_rotation_is_one_in_every_layout(tmp_path, options, layout):
    """By powers of two, as which sines and cosines pass here, nothing is rounded: then it is the operator itself."""
    random = np.random.default_rng(0)
    x = random.integers(-8, 8, (2, 3, 5, 16)).astype(np.float32)
    half = options.get("rotary_embedding_dim", 16) // 2
    tables = [random.choice([0.25, 0.5, 1, -1], (2, 5, half)).astype(np.float32) for _ in range(2)]
    attributes = dict(options)
    if layout == "heads together":
        x, attributes["num_heads"] = x.swapaxes(1, 2).reshape(2, 5, 48), 3
    constants: tuple[np.ndarray, ...] = tuple(tables)
    if layout == "by position":
        positions = random.integers(0, 7, (2, 5))
        constants = (*(random.choice([0.25, 0.5, 1], (7, half)).astype(np.float32) for _ in range(2)), positions)
    found, case = emulated(tmp_path, OneOperator("RotaryEmbedding", (x,), constants, 23, attributes))
    np.testing.assert_array_equal(found, *case.emulator.reference(case.feed).values())


# ------------------------------------------------------------------------------------ what one step would call accurate


def errors(tmp_path, operators, x, weights=(), plan=lambda _graph: Plan()):
    """The largest error as kernels compute a chain of operators, and with each layer as one step."""
    case = save_case(chain(operators, x, weights), tmp_path)
    reference = case.emulator.reference(case.feed)["y"].astype(np.float64)
    with np.errstate(all="ignore"):
        return tuple(
            float(np.abs(emulator.run(plan(case.graph), case.feed)["y"] - reference).max())
            for emulator in (Emulator(case.graph), case.one_step)
        )


def chain(operators, x, weights):
    arrays = {f"w{index}": array for index, array in enumerate(weights)}
    nodes, current = [], "x"
    for index, (operator, extra, attributes) in enumerate(operators):
        made = "y" if index + 1 == len(operators) else f"t{index}"
        nodes.append(helper.make_node(operator, [current, *extra], [made], name=f"layer{index}", **attributes))
        current = made
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x.shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return Case("chain", onnx.shape_inference.infer_shapes(model), {"x": x})


UNIFORM = np.random.default_rng(4).uniform
TIMES = ("Mul", ["w0"], {})
THOUSAND, HUNDRED = np.array(1000, np.float32), np.array(100, np.float32)
SMALL = np.full((1, 256), 1e-4, np.float32)
FOUND = {
    "log_softmax": ([("LogSoftmax", [], {"axis": -1})], UNIFORM(-25, 25, (8, 64)), (), 0.1),
    "softmax_100000": ([("Softmax", [], {}), TIMES], np.zeros((1, 100_000)), (THOUSAND,), 0.005),
    "sum_square": ([("ReduceSumSquare", ["w1"], {}), TIMES], SMALL, (np.array(1e4, np.float32), np.array([1])), 0.02),
    "cum_sum": ([("CumSum", ["w0"], {})], UNIFORM(0, 0.2, (1, 4000)), (np.array(1),), 0.5),
    "one_row": (
        [("Gemm", ["w1"], {"transB": 1}), TIMES],
        SMALL,
        (np.array(6e4, np.float32), np.full((8, 256), 1e-4, np.float32)),
        0.05,
    ),
    "log_sigmoid": ([("Sigmoid", [], {}), ("Log", [], {})], UNIFORM(-8, 4, (1, 256)), (), 0.05),
    "gelu": ([("Gelu", [], {}), TIMES], UNIFORM(-4, -1, (1, 256)), (HUNDRED,), 0.02),
    "elu": ([("Elu", [], {}), TIMES], UNIFORM(-0.01, 0.01, (1, 256)), (HUNDRED,), 0.01),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_only_the_steps_of_a_kernel_get_wrong_is_found(tmp_path, name):
    """Each was called accurate, and the engine is wrong by more than the tolerance."""
    operators, x, weights, allowed = FOUND[name]
    lowered, one_step = errors(tmp_path, operators, x.astype(np.float32), weights)
    assert one_step < allowed < lowered or (one_step < allowed and np.isnan(lowered))


@pytest.mark.parametrize("name", FOUND)
def test_pinned_it_is_right_again(tmp_path, name):
    operators, x, weights, allowed = FOUND[name]
    lowered, _ = errors(tmp_path, operators, x.astype(np.float32), weights, lambda graph: graph.all_pinned())
    assert lowered < allowed / 100


def test_no_pin_helps_a_log_softmax_that_underflows_in_fp32(tmp_path):
    """exp(-120) is 0 in FP32, too."""
    x = np.array([[0.0, -120.0]], np.float32)
    lowered, _ = errors(tmp_path, [("LogSoftmax", [], {})], x, (), lambda graph: graph.all_pinned())
    assert lowered == float("inf")


def test_the_reading_of_one_step_has_no_steps(tmp_path):
    case = save_case(lowered_models()["Softmax"].case(), tmp_path)
    assert case.emulator.rounds_inside("layer")
    assert not Emulator(case.graph, reading=Reading.ONE_STEP).rounds_inside("layer")


# ------------------------------------------------------------------------------------------------------ other readings


def half_sums(terms: np.ndarray) -> np.ndarray:
    """The sum over the last axis: sixteen terms in FP32, and from there on in half."""
    total = np.float16(0)
    for first in range(0, terms.shape[-1], 16):
        part = terms[..., first : first + 16].astype(np.float32).sum(axis=-1, dtype=np.float32)
        total = (total.astype(np.float32) + part).astype(np.float16)
    return total


def worst(tmp_path, one: OneOperator) -> np.ndarray:
    case = save_case(one.case(), tmp_path)
    (found,) = Emulator(case.graph, reading=Reading.WORST).run(Plan(), case.feed).values()
    return found


A, B = NORMAL((4, 300)).astype(np.float32), NORMAL((300, 8)).astype(np.float32)


@pytest.mark.parametrize(
    "operator", ["MatMul", "Gemm", "ReduceSum", "ReduceMean", "ReduceL2", "ReduceSumSquare", "Softmax"]
)
def test_the_worst_reading_accumulates_in_half(tmp_path, operator):
    a, b, last = A.astype(np.float16), B.astype(np.float16), np.array([-1])
    exponentials = np.exp((a - a.max(axis=-1, keepdims=True)).astype(np.float32)).astype(np.float16)
    one, expected = {
        "MatMul": (OneOperator("MatMul", (A, B)), half_sums(product_terms(a, b))),
        "Gemm": (OneOperator("Gemm", (A, B, B[0])), half_sums(product_terms(a, b)) + b[0]),
        "ReduceSum": (OneOperator("ReduceSum", (A,), (last,)), half_sums(a)[:, None]),
        "ReduceMean": (OneOperator("ReduceMean", (A,), (last,)), half_sums(a)[:, None] / np.float32(300)),
        "ReduceL2": (OneOperator("ReduceL2", (A,), (last,)), np.sqrt(half_sums(a * a).astype(np.float32))[:, None]),
        "ReduceSumSquare": (OneOperator("ReduceSumSquare", (A,), (last,)), half_sums(a * a)[:, None]),
        "Softmax": (OneOperator("Softmax", (A,)), exponentials / half_sums(exponentials)[:, None]),
    }[operator]
    assert_nearly(worst(tmp_path, one), expected.astype(np.float16))


def product_terms(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """All terms in FP32, as tensor cores multiply, shape (rows, columns, terms)."""
    return a.astype(np.float32)[:, None, :] * b.astype(np.float32).T[None]


def test_a_sum_passes_65504_only_where_it_is_accumulated_in_half(tmp_path):
    """The mean of 300 values of 300 is 300, and their sum is 90000."""
    one = OneOperator("ReduceMean", (np.full((1, 300), 300, np.float32),), (np.array([-1]),))
    found, _ = emulated(tmp_path, one)
    assert found == 300
    assert worst(tmp_path, one) == np.inf


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"pads": [1, 0, 2, 1], "strides": [2, 1], "dilations": [1, 2]},
        {"group": 2, "pads": [1, 1, 1, 1]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
        {"auto_pad": "VALID"},
    ],
    ids=str,
)
def test_the_worst_convolution_is_still_that_convolution(tmp_path, attributes):
    """Whole numbers as small as these have exact sums in half."""
    random = np.random.default_rng(0)
    x = random.integers(-2, 3, (2, 40, 9, 8)).astype(np.float32)
    weight = random.integers(-1, 2, (6, 40 // attributes.get("group", 1), 3, 3)).astype(np.float32)
    bias = random.integers(-3, 4, 6).astype(np.float32)
    one = OneOperator("Conv", (x,), (weight, bias), attributes=attributes)
    case = save_case(one.case(), tmp_path)
    np.testing.assert_array_equal(worst(tmp_path, one), *case.emulator.reference(case.feed).values())


def test_the_worst_convolution_accumulates_in_half(tmp_path):
    """2048 + 1 is 2048 in half: sixteen channels of 128, and then as many of a sixteenth."""
    x = np.concatenate([np.full((1, 16, 1, 1), 128), np.full((1, 16, 1, 1), 1 / 16)], axis=1).astype(np.float32)
    one = OneOperator("Conv", (x,), (np.ones((1, 32, 1, 1), np.float32),))
    assert worst(tmp_path, one) == 2048
    x[0, 16:] = 3 / 16
    assert worst(tmp_path, OneOperator("Conv", (x,), one.constants)) == 2052


def test_the_exact_reading_rounds_a_chain_once(tmp_path):
    """(2048 + 1) * 2 is 4098 in FP32 and 4100 or 4096 in half; rounded in between it is 4096."""
    operators = [("Add", ["w0"], {}), ("Mul", ["w1"], {})]
    x = np.array([[2048.0]], np.float32)
    case = save_case(chain(operators, x, (np.array(1, np.float32), np.array(2.002, np.float32))), tmp_path)
    two = np.float32(np.float16(2.002))
    exact = Emulator(case.graph, reading=Reading.EXACT)
    assert exact.run(Plan(), case.feed)["y"] == np.float16(2049 * two)
    assert case.one_step.run(Plan(), case.feed)["y"] == np.float16(2048 * two) != np.float16(2049 * two)
    pinned = case.graph.plan(["layer1"])
    assert exact.run(pinned, case.feed)["y"] == 2048 * np.float32(2.002), "an FP32 layer reads what was stored"


def test_attention_over_many_keys_is_worse_only_where_sums_are_in_half(tmp_path):
    """softmax(Q K) V over 4096 keys; fused attention on Ampere accumulates in half."""
    random = np.random.default_rng(0)
    keys, values = (random.standard_normal(shape).astype(np.float32) for shape in ((64, 4096), (4096, 64)))
    operators = [("MatMul", ["w0"], {}), ("Mul", ["w1"], {}), ("Softmax", [], {"axis": -1}), ("MatMul", ["w2"], {})]
    x = random.standard_normal((16, 64)).astype(np.float32)
    case = save_case(chain(operators, x, (keys, np.array(0.125, np.float32), 6 * values)), tmp_path)
    reference = case.emulator.reference(case.feed)["y"]
    errors = {
        reading: float(np.abs(Emulator(case.graph, reading=reading).run(Plan(), case.feed)["y"] - reference).max())
        for reading in (Reading.TYPICAL, Reading.EXACT, Reading.WORST)
    }
    assert max(errors[Reading.TYPICAL], errors[Reading.EXACT]) < 0.002 < errors[Reading.WORST]


def test_the_exact_reading_stores_what_is_an_output_or_has_two_readers(tmp_path):
    """2049 becomes 2048 where it is stored; only a tensor that one pointwise layer reads is not."""
    net = Net(0)
    x = net.input("x", [1])
    shown = net("Add", x, 1.0, name="shown")
    y = net("Mul", shown, 3.0, name="y")
    twice = net("Add", x, 1.0, name="twice")
    z = net("Mul", twice, net("Mul", twice, 2.0**-10, name="small"), name="z")
    path = tmp_path / "model.onnx"
    onnx.save(net.model("model", [shown, y, z], [1]), path)
    exact = Emulator(read_graph(load(path)), reading=Reading.EXACT)
    found = exact.run(Plan(), {"x": np.full(1, 2048, np.float32)})
    assert found["shown"] == 2048
    assert found["y"] == 3 * 2048
    assert found["z"] == 2048 * 2, "and not 2049 * 2.001, which is 4100"


# ------------------------------------------------------------------------------------------------------------- options

H = np.float16


@pytest.mark.parametrize("terms", [5, 6, 7])
def test_a_row_of_up_to_six_terms_is_added_up_in_half(tmp_path, terms):
    one = OneOperator("MatMul", (NORMAL((1, terms)).astype(np.float32), NORMAL((terms, 500)).astype(np.float32)))
    found, _ = emulated(tmp_path, one)
    share = float(np.mean(found == short_product(*one.arrays)))
    assert share == 1 if terms <= 6 else share < 0.98


def test_a_row_times_alpha_plus_beta_times_the_third_input(tmp_path):
    arrays = (NORMAL((1, 64)), NORMAL((200, 64)), NORMAL(200))
    x, w, c = (array.astype(np.float32) for array in arrays)
    one = OneOperator("Gemm", (x,), (w, c), attributes={"transB": 1, "alpha": 0.3, "beta": 0.7})
    found, _ = emulated(tmp_path, one)
    a, b, d = one.arrays
    sums = (a[0] * b).astype(np.float32).sum(axis=-1, dtype=np.float32)[None]
    product = (np.float32(0.3) * sums).astype(H)
    assert_nearly(found, product + (np.float32(0.7) * d.astype(np.float32)).astype(H))


@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
def test_a_running_sum_runs_either_way(tmp_path, exclusive, reverse):
    x = NORMAL((3, 200)).astype(np.float32) * 10
    attributes = {"exclusive": exclusive, "reverse": reverse}
    found, _ = emulated(tmp_path, OneOperator("CumSum", (x,), (np.array(1),), attributes=attributes))
    half = x.astype(H)[:, ::-1] if reverse else x.astype(H)
    sums = np.add.accumulate(half, axis=1, dtype=H)
    if exclusive:
        sums = np.concatenate([np.zeros((3, 1), H), sums[:, :-1]], axis=1)
    np.testing.assert_array_equal(found, (sums[:, ::-1] if reverse else sums).astype(np.float32))


def test_a_gru_that_resets_before_its_product(tmp_path):
    whole = lowered_models()["GRU"]
    attributes = {"hidden_size": 16}
    found, case = emulated(tmp_path, OneOperator("GRU", whole.inputs, whole.constants, attributes=attributes))
    (exact,) = case.emulator.reference(case.feed).values()
    (one_step,) = case.one_step.run(Plan(), case.feed).values()
    assert np.abs(found - exact).max() < 0.01
    assert not np.array_equal(found, one_step), "its state is in half"
    (other,) = Emulator(case.graph, reading=Reading.WORST).run(Plan(), case.feed).values()
    np.testing.assert_array_equal(found, other)


@pytest.mark.parametrize(("operator", "states"), [("LSTM", 2), ("GRU", 1), ("RNN", 1)])
def test_a_recurrent_layer_begins_with_the_states_that_are_given(tmp_path, operator, states):
    """Two steps are one step, and one more from the state that it left."""
    whole = lowered_models()[operator]
    x, batch = whole.inputs[0], whole.inputs[0].shape[1]

    def run(x, given):
        names = ["x", "w", "r", "b", "", *(f"s{index}" for index in range(states))][: 5 + len(given)]
        weights = dict(zip("wrb", whole.constants, strict=True)) | {f"s{i}": s for i, s in enumerate(given)}
        outputs = ["y", "h", "c"][: 1 + states]
        node = helper.make_node(operator, names if given else names[:4], outputs, name="layer", **whole.attributes)
        graph = helper.make_graph(
            [node],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        return save_case(Case("states", onnx.shape_inference.infer_shapes(model), {"x": x}), tmp_path).emulator

    x = x.astype(H).astype(np.float32)
    all_at_once = run(x, []).run(Plan(), {"x": x})
    first = run(x[:2], []).run(Plan(), {"x": x[:2]})
    left = [first["h"], first["c"]][:states] if states > 1 else [first["h"]]
    assert left[0].shape == (1, batch, 16)
    rest = run(x[2:], left).run(Plan(), {"x": x[2:]})
    np.testing.assert_array_equal(rest["y"], all_at_once["y"][2:])
    np.testing.assert_array_equal(rest["h"], all_at_once["h"])


def test_a_recurrent_layer_with_other_activations_is_one_step(tmp_path):
    whole = lowered_models()["RNN"]
    attributes = {**whole.attributes, "activations": ["Relu"]}
    _, case = emulated(tmp_path, OneOperator("RNN", whole.inputs, whole.constants, attributes=attributes))
    found, expected = (e.run(Plan(), case.feed) for e in (case.emulator, case.one_step))
    np.testing.assert_array_equal(*found.values(), *expected.values())


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("axes", [[-1], [0, 1], None])
def test_a_log_of_a_sum_of_powers_over_any_axes(tmp_path, keepdims, axes):
    x = NORMAL((2, 3, 4)).astype(np.float32) * 5
    constants = (np.array(axes),) if axes else ()
    one = OneOperator("ReduceLogSumExp", (x,), constants, 18, {"keepdims": keepdims})
    found, case = emulated(tmp_path, one)
    (exact,) = case.emulator.reference(case.feed).values()
    assert found.shape == exact.shape
    np.testing.assert_allclose(found, exact, rtol=2e-3)


@pytest.mark.parametrize("shape", [(4, 8), (2, 8, 5), (2, 8, 3, 3, 3)])
def test_a_batch_norm_of_any_rank(tmp_path, shape):
    channels = [NORMAL(8), NORMAL(8), NORMAL(8) * 30, np.abs(NORMAL(8)) + 0.1]
    one = OneOperator(
        "BatchNormalization", (NORMAL(shape).astype(np.float32),), tuple(c.astype(np.float32) for c in channels)
    )
    found, _ = emulated(tmp_path, one)
    assert_nearly(found, STEPS["BatchNormalization"](*one.arrays))


def test_a_swish_with_a_factor(tmp_path):
    x = np.linspace(-4, 4, 101, dtype=np.float32)[None]
    found, case = emulated(tmp_path, OneOperator("Swish", (x,), opset=24, attributes={"alpha": 2.0}))
    (exact,) = case.emulator.reference(case.feed).values()
    np.testing.assert_allclose(found, exact, atol=4e-3)


def test_a_pinned_log_softmax_has_an_error_of_its_own(tmp_path):
    """It underflows in FP32, too: the layer is to blame, and not what comes before it."""
    case = save_case(chain([("LogSoftmax", [], {})], np.array([[0.0, -120.0]], np.float32), ()), tmp_path)
    (step,) = case.emulator.walk(case.graph.all_pinned(), case.feed)
    assert np.isfinite(step.reference["y"]).all()
    assert np.isneginf(step.isolated["y"][0, 1])
    assert np.isneginf(step.accumulated["y"][0, 1])
