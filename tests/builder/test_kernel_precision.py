"""What an engine's own text says of the inside of its kernels, and that it cannot be talked into more."""

from __future__ import annotations

import onnx
import pytest
from support import zoo_cases  # noqa: F401 - fills CASES
from support.builder_models import ROOT, built, convs, model, needs_rtx, node, requested, value, weights
from support.false_claims import Claims
from support.zoo import CASES

from trt_helper.builder.build import build
from trt_helper.builder.engine_program import Kernel, Program, read_program
from trt_helper.builder.kernel_precision import ABSENT, Claim, RequestedPrecision, kernel_precision
from trt_helper.builder.kernel_source import KernelSource
from trt_helper.builder.layer_info import EngineLayer, EngineTensor
from trt_helper.builder.proof import prove
from trt_helper.builder.requested_precision import requested_precisions
from trt_helper.builder.settings import BuildSettings
from trt_helper.inputs.samples import Sample
from trt_helper.onnx_model.graph import read_graph
from trt_helper.onnx_model.load import load
from trt_helper.onnx_model.typed import render, write

# --------------------------------------------------------------------------------- pins that are not there

# An overflow in a LayerNorm, one in a fourth power, quotients, a softmax, branches, dynamic shapes.
MODELS = ROOT.parent / "shared" / "models"
FUSED = ("layernorm_square", "fourth_power", "divided_by_small", "softmax_raw", "vote_of_three", "longer_sample")


def of_zoo(name, folder):
    case = CASES[name]
    onnx.save(case.make(), folder / "model.onnx")
    samples = [Sample("", feed) for feed in case.samples(0)]
    return Claims(read_graph(load(folder / "model.onnx")), case.culprits[0], samples, folder)


@needs_rtx
@pytest.mark.parametrize("name", FUSED)
def test_pins_in_fused_kernels_are_proven_and_pins_that_were_left_out_are_not(tmp_path, name):
    """Each engine is built with one pin less than is claimed: that one must never be called honoured."""
    claims = of_zoo(name, tmp_path)
    assert set(claims.states(claims.pins).values()) == {"honoured"}
    for left_out, states in claims.false():
        assert "honoured" not in states.values(), left_out


@needs_rtx
def test_the_pins_of_magika_are_told_from_their_absence(tmp_path):
    """Square, Sum_1 and truediv_1 of its LayerNorm_1 lie in two kernels with FP16 layers; INDEX.md has the plan."""
    path = MODELS / "magika_standard_v3_3" / "model.onnx"
    if not path.is_file():
        pytest.skip(f"the real models are not here: {path} does not exist")
    graph = read_graph(load(path))
    names = ("LayerNorm_1/Square", "LayerNorm_1/Sum_1", "LayerNorm_1/truediv_1")
    claims = Claims(graph, [name for name in graph.candidates if name.endswith(names)], [], tmp_path)
    assert list(claims.states(claims.pins).values()) == ["honoured"] * 3
    for left_out, states in claims.false():
        assert "honoured" not in states.values(), left_out


# -------------------------------------------------------------------------------------- a kernel's source


def half(operation, *read):
    return f"__myln_{operation}___myln_half___myln_half({' , '.join(read)})"


def full(operation, *read):
    return f"__myln_{operation}___myln_float___myln_float({' , '.join(read)})"


UP, DOWN = "__myln_cast<__myln_float, __myln_half>({})", "__myln_cast<__myln_half, __myln_float>({})"
LOAD_HALF, LOAD_FULL = "((__myln_half*)__v90)[(0 + ({}))]", "((__myln_float*)__v91)[(0 + ({}))]"


def source(*statements, kept=""):
    """A kernel whose value __v1, __v2, ... are these, and which stores or returns `kept`."""
    lines = [f"  __v{number} = {text};" for number, text in enumerate(statements, 1)]
    return "{\n" + "\n".join([*lines, kept]) + "\n}"


def test_an_operation_counts_in_the_type_that_its_call_spells():
    text = source(LOAD_HALF.format("__v5"), half("mul", "__v1", "__v1"), UP.format("__v2"), full("exp", "__v3"))
    assert KernelSource(f"{text} ((__myln_float*)__v9)[0] = __v4;").count() == {("mul", "FP16"): 1, ("exp", "FP32"): 1}


