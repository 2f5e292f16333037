"""Which FP32 layers the author of a file decided, and files in BF16 and FP64."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from support.independent import run_on_ort
from support.model_cases import save_case
from support.models import Case, f32, normal, parsed

from trt_helper.builder.convert import convert
from trt_helper.inputs.references import references
from trt_helper.inputs.samples import load_samples
from trt_helper.onnx_model.typed import render, write
from trt_helper.search.locate import locate
from trt_helper.values import Plan, Role, Tolerance

W = normal(4, 4, seed=1, scale=1)
DECIDED = {  # graph, and the layers that a plan may pin: nobody decided them
    "half output": (
        """g (float[2,4] x) => (float[2,4] y, float16[2,4] h) {
          [product] p = MatMul(x, w) [exp] y = Exp(p) [down] h = Cast <to=10> (y)
        }""",
        {"product", "exp"},
    ),
    "half input": (
        "g (float16[2,4] x) => (float[2,4] y) { [up] u = Cast <to=1> (x) [product] p = MatMul(u, w) [exp] y = Exp(p) }",
        {"product", "exp"},
    ),
    "stored table": (
        """g (int64[2] x) => (float[2,4] y) {
          [rows] r = Gather(half, x) [up] u = Cast <to=1> (r) [product] p = MatMul(u, w) [exp] y = Exp(p)
        }""",
        {"product", "exp"},
    ),
    "moved half": (
        """g (float16[4,2] x) => (float[2,4] y) {
          [turn] t = Transpose(x) [up] u = Cast <to=1> (t) [exp] y = Exp(u)
        }""",
        {"exp"},
    ),
    "a branch beside arithmetic in half": (
        """g (float[2,4] x) => (float[2,4] y, float[2,4] z) {
          [exp] y = Exp(x)
          [down] h = Cast <to=10> (x) [half_exp] e = Exp(h) [up] u = Cast <to=1> (e) [log] z = Log(u)
        }""",
        {"exp", "half_exp"},
    ),
    "a head beside the trunk of half arithmetic": (
        """g (float[2,4] x) => (float[2,4] y, float[2,4] z) {
          [trunk] t = Tanh(x) [head] y = Exp(t)
          [down] h = Cast <to=10> (t) [half_exp] e = Exp(h) [up] z = Cast <to=1> (e)
        }""",
        {"head", "half_exp"},
    ),
    "an island in a half model": (
        """g (float16[2,4] x) => (float16[2,4] y) {
          [first] a = Tanh(x) [up] u = Cast <to=1> (a) [square] s = Mul(u, u) [root] r = Sqrt(s)
          [down] d = Cast <to=10> (r) [last] y = Exp(d)
        }""",
        {"first", "last"},
    ),
    "an island in a branch": (
        """g (bool c, float16[2,4] x) => (float16[2,4] y) {
          [choose] y = If (c) <
            then_branch = t () => (float16[2,4] a) {
              [first] f = Tanh(x) [up] u = Cast <to=1> (f) [root] r = Sqrt(u)
              [down] d = Cast <to=10> (r) [last] a = Exp(d)
            },
            else_branch = e () => (float16[2,4] b) { [other] b = Neg(x) }>
        }""",
        {"first", "last", "other"},
    ),
    "one half layer in the middle": (
        """g (float[2,4] x) => (float[2,4] y) {
          [first] a = Tanh(x) [down] d = Cast <to=10> (a) [middle] m = Exp(d) [up] u = Cast <to=1> (m) [last] y = Log(u)
        }""",
        {"middle"},
    ),
}


@pytest.mark.parametrize("name", DECIDED)
def test_a_layer_is_the_authors_where_casts_lead_to_or_from_arithmetic_in_half(tmp_path, name):
    text, expected = DECIDED[name]
    weights = {"w": W, "half": normal(5, 4).astype(np.float16)}
    model = parsed(text, **{key: array for key, array in weights.items() if f"{key})" in text or f"{key}," in text})
    graph = save_case(Case("mixed", model, {}), tmp_path).graph
    assert set(graph.candidates) == expected
    authors = [layer.name for layer in graph.layers if layer.role is Role.FIXED]
    assert sum(graph.unjudged.values()) == len([name for name in authors if name != "choose"])


def as_brain(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with every FP32 input, output and weight in BF16."""
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.BFLOAT16
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        bits = (array.view(np.uint32) >> 16).astype(np.uint16)
        tensor.CopyFrom(
            onnx.helper.make_tensor(tensor.name, onnx.TensorProto.BFLOAT16, array.shape, bits.tobytes(), raw=True)
        )
    return model


TEXT = "g (float[2,4] x) => (float[2,4] y) { [product] p = MatMul(x, w) [large] q = Mul(p, k) [root] y = Sqrt(q) }"


def test_a_bf16_model_is_read_judged_and_built(tmp_path):
    """FP16 ends at 65504, BF16 does not: the product with 1e5 needs FP32. Inputs and outputs stay BF16."""
    graph = save_case(
        Case("brain", as_brain(parsed(TEXT.replace("Tanh", "Sqrt"), w=np.abs(W), k=f32(2.0**18))), {}), tmp_path
    ).graph
    x = np.abs(normal(2, 4, seed=3, scale=1))
    np.savez(tmp_path / "s.npz", x=x)
    samples = load_samples(graph, [tmp_path / "s.npz"])
    assert not (samples[0].feed["x"].view(np.uint32) & 0xFFFF).any()  # reference and emulator read BF16 values
    weights = (np.abs(W).view(np.uint32) & 0xFFFF0000).view(np.float32)
    expected = np.sqrt((samples[0].feed["x"] @ weights) * np.float32(2.0**18))
    (found,) = references(graph, samples)
    np.testing.assert_allclose(found["y"], expected, rtol=1e-6)
    located = locate(graph, samples, Tolerance(atol=0, rtol=0.02))
    assert located.plan.fp32 == {"large", "root"}
    write(render(graph, located.plan), tmp_path / "typed.onnx")
    typed = onnx.load(tmp_path / "typed.onnx").graph
    assert {v.type.tensor_type.elem_type for v in (*typed.input, *typed.output)} == {onnx.TensorProto.BFLOAT16}
    states = {proof.layer: proof.state for proof in convert(graph, located.plan, engine=tmp_path / "m.trt").proofs}
    assert states["root"] == "honoured"
    assert states["large"] in ("honoured", "fused")  # the small product beside it multiplies in half


def test_an_fp64_model_is_decided_and_its_reference_is_fp64(tmp_path):
    """1 + 1e-9 - 1 is 0 in FP32: only the reference of the file itself has 1e-9."""
    text = """g (double[2,4] x) => (double[2,4] y, double[2,4] z) {
      [product] p = MatMul(x, w) [exp] y = Exp(p) [plus] a = Add(x, tiny) [minus] z = Sub(a, x)
    }"""
    model = parsed(text, w=W.astype(np.float64), tiny=np.array(1e-9))
    graph = save_case(Case("double", model, {}), tmp_path).graph
    assert set(graph.candidates) == {"product", "exp", "plus", "minus"}
    x = np.ones((2, 4))
    np.savez(tmp_path / "s.npz", x=x)
    samples = load_samples(graph, [tmp_path / "s.npz"])
    (found,) = references(graph, samples)
    np.testing.assert_allclose(found["z"], 1e-9, rtol=1e-6)
    np.testing.assert_allclose(found["y"], run_on_ort(graph.source.path, {"x": x})["y"])
    converted = convert(graph, Plan(), engine=tmp_path / "m.trt")
    assert converted.half_share > 0
