"""The normalised model: what is folded, renamed and kept before any precision is decided."""

from __future__ import annotations

import sys
import traceback

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from support.independent import run_on_ort
from support.model_cases import MODELS, save_case
from support.models import Case, bn, f32, normal, parsed

from trt_helper.errors import ModelError
from trt_helper.onnx_model.branches import close_branches
from trt_helper.onnx_model.float_types import HALVES
from trt_helper.onnx_model.normalise import PASSES, normalise
from trt_helper.values import Plan, Role

every_model = pytest.mark.parametrize("name", MODELS)


def constants(model_case):
    return {name: value.const_value.numpy() for name, value in model_case.graph.model.graph.initializers.items()}


# ------------------------------------------------------------------------------------------- BatchNorm


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("conv_bn_relu", ["conv", "relu"]),
        ("gemm_bn_transposed_conv_bn", ["gemm", "deconv"]),
        ("conv_read_twice_before_bn", ["conv", "bn"]),
        ("standalone_bn", ["relu", "bn", "tail"]),
    ],
)
def test_a_batch_norm_goes_into_the_layer_that_only_it_reads(model_case, name, layers):
    assert [layer.name for layer in model_case(name).graph.layers] == layers


@pytest.mark.parametrize("name", ["conv_bn_relu", "standalone_bn"])
def test_a_running_variance_beyond_half_causes_no_failure(model_case, name):
    """4.8e7 is inf in half, and its BatchNorm would answer a constant. Folded first, plain rounding remains."""
    case = model_case(name)
    expected = run_on_ort(case.path, case.feed)["y"]
    found = case.emulator.run(Plan(), case.feed)["y"]
    assert np.abs(found - expected).max() < 4e-3 * np.abs(expected).max()
    assert np.ptp(expected) > 0.1


@pytest.mark.parametrize("name", ["conv_bn_relu", "standalone_bn", "gemm_bn_transposed_conv_bn"])
def test_no_folded_constant_is_beyond_half(model_case, name):
    read = {value.name for node in model_case(name).graph.nodes.values() for value in node.inputs}
    folded = {name: array for name, array in constants(model_case(name)).items() if name in read}
    assert folded
    assert all(np.abs(array).max() < 65504 for array in folded.values())


def test_a_folded_batch_norm_answers_to_the_layer_it_went_into(model_case):
    graph = model_case("conv_bn_relu").graph
    assert graph.plan(["bn"]) == graph.plan(["conv"]) == Plan.of(["conv"])
    graph = model_case("gemm_bn_transposed_conv_bn").graph
    assert graph.plan(["bn_gemm", "bn_deconv"]) == Plan.of(["gemm", "deconv"])