def test_a_choice_and_a_comparison_count_in_the_type_of_their_values_and_not_of_the_condition():
    """As TensorRT-RTX 1.4.0 and 1.7.1 spell `Where` and `Greater`: result, then what is read."""
    text = source(
        LOAD_HALF.format("0"),
        LOAD_FULL.format("0"),
        "__myln_gtr___myln_bool___myln_half(__v1 , __v1)",
        "__myln_gtr___myln_bool___myln_float(__v2 , __v2)",
        "__myln_select___myln_half___myln_bool(__v3 , __v1 , __v1)",
        "__myln_select___myln_float___myln_bool(__v4 , __v2 , __v2)",
        kept="return __v6;",
    )
    assert KernelSource(text).count() == {
        ("gtr", "FP16"): 1,
        ("gtr", "FP32"): 1,
        ("select", "FP16"): 1,
        ("select", "FP32"): 1,
    }


def test_fp32_that_is_copied_on_its_way_is_followed():
    steps = [LOAD_FULL.format("0"), "__v1", "__v2", full("exp", "__v3"), "__v4", "__v5", DOWN.format("__v6")]
    assert KernelSource(source(*steps)).count() == {("exp", "FP32"): 1}
    steps[0] = LOAD_HALF.format("0")
    steps[1] = UP.format("__v1")
    assert KernelSource(source(*steps)).count() == {("exp", "ROUNDED"): 1}
    assert KernelSource(source(*steps[:6], full("log", "__v6"), DOWN.format("__v7"))).count()["exp", "FP32"] == 1


def test_fp32_between_two_roundings_is_told_from_fp32_that_is_kept():
    lines = [LOAD_HALF.format("0"), UP.format("__v1"), full("exp", "__v2"), DOWN.format("__v3")]
    assert KernelSource(source(*lines)).count() == {("exp", "ROUNDED"): 1}
    assert KernelSource(source(*lines, kept="return __v3;")).count() == {("exp", "FP32"): 1}
    assert KernelSource(source(*lines[:3], full("log", "__v3"), DOWN.format("__v4"))).count() == {
        ("exp", "FP32"): 1,
        ("log", "FP32"): 1,
    }


def test_numbers_and_scalar_arguments_do_not_make_a_rounded_operation_fp32():
    lines = [LOAD_HALF.format("0"), UP.format("__v1")]
    for number in ("0x1.4f8b58p-17f", "-0x1p+3f", "(1.500000000e+00)", "*(__myln_float*)live_inouts[4]"):
        text = source(*lines, number, full("mul", "__v2", "__v3"), DOWN.format("__v4"))
        assert KernelSource(text).count() == {("mul", "ROUNDED"): 1}, number


def test_an_fp32_tensor_that_is_read_makes_it_fp32():
    text = source(LOAD_HALF.format("0"), UP.format("__v1"), LOAD_FULL.format("0"), full("mul", "__v2", "__v3"))
    assert KernelSource(f"{text} __v9 = {DOWN.format('__v4')};").count() == {("mul", "FP32"): 1}


def test_what_a_later_phase_computes_again_counts_once():
    again = source(LOAD_HALF.format("__v70"), half("exp", "__v1"), LOAD_HALF.format("__v71"), half("exp", "__v3"))
    assert KernelSource(again).count() == {("exp", "FP16"): 1}
    other = again.replace("__v90)[(0 + (__v71", "__v92)[(0 + (__v71")  # another tensor
    assert KernelSource(other).count() == {("exp", "FP16"): 2}


def test_scalar_arguments_are_different_values():
    text = source(
        "*(__myln_half*)live_inouts[4]",
        "*(__myln_half*)live_inouts[5]",
        LOAD_HALF.format("0"),
        half("mul", "__v3", "__v1"),
        half("mul", "__v3", "__v2"),
    )
    assert KernelSource(text).count() == {("mul", "FP16"): 2}


def test_the_lanes_of_a_vector_are_one_value():
    text = (
        "{ __v1 = ((__myln_vtype<__myln_half,2,4>*)__v90)[(0)];\n"
        f"__v2.values[0] = {half('exp', '__v1.values[0]')};\n__v2.values[1] = {half('exp', '__v1.values[1]')};\n}}"
    )
    assert KernelSource(text).count() == {("exp", "FP16"): 1}


