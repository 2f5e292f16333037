"""The precision of a layer inside a fused kernel: proven for pins that are kept, never for pins that were left out."""

from __future__ import annotations

import onnx
import pytest
from support import zoo_cases  # noqa: F401 - fills CASES
from support.builder_models import ROOT, needs_rtx
from support.false_claims import Claims
from support.zoo import CASES

from trt_helper.builder.build import build
from trt_helper.builder.engine_program import Kernel, Program, read_program
from trt_helper.builder.kernel_precision import ABSENT, Claim, RequestedPrecision, kernel_precision
from trt_helper.builder.layer_info import EngineLayer, EngineTensor
from trt_helper.builder.proof import prove
from trt_helper.builder.requested_precision import requested_precisions
from trt_helper.builder.settings import BuildSettings
from trt_helper.inputs.sample import Sample
from trt_helper.onnx_model.graph import read_graph
from trt_helper.onnx_model.load import load
from trt_helper.onnx_model.typed import render, write

# ---------------------------------------------------------------------------------------------- pins that are not there


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


# ---------------------------------------------------------------------------------------------------- what is concluded


def judged(operations, requested, pins=("pin",)):
    """What a kernel with these operations, and with these layers in it, says of the first pin."""
    one = EngineLayer("__myl_Some_myl0_1", "kgen", tuple(requested))
    program = Program((), (Kernel("__myl_Some", one.onnx_layers, (operations,)),))
    return kernel_precision(pins[0], one, Claim([one], program, frozenset(pins), requested)).precision


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


@pytest.mark.parametrize(("weight_type", "state"), [("FP32", "honoured"), ("FP16", "fused")])
def test_a_product_whose_inside_decides_nothing_is_as_its_weights_are(weight_type, state):
    """Two products in one kernel, of which one may be FP16; weights in FP32 are multiplied in FP32."""
    weight = EngineTensor("w", weight_type, (16, 16))
    tensors = (EngineTensor("x", "FP32", (1, 16)),), (weight,), (EngineTensor("y", "FP16", (1, 16)),)
    one = EngineLayer("__myl_MulSum_myl0_5", "kgen", ("product", "mystery"), *tensors)
    program = Program((), (Kernel("__myl_MulSum", one.onnx_layers, ({("mul", "FP32"): 1, ("mul", "FP16"): 1},)),))
    known = {"product": RequestedPrecision("MatMul"), "mystery": RequestedPrecision("Mystery", half=True)}
    assert prove(["product"], [one], known, program=program)[0].state == state


def test_a_pin_that_may_be_rounded_does_not_stand_for_one_that_may_not():
    """One of the two kept calls is of the full layer; of the other one a rounded call would do, and there is none."""
    requested = {
        "pin": RequestedPrecision("Mul", alone=True),
        "full": RequestedPrecision("Mul", full=True),
        "half": RequestedPrecision("Mul", half=True),
    }
    assert judged({("mul", "FP32"): 1, ("mul", "ROUNDED"): 1, ("mul", "FP16"): 1}, requested) == "FP32"
    assert judged({("mul", "FP32"): 1, ("mul", "FP16"): 1}, requested) == ""
    assert judged({("mul", "ROUNDED"): 2, ("mul", "FP16"): 1}, requested) == ""


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
    requested = {"pin": RequestedPrecision("Mul"), "norm": norm}
    assert judged(own | {("mul", "FP32"): 2}, requested) == ""  # both are the norm's
    assert judged(own | {("mul", "FP32"): 3}, requested) == "FP32"


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
