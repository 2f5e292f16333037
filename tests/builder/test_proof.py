"""The proof of an engine: which of its pins are honoured, fused, demoted or gone."""

from __future__ import annotations

import pytest
from support.builder_models import HALF, built, convs, needs_rtx, requested, weights
from support.onnx_parts import FLOAT, model, node, value
from support.tensorrt_texts import INSPECTOR_10, INSPECTOR_11, RTX_17

from trt_helper.builder.kernel_precision import RequestedPrecision
from trt_helper.builder.layer_info import EngineLayer, EngineTensor, half_share, parse_layers
from trt_helper.builder.proof import prove


def proofs_of(folder, made, pins):
    """The proofs of `pins` in the engine of a typed model."""
    engine = built(folder, made)
    return prove(pins, engine.layers, requested(made), program=engine.program)


def of_op(**ops):
    """FP32 layers of these operators, and nothing else known of them."""
    return {name: RequestedPrecision(op) for name, op in ops.items()}


# ------------------------------------------------------------------------------------ proof of the pins


@needs_rtx
def test_a_lone_pinned_conv_is_demoted_and_with_its_relu_it_is_honoured(tmp_path):
    """RTX 1.7.1 rounds the lone Conv's FP32 weights to FP16, although the network says FP32."""
    alone = convs("mid", channels=64)
    lone = proofs_of(tmp_path, alone, ["mid"])[0]
    assert (lone.state, lone.types) == ("demoted", ("FP16",))
    assert lone.because.endswith("holds weights of FP16")
    pair = convs("mid", "r1", channels=64)
    proofs = proofs_of(tmp_path, pair, ["mid", "r1"])
    assert [(proof.layer, proof.state) for proof in proofs] == [("mid", "honoured"), ("r1", "honoured")]
    assert proofs[0].engine_layers == proofs[1].engine_layers


@needs_rtx
def test_half_share_follows_the_pins(tmp_path):
    layers = ("c0", "r0", "mid", "r1", "c2")
    full = built(tmp_path, convs(*layers)).layers
    mixed = built(tmp_path, convs("mid", "r1")).layers
    none = built(tmp_path, convs()).layers
    assert half_share(full) == 0.0
    assert 0.0 < half_share(mixed) < half_share(none) < 1.0


@needs_rtx
def test_a_relu_between_two_half_convs_is_honoured_in_the_epilogue_of_the_first(tmp_path):
    """The layer list shows halves at the border; the fused program inside names the Relu and its types."""
    proof = proofs_of(tmp_path, convs("r0"), ["r0"])[0]
    assert proof.state == "honoured"
    assert proof.engine_layers[0].startswith("__myl_CorrCastReluCast_")
    assert (proof.inputs, proof.weights, proof.outputs) == (("FP16",), ("FP16",), ("FP16",))
    assert proof.because.endswith("its step relu works on FP32")


@needs_rtx
def test_without_the_engines_text_that_relu_is_fused_and_its_company_is_named(tmp_path):
    made = convs("r0")
    proof = prove(["r0"], built(tmp_path, made).layers, requested(made))[0]
    assert proof.state == "fused"
    assert "together with c0; its operations are CorrCastReluCast" in proof.because


def attention(*pins):
    """Softmax attention in FP16 with `qk` or `sm` in FP32."""
    nodes = [node("Cast", ["x"], ["h"], "in_cast", to=HALF)]
    kinds = {"h": HALF}

    def add(op, inputs, name, **attributes):
        wanted = FLOAT if name in pins else HALF
        read = []
        for one in inputs:
            if kinds.get(one, HALF) != wanted:
                nodes.append(node("Cast", [one], [f"{one}_{name}"], f"{one}_{name}_cast", to=wanted))
                read.append(f"{one}_{name}")
            else:
                read.append(one)
        nodes.append(node(op, read, [name], name, **attributes))
        kinds[name] = wanted

    for name in "qkv":
        add("MatMul", ["h", f"w{name}"], name)
    add("Transpose", ["k"], "kt", perm=[0, 2, 1])
    add("MatMul", ["q", "kt"], "qk")
    add("Softmax", ["qk"], "sm", axis=-1)
    add("MatMul", ["sm", "v"], "pv")
    nodes.append(node("Cast", ["pv"], ["y"], "out_cast", to=FLOAT))
    held = [weights(f"w{name}", (64, 64), HALF) for name in "qkv"]
    return model(nodes, [value("x", [4, 32, 64])], [value("y", [4, 32, 64])], held)


@needs_rtx
@pytest.mark.parametrize(
    ("pins", "states"),
    [
        (["qk"], ["demoted"]),  # the same attention kernel, hash and all, as without any pin
        (["sm"], ["fused"]),  # another attention kernel, but its inside cannot be seen
        (["qk", "sm"], ["honoured", "honoured"]),
    ],
)
def test_pins_inside_an_attention_kernel_are_told_apart(tmp_path, pins, states):
    made = attention(*pins)
    assert [proof.state for proof in proofs_of(tmp_path, made, pins)] == states