@pytest.mark.parametrize("one", ["0x1p+0f", "(1.000000000e+00)"])  # 1.7 and 1.4
def test_a_quotient_that_is_made_as_a_product_is_as_rounded_as_what_it_reads(one):
    lines = [LOAD_HALF.format("0"), UP.format("__v1"), one, full("div", "__v3", "__v2"), full("mul", "__v2", "__v4")]
    assert KernelSource(source(*lines, DOWN.format("__v5"))).count()["mul", "ROUNDED"] == 1
    lines[1] = LOAD_FULL.format("0")
    assert KernelSource(source(*lines, DOWN.format("__v5"))).count()["mul", "FP32"] == 1


# ------------------------------------------------------------------------------------- what is concluded


def judged(operations, asked_for, pins=("pin",)):
    """What a kernel with these operations, and with these layers in it, says of the first pin."""
    one = EngineLayer("__myl_Some_myl0_1", "kgen", tuple(asked_for))
    program = Program((), (Kernel("__myl_Some", one.onnx_layers, (operations,)),))
    return kernel_precision(pins[0], one, Claim([one], program, frozenset(pins), asked_for)).precision


def test_counts_that_the_layers_account_for_prove_the_pin_and_others_do_not():
    both = {"pin": RequestedPrecision("Mul"), "beside": RequestedPrecision("Mul", half=True)}
    assert judged({("mul", "FP32"): 1, ("mul", "FP16"): 1}, both) == "FP32"
    assert judged({("mul", "FP16"): 2, ("add", "FP32"): 1}, both) == "FP16"
    assert judged({("mul", "FP32"): 1, ("mul", "FP16"): 2}, both) == ""
    assert judged({("mul", "ROUNDED"): 1, ("mul", "FP16"): 1}, both) == ""


def test_a_kernel_that_computes_only_what_others_account_for_says_nothing_of_the_pin():
    """Kernels also name layers that they only read from."""
    both = {"pin": RequestedPrecision("Mul"), "beside": RequestedPrecision("Mul", half=True)}
    assert judged({("mul", "FP16"): 1, ("add", "FP32"): 1}, both) == ABSENT


def test_a_small_product_that_casts_what_it_reads_is_not_judged_by_its_border():
    """mnist's Times212 on RTX 1.4.0: FP32 comes in, and is multiplied in FP16."""
    tensors = (EngineTensor("x", "FP32", (1, 16)),), (), (EngineTensor("y", "FP16", (1, 10)),)
    one = EngineLayer("__myl_CastReshMulSum_myl0_5", "kgen", ("cast", "product"), *tensors)
    for dtype, state in (("FP16", "demoted"), ("FP32", "honoured")):
        kernel = Kernel("__myl_CastReshMulSum", one.onnx_layers, ({("mul", dtype): 1, ("AddOp", dtype): 1},))
        known = {
            "product": RequestedPrecision("MatMul", full=True),
            "cast": RequestedPrecision("Cast", half=True, full=True),
        }
        proof = prove(["product"], [one], known, program=Program((), (kernel,)))[0]
        assert proof.state == state


@pytest.mark.parametrize(("held", "state"), [("FP32", "honoured"), ("FP16", "fused")])
def test_a_product_whose_inside_decides_nothing_is_as_its_weights_are(held, state):
    """Two products in one kernel, of which one may be FP16; weights in FP32 are multiplied in FP32."""
    weight = EngineTensor("w", held, (16, 16))
    tensors = (EngineTensor("x", "FP32", (1, 16)),), (weight,), (EngineTensor("y", "FP16", (1, 16)),)
    one = EngineLayer("__myl_MulSum_myl0_5", "kgen", ("product", "mystery"), *tensors)
    program = Program((), (Kernel("__myl_MulSum", one.onnx_layers, ({("mul", "FP32"): 1, ("mul", "FP16"): 1},)),))
    known = {"product": RequestedPrecision("MatMul"), "mystery": RequestedPrecision("Mystery", half=True)}
    assert prove(["product"], [one], known, program=program)[0].state == state