def test_a_batch_norm_is_not_folded_into_a_convolution_whose_output_is_the_users_too(model_case):
    case = model_case("conv_read_twice_before_bn")
    found = case.emulator.run(case.graph.all_pinned(), case.feed)
    expected = run_on_ort(case.path, case.feed)
    np.testing.assert_array_equal(found["c"], expected["c"])
    np.testing.assert_allclose(found["y"], expected["y"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("epsilon", [1e-5, 0.5])
@pytest.mark.parametrize("body", ["Relu(x)", "Conv(x, w)", "ConvTranspose(x, w)"])
def test_folding_changes_no_value_in_fp32(tmp_path, body, epsilon):
    model = parsed(
        f"""g (float[2,3,4,4] x) => (float[2,3,4,4] y) {{
          [first] a = {body}
          [norm] y = BatchNormalization <epsilon={epsilon}> (a, scale, bias, mean, var)
        }}""",
        w=normal(3, 3, 1, 1),
        **bn(3, 0.3),
    )
    case = save_case(Case("folded", model, {"x": normal(2, 3, 4, 4, seed=2)}), tmp_path)
    found = case.emulator.reference(case.feed)["y"]
    np.testing.assert_allclose(found, run_on_ort(case.path, case.feed)["y"], rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------------- constants


def test_constants_are_folded_in_fp32_before_anything_is_rounded(model_case):
    """300 * 300 passes 65504, 90000 / 300 does not: rounded first it would be infinite."""
    case = model_case("constant_nodes")
    assert [layer.name for layer in case.graph.layers] == ["use", "tail"]
    assert case.graph.aliases == {"folded": "use", "divided": "use"}
    read = [value.name for value in case.graph.nodes["use"].inputs]
    np.testing.assert_array_equal(constants(case)[read[1]], f32(300, 0, 0, 1).reshape(2, 2))
    assert np.isfinite(case.emulator.run(Plan(), case.feed)["y"]).all()


def test_a_size_that_folding_makes_known_is_known(tmp_path):
    body = "s = Floor(k) c = Cast<to = 7>(s) r = Reshape(x, c) y = Relu(r)"
    text = f"agraph (float[2, 6] x) => (float[a, b] y) {{ {body} }}"
    case = Case("reshaped", parsed(text, k=f32(3.5, 4.5)), {"x": normal(2, 6)})
    graph = save_case(case, tmp_path).graph
    assert [tuple(node.outputs[0].shape) for node in graph.nodes.values()] == [(3, 4), (3, 4)]


@pytest.mark.parametrize("tiny", [1e-12, 1e-30, 0.0])
def test_an_addition_is_never_dropped_for_its_constant_being_small(tmp_path, tiny):
    """An epsilon that is 0 in half must be seen to be 0, not taken out beforehand."""
    model = parsed("g (float[2] x) => (float[2] y) { [eps] a = Add(x, e) [root] y = Sqrt(a) }", e=f32(tiny))
    case = save_case(Case("epsilon", model, {"x": f32(0, 1)}), tmp_path)
    assert [layer.name for layer in case.graph.layers] == ["eps", "root"]
    assert case.emulator.run(case.graph.all_pinned(), case.feed)["y"][0] == np.sqrt(np.float32(tiny))
    assert case.emulator.run(Plan(), case.feed)["y"][0] == 0


def test_a_dead_layer_is_dropped_and_a_no_op_keeps_the_outputs_name(model_case):
    assert [layer.name for layer in model_case("optional_inputs").graph.layers] == ["clip", "pool"]
    assert model_case("identity_output").graph.outputs == ("y", "z")


# ----------------------------------------------------------------------------------------------- names


def test_unnamed_nodes_are_called_after_their_output_and_twins_are_told_apart(model_case):
    names = [layer.name for layer in model_case("unnamed_and_doubly_named").graph.layers]
    assert names == ["node_of_a", "twin", "twin_1", "node_of_y"]


def test_a_name_that_a_numbered_twin_would_take_stays_with_its_owner(tmp_path):
    model = parsed("g (float[2] x) => (float[2] y) { [a] p = Exp(x) [a] q = Neg(p) [a_1] y = Tanh(q) }")
    case = save_case(Case("names", model, {"x": f32(0, 1)}), tmp_path)
    layers = {layer.op: layer.name for layer in case.graph.layers}
    assert layers["Exp"] == "a"
    assert layers["Tanh"] == "a_1"
    assert len(set(layers.values())) == 3


@every_model
def test_names_are_the_same_at_every_reading_and_unique(model_case, name, tmp_path):
    again = save_case(MODELS[name](), tmp_path)
    names = [layer.name for layer in model_case(name).graph.layers]
    assert [layer.name for layer in again.graph.layers] == names
    assert len(set(names)) == len(names)
    assert again.graph.aliases == model_case(name).graph.aliases


NOWHERE = {  # constants, what nobody reads, a call whose body stands there instead
    "optional_inputs": {"dead"},
    "constant_nodes": {"left", "right"},
    "made_of_shapes": {"range", "wave"},
    "local_function": {"first", "second"},
}


@every_model
def test_every_layer_of_the_users_file_can_be_named(model_case, name):
    graph = model_case(name).graph
    for node in MODELS[name]().model.graph.node:
        if node.name and node.name not in NOWHERE.get(name, ()):
            graph.plan([node.name])


def test_a_no_op_before_an_output_answers_to_the_layer_that_computes_the_output(model_case):
    graph = model_case("identity_output").graph
    assert graph.plan(["noop"]) == Plan.of(["work"])
    assert model_case("mixed_softmax").graph.plan(["back"]) == Plan.of(["values"])
    assert model_case("mixed_softmax").graph.plan(["to_half"]) == Plan.of(["scores"])


def test_a_function_is_inlined_and_its_nodes_can_be_told_apart(model_case):
    names = [layer.name for layer in model_case("local_function").graph.layers]
    assert len(names) == len(set(names)) == 7
    assert names[-1] == "tail"


# ----------------------------------------------------------------------------------- what it computes


@every_model
def test_the_normalised_model_computes_what_the_users_model_computes(model_case, name):
    case = model_case(name)
    original = MODELS[name]().model
    for node in original.graph.node:
        node.name = ""  # ONNX Runtime refuses two nodes of one name
    expected = run_on_ort(original, case.feed)
    found = run_on_ort(raised(case), case.feed)
    for output, array in expected.items():
        rtol = 2.0**-10 if case.graph.io_types or name == "mixed_softmax" else 1e-6
        np.testing.assert_allclose(found[output], array, rtol=rtol, atol=1e-6 if rtol == 1e-6 else 1e-4)


def raised(model_case) -> onnx.ModelProto:
    model = model_case.graph.model.clone()
    close_branches(model)
    return ir.to_proto(model)


@every_model
def test_nothing_in_the_normalised_model_is_half(model_case, name):
    assert ir.DataType.FLOAT16 not in {value.dtype for value in all_values(model_case(name).graph.model)}


def all_values(model):
    for graph in model.graphs():
        yield from (*graph.inputs, *graph.initializers.values())
        for node in graph:
            yield from node.outputs


@pytest.mark.parametrize("name", ["mixed_softmax", "all_half"])
def test_half_weights_of_a_mixed_model_keep_their_values(model_case, name):
    given = MODELS[name]().model.graph.initializer[0]
    held = constants(model_case(name))[given.name]
    assert held.dtype == np.float32
    np.testing.assert_array_equal(held, onnx.numpy_helper.to_array(given).astype(np.float32))


def test_the_author_of_a_mixed_model_keeps_its_fp32_layers(model_case):
    roles = {layer.name: layer.role for layer in model_case("mixed_softmax").graph.layers}
    assert roles == {"scores": Role.COMPUTE, "softmax": Role.FIXED, "values": Role.COMPUTE}
    assert model_case("mixed_softmax").graph.plan(["softmax"]) == Plan()


def test_a_folded_constant_of_the_author_does_not_keep_its_reader_in_fp32(tmp_path):
    """The constant's root was taken in FP32, the product was not."""
    model = parsed(
        """g (float16[2] x) => (float16[2] y) {
          [root] r = Sqrt(c)
          [down] h = Cast <to=10> (r)
          [product] p = Mul(x, h)
          [exp] y = Exp(p)
        }""",
        c=f32(2, 3),
    )
    graph = save_case(Case("constant", model, {}), tmp_path).graph
    assert graph.candidates == ("product", "exp")


def test_in_a_pure_fp32_model_nobody_decided_anything(model_case):
    assert all(layer.role is Role.COMPUTE for layer in model_case("layernorm_overflow").graph.layers)


def test_the_users_half_inputs_and_outputs_are_remembered(model_case):
    assert set(model_case("all_half").graph.io_types) == {"x", "y", "b"}
    assert not model_case("mixed_softmax").graph.io_types


def test_normalising_twice_changes_nothing(model_case):
    case = model_case("conv_bn_relu")
    again = normalise(case.graph.model.clone())
    assert [node.name for node in again.model.graph] == [layer.name for layer in case.graph.layers]
    assert not again.aliases


# ---------------------------------------------------------------------------------------------- passes


def everything(tmp_path):
    """A model with two calls of a function, FP16 and FP32 layers, a constant, a BatchNorm that folds and one alone."""
    model = parsed(
        """g (float16[1,3,4,4] x) => (float[1,3,4,4] y) {
          [conv] c = Conv(x, w)
          [up] u = Cast <to=1> (c)
          [wide] f = Conv(u, v)
          [norm] n = BatchNormalization(f, scale, bias, mean, var)
          [first] a = local.gate(n)
          [second] a1 = local.gate(a)
          [alone] z = BatchNormalization(a1, scale, bias, mean, var)
          [low] one = Constant <value = float {1.0}> ()
          [two] two = Add(one, one)
          [dead] nobody = Exp(z)
          [last] y = Mul(z, two)
        }
        <domain: "local", opset_import: ["" : 17]>
        gate (p) => (r) { [sig] s = Sigmoid(p)  [mul] r = Mul(s, p) }""",
        w=normal(3, 3, 1, 1).astype(np.float16),
        v=normal(3, 3, 1, 1),
        **bn(3, 4.8e7),
    )
    return save_case(Case("everything", model, {"x": normal(1, 3, 4, 4, seed=2).astype(np.float16)}), tmp_path)


def every_node(model):
    return list(ir.traversal.RecursiveGraphIterator(model.graph))


def names_are_unique(state):
    names = [node.name for node in every_node(state.model)]
    return all(names) and len(set(names)) == len(names)


def every_tensor_has_a_type(state):
    return all(value.type is not None for value in all_values(state.model))


def norms_have_no_statistics(state):
    for node in state.model.graph:
        if node.op_type == "BatchNormalization":
            mean, variance = (value.const_value.numpy() for value in node.inputs[3:5])
            if mean.any() or (variance != 1).any() or node.attributes.get_float("epsilon"):
                return False
    return state.folded_norms == {"norm": "wide"}


HOLDS = {  # what is true after a pass; what is said of it in its docstring
    "free_dimensions": lambda state: all(
        not isinstance(size, int) or size >= 0 for value in state.model.graph.inputs for size in value.shape
    ),
    "inline_functions": lambda state: not state.model.functions,
    "expand_operators": lambda state: "FastGelu" not in {node.op_type for node in every_node(state.model)},
    "cut_before_plugins": lambda state: state.tail is None,
    "refuse_unsupported": lambda state: {node.domain for node in every_node(state.model)} == {""},
    "make_names_unique": names_are_unique,
    "constants_to_initializers": lambda state: "Constant" not in {node.op_type for node in every_node(state.model)},
    "infer_types": every_tensor_has_a_type,
    "raise_ir_version": lambda state: state.model.ir_version >= 4,
    "record_half_precision": lambda state: state.was_half and state.io_types == {"x": ir.DataType.FLOAT16},
    "raise_to_fp32": lambda state: (
        not {value.dtype for value in all_values(state.model)} & set(HALVES)
        and "Cast" not in {node.op_type for node in every_node(state.model)}
        and {"wide", "norm", "alone", "last"} <= state.author_fp32
        and not {"conv", "up"} & state.author_fp32
    ),
    "record_names": lambda state: state.consumers["conv"] == ("up",) and state.producers["c"] == "conv",
    "fold_constant_nodes": lambda state: "Add" not in {node.op_type for node in every_node(state.model)},
    "fold_batchnorm": norms_have_no_statistics,
    "remove_unused_nodes": lambda state: "dead" not in {node.name for node in every_node(state.model)},
    "restore_names": names_are_unique,
    "refuse_sequences": lambda state: all(isinstance(v.type, ir.TensorType) for v in all_values(state.model)),
    "complete_types": every_tensor_has_a_type,
    "refuse_constant_outputs": lambda state: len(state.model.graph) > 0,
    "open_if": lambda state: "If" not in {node.op_type for node in every_node(state.model)},
}


def test_after_each_pass_its_postcondition_holds(tmp_path, monkeypatch):
    ran = []

    def checked(graph_pass):
        def run(state):
            graph_pass(state)
            assert HOLDS[graph_pass.__name__](state), graph_pass.__name__
            ran.append(graph_pass.__name__)

        return run

    monkeypatch.setattr("trt_helper.onnx_model.normalise.PASSES", [checked(graph_pass) for graph_pass in PASSES])
    model_case = everything(tmp_path)
    assert [layer.op for layer in model_case.graph.layers if layer.name in ("conv", "wide", "alone", "last")] == [
        "Conv",
        "Conv",
        "BatchNormalization",
        "Mul",
    ]
    assert ran == list(HOLDS)


def test_every_pass_says_what_holds_after_it():
    assert all("Ensures:" in graph_pass.__doc__ for graph_pass in PASSES)


def test_a_bug_in_a_pass_is_reported_with_the_name_of_the_pass(tmp_path, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("trt_helper.onnx_model.normalise.rewrite", broken)
    with pytest.raises(ZeroDivisionError, match="a bug") as caught:
        _ = everything(tmp_path).graph
    assert "fold_batchnorm" in "".join(traceback.format_exception(caught.value))
    if sys.version_info >= (3, 11):
        assert caught.value.__notes__ == ["while normalising the model, in the pass 'fold_batchnorm'"]


def test_an_error_that_the_user_can_act_on_stays_as_it_is(tmp_path):
    model = parsed("g (float[2] x) => (float[2] y) { [dice] y = RandomNormalLike(x) }")
    with pytest.raises(ModelError, match="draws random numbers") as caught:
        _ = save_case(Case("dice", model, {}), tmp_path).graph
    assert not getattr(caught.value, "__notes__", [])