@needs_rtx
def test_a_reduction_alone_with_its_casts_is_honoured_inside_its_kernel(tmp_path):
    made = model(
        [
            node("Cast", ["x"], ["f"], "up", to=FLOAT),
            node("ReduceMean", ["f"], ["m"], "mean", axes=[-1]),
            node("Cast", ["m"], ["y"], "down", to=HALF),
        ],
        [value("x", [4, 64], HALF)],
        [value("y", [4, 1], HALF)],
    )
    engine = built(tmp_path, made)
    proof = prove(["mean"], engine.layers, requested(made), program=engine.program)[0]
    assert proof.state == "honoured"
    assert "all its operations are FP32" in proof.because
    proof = prove(["mean"], engine.layers, requested(made))[0]  # an engine without text: the name spells the casts
    assert proof.state == "honoured"
    assert "casts inside" in proof.because
    assert prove(["mean"], engine.layers, {})[0].state == "fused"  # casts not known: company unknown


def test_a_pin_that_no_engine_layer_names_is_gone():
    proof = prove(["x"], parse_layers(RTX_17), {})[0]
    assert (proof.state, proof.engine_layers, proof.proven) == ("gone", (), False)


def test_a_set_of_pins_is_proven_by_name_and_a_list_in_its_order():
    layers = parse_layers(RTX_17)
    assert [one.layer for one in prove({"r0", "c0"}, layers, {})] == ["c0", "r0"]
    assert [one.layer for one in prove(["r0", "c0"], layers, {})] == ["r0", "c0"]


def test_scale_factors_do_not_make_a_half_layer_float():
    """A demoted GEMM holds its alpha and beta as FP32 constants of one element (RTX 1.7.1)."""
    layer = parse_layers(RTX_17)[0]
    assert [one.dtype for one in layer.constants] == ["FP16", "FP32"]
    assert layer.operand_types == {"FP16"}
    assert prove(["c0"], [layer], of_op(c0="Conv"))[0].state == "demoted"


def test_weights_decide_over_inputs_and_over_the_bias():
    text = INSPECTOR_11.replace('"Datatype": "Half", "Role": "weights"', '"Datatype": "Float"')
    proof = prove(["conv"], parse_layers(text), of_op(conv="Conv"))[0]
    assert (proof.state, proof.types) == ("honoured", ("FP16", "FP32"))


def kernel(name, kind, onnx_layers, read, written="FP16"):
    inputs, outputs = (EngineTensor("i", read, (4, 4)),), (EngineTensor("o", written, (4, 4)),)
    return EngineLayer(name, kind, tuple(onnx_layers), inputs, (), outputs)


def test_a_kernel_that_pads_the_input_does_not_speak_for_a_matmul():
    """RTX 1.7.1 names a dynamic MatMul in the kernels that pad its inputs too."""
    layers = [
        kernel("__myl_CastReplConc_myl0_1", "kgen", ["mm"], "FP16", "FP32"),
        kernel("mm_myl0_3", "gemm", ["mm"], "FP32", "FP32"),
    ]
    assert prove(["mm"], layers, of_op(mm="MatMul"))[0].state == "honoured"


def test_a_kernel_that_only_moves_does_not_speak_for_a_sum():
    """Where the engine shows no text: a kernel that clears or copies names the layer that it does so for."""
    move = kernel("__myl_Move_myl0_1", "kgen", ["sum", "other"], "FP16")
    assert (
        prove(["sum"], [move, kernel("__myl_Sum_myl0_2", "kgen", ["sum"], "FP32", "FP32")], {})[0].state == "honoured"
    )
    assert prove(["sum"], [move, kernel("__myl_Sum_myl0_2", "kgen", ["sum"], "FP16")], {})[0].state == "demoted"
    assert prove(["sum"], [move], {})[0].state == "demoted"  # nothing else does


def test_a_pin_in_two_kernels_is_as_good_as_the_worse_one():
    layers = [
        kernel("__myl_Sub_myl0_0", "kgen", ["norm"], "FP32", "FP32"),
        kernel("__myl_Mul_myl0_1", "kgen", ["norm"], "FP16"),
    ]
    assert prove(["norm"], layers, {})[0].state == "demoted"
    assert prove(["norm"], layers[:1], {})[0].state == "honoured"


@pytest.mark.parametrize(
    ("operations", "state"),
    [("MulExpCast", "honoured"), ("CastMulCastExpCast", "fused"), ("MulExp", "honoured")],
)
def test_a_cast_before_the_end_of_a_shared_kernel_leaves_the_type_open(operations, state):
    layers = [kernel(f"__myl_{operations}_myl0_0", "kgen", ["mul", "exp"], "FP32")]
    assert prove(["exp"], layers, {})[0].state == state


@pytest.mark.parametrize(("read", "state"), [("FP32", "fused"), ("FP16", "honoured")])
def test_a_cast_of_fp32_before_the_arithmetic_of_a_pin_alone_leaves_the_type_open(read, state):
    """RTX 1.4.0 makes __myl_CastReshMulSum, which reads FP32 and multiplies in FP16, of an FP16 product."""
    layers = [kernel("__myl_CastMul_myl0_0", "kgen", ["mul"], read)]
    assert prove(["mul"], layers, {})[0].state == state


def test_a_layer_without_types_proves_nothing():
    text = INSPECTOR_10.replace("Row major linear FP16 format", "N/A due to dynamic shapes")
    text = text.replace('"Type": "Half"', '"Type": "?"')
    assert [one.state for one in prove(["conv1"], parse_layers(text), of_op(conv1="Conv"))] == ["unknown"]
    assert [one.state for one in prove(["relu1"], parse_layers(text), {})] == ["unknown"]