def test_a_pin_that_may_be_rounded_does_not_stand_for_one_that_may_not():
    """One of the two kept calls is of the full layer; of the other one a rounded call would do, and there is none."""
    asked_for = {
        "pin": RequestedPrecision("Mul", alone=True),
        "full": RequestedPrecision("Mul", full=True),
        "half": RequestedPrecision("Mul", half=True),
    }
    assert judged({("mul", "FP32"): 1, ("mul", "ROUNDED"): 1, ("mul", "FP16"): 1}, asked_for) == "FP32"
    assert judged({("mul", "FP32"): 1, ("mul", "FP16"): 1}, asked_for) == ""
    assert judged({("mul", "ROUNDED"): 2, ("mul", "FP16"): 1}, asked_for) == ""


def test_a_quotient_beside_the_pin_may_be_made_as_a_product_with_a_reciprocal():
    both = {"pin": RequestedPrecision("Reciprocal"), "beside": RequestedPrecision("Div", half=True)}
    assert judged({("rcp", "FP32"): 1, ("rcp", "FP16"): 1, ("div", "FP16"): 1}, both) == "FP32"
    beside = {"pin": RequestedPrecision("Reciprocal"), "beside": RequestedPrecision("Mul", half=True)}
    assert judged({("rcp", "FP32"): 1, ("rcp", "FP16"): 1, ("mul", "FP16"): 1}, beside) == ""


@pytest.mark.parametrize(("name", "layers"), [("__myl_Other", ("pin",)), ("__myl_Some", ("pin", "strange"))])
def test_the_source_of_another_kernel_says_nothing_of_this_one(name, layers):
    one = EngineLayer("__myl_Some_myl0_1", "kgen", ("pin",))
    program = Program((), (Kernel(name, layers, ({("mul", "FP32"): 1},)),))
    claim = Claim([one], program, frozenset({"pin"}), {"pin": RequestedPrecision("Mul")})
    assert kernel_precision("pin", one, claim) is None


def test_a_pin_alone_may_be_rounded_on_both_sides_as_its_casts_do():
    both = {"pin": RequestedPrecision("Mul", alone=True), "beside": RequestedPrecision("Mul", half=True)}
    assert judged({("mul", "ROUNDED"): 1, ("mul", "FP16"): 1}, both) == "FP32"


def test_a_layer_that_is_not_known_may_be_the_one_that_is_computed():
    both = {"pin": RequestedPrecision("Mul"), "beside": RequestedPrecision("Mystery", half=True)}
    assert judged({("mul", "FP32"): 1, ("mul", "FP16"): 1}, both) == ""
    assert judged({("mul", "FP32"): 2, ("exp", "FP16"): 1}, both) == "FP32"


@pytest.mark.parametrize(
    ("read", "operations", "state"),
    [
        ("FP32", {("tanh", "FP32"): 1, ("mul", "FP32"): 3}, "honoured"),
        ("FP32", {("tanh", "FP16"): 1, ("mul", "FP32"): 3}, "fused"),
        ("FP32", {("tanh", "ROUNDED"): 1, ("mul", "FP32"): 3}, "fused"),
        ("FP16", {("tanh", "FP32"): 1}, "fused"),
    ],
)
def test_a_recurrent_layer_is_fp32_where_everything_in_its_kernels_is(read, operations, state):
    """Its product alone says nothing: what is behind it, in a kernel of its own, may have become FP16."""
    x, h, y = EngineTensor("x", "FP32", (1, 16)), EngineTensor("h", read, (1, 64)), EngineTensor("y", "FP16", (1, 16))
    product = EngineLayer("lstm_myl0_1", "gemm", ("lstm",), (x,), (EngineTensor("w", "FP32", (16, 64)),), (h,))
    rest = EngineLayer("__myl_TanhMul_myl0_2", "kgen", ("lstm", "beside"), (h,), (), (y,))
    program = Program((), (Kernel("__myl_TanhMul", rest.onnx_layers, (operations,)),))
    known = {"lstm": RequestedPrecision("LSTM", full=True), "beside": RequestedPrecision("Relu", half=True)}
    assert prove(["lstm"], [product, rest], known, program=program)[0].state == state


def test_a_normalisation_beside_the_pin_brings_its_own_fp32():
    norm = RequestedPrecision("LayerNormalization", half=True)
    own = {("AddOp", "FP32"): 2, ("sub", "FP32"): 1, ("add", "FP32"): 1, ("sqrt", "FP32"): 1, ("rcp", "FP32"): 1}
    own |= {("mul", "FP16"): 1, ("add", "FP16"): 1}
    asked_for = {"pin": RequestedPrecision("Mul"), "norm": norm}
    assert judged(own | {("mul", "FP32"): 2}, asked_for) == ""  # both are the norm's
    assert judged(own | {("mul", "FP32"): 3}, asked_for) == "FP32"


def test_an_fp32_layer_that_is_no_pin_brings_its_own_fp32():
    """Such as the guard of another pin."""
    beside = {"guard": RequestedPrecision("Max", full=True), "half": RequestedPrecision("Max", half=True)}
    assert judged({("max", "FP32"): 1, ("max", "FP16"): 1}, {"pin": RequestedPrecision("Max")} | beside) == ""
    assert judged({("max", "FP32"): 2, ("max", "FP16"): 1}, {"pin": RequestedPrecision("Max")} | beside) == "FP32"
    assert (
        judged({("max", "FP32"): 1, ("max", "FP16"): 1}, {"pin": RequestedPrecision("Max")} | {"half": beside["half"]})
        == "FP32"
    )


def test_layers_with_one_formula_may_be_computed_once():
    same = {name: RequestedPrecision("Mul", formula="x") for name in ("pin", "other")}
    beside = {"half": RequestedPrecision("Exp", half=True)}
    assert judged({("mul", "FP32"): 1, ("exp", "FP16"): 1}, same | beside, ("pin", "other")) == "FP32"
    differ = {"pin": RequestedPrecision("Mul", formula="x"), "other": RequestedPrecision("Mul", formula="y")} | beside
    assert judged({("mul", "FP32"): 1, ("mul", "FP16"): 1, ("exp", "FP16"): 1}, differ, ("pin", "other")) == ""


# -------------------------------------------------------------------------------------- what is asked for


def test_what_a_typed_model_asks_of_its_layers():
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


# ------------------------------------------------------------------------------------------ strange files


@needs_rtx
def test_a_source_that_stands_there_twice_with_other_operations_is_not_believed(tmp_path):
    """A model could carry such text in a name: it must not prove a pin."""
    claims = of_zoo("layernorm_square", tmp_path)
    typed = render(claims.graph, claims.graph.plan(claims.pins))
    write(typed, tmp_path / "typed.onnx")
    engine = build(tmp_path / "typed.onnx", tmp_path / "m.trt", profiles=[], settings=BuildSettings())
    data = engine.path.read_bytes()
    names = {line.split(b"(")[0] for line in data.split(b'extern "C" __global__ void ')[1:]}
    forged = b"".join(b'\0extern "C" __global__ void %s(\n{ __v1 = 0x1p+0f; }\n' % name for name in names)
    (tmp_path / "forged.trt").write_bytes(data + forged)
    known = requested_precisions(typed.model)
    assert all(one.proven for one in prove(claims.pins, engine.layers, known, program=engine.program))
    proofs = prove(claims.pins, engine.layers, known, program=read_program(tmp_path / "forged.trt"))
    assert not any(proof.proven for proof in proofs)


def test_a_file_without_text_says_nothing(tmp_path):
    path = tmp_path / "m.trt"
    for data in (b"ftrt" + bytes(range(256)) * 40, b"\ndescriptors {\n", b"\ndescriptors {\n}\nmain {\nx", b"vtrt"):
        path.write_bytes(data)
        assert read_program(path) == Program()


@needs_rtx
@pytest.mark.parametrize("name", ['a" b', "a }", "naïve/ü", "a layers=", "x={ name="])
def test_a_strange_layer_name_is_read_or_proves_nothing(tmp_path, name):
    made = convs("r0")
    for one in made.graph.node:
        one.name = name if one.name == "r0" else one.name
    engine = built(tmp_path, made)
    proof = prove([name], engine.layers, requested(made), program=engine.program)[0]
    assert proof.state in ("honoured", "fused")
