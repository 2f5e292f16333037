"""More of `models`: subgraphs, recurrence, halves, integers, old opsets and weights in other files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from support.models import case, f32, i64, normal, parsed

# ------------------------------------------------------------------------------------------- subgraphs


@case(c=np.array(True))
def if_outer():
    """Both branches read `r` and a weight of the main graph; layers stand on both sides."""
    return parsed(
        """g (float[1,4] x, bool c) => (float[1,4] y) {
          [before] r = Exp(x)
          [choose] i = If (c) <
            then_branch = t () => (float[1,4] a) { [inner] p = Mul(r, w)  a = Add(p, r) },
            else_branch = e () => (float[1,4] b) { b = Identity(r) }>
          [after] y = Mul(i, w)
        }""",
        w=normal(4),
    )


@case()
def loop_float_state():
    return parsed(
        """g (float[3] x) => (float[3] y, float[4,3] all) {
          [start] s = Tanh(x)
          [loop] l, all = Loop(trips, , s) <
            body = b (int64 i, bool go, float[3] h) => (bool on, float[3] n, float[3] o) {
            on = Identity(go)
            [step] m = Mul(h, factor)
            n = Add(m, x)
            o = Identity(n)
          }>
          [end] y = Exp(l)
        }""",
        trips=np.array(4, np.int64),
        factor=f32(0.3),
    )


@case()
def scan_float_state():
    return parsed(
        """g (float[2] x, float[5,2] seq) => (float[2] y, float[5,2] all) {
          [start] s = Exp(x)
          [scan] y, a = Scan <num_scan_inputs=1, body = b (float[2] h, float[2] e) => (float[2] n, float[2] o) {
            n = Add(h, e)
            o = Mul(n, x)
          }> (s, seq)
          [end] all = Neg(a)
        }"""
    )


@case()
def lstm():
    return parsed(
        """g (float[5,1,3] x) => (float[5,1,1,4] y, float[1,1,4] cell) {
          [lstm] y, , cell = LSTM <hidden_size=4> (x, w, r, b)
        }""",
        w=normal(1, 16, 3),
        r=normal(1, 16, 4),
        b=normal(1, 32),
    )


@case()
def gru():
    return parsed(
        """g (float[5,1,3] x, float[1,1,4] h) => (float[5,1,4] y, float[1,1,4] last) {
          [gru] s, last = GRU <hidden_size=4, linear_before_reset=1> (x, w, r, b, , h)
          [flat] f = Squeeze(s, axis)
          [tail] y = Tanh(f)
        }""",
        w=normal(1, 12, 3),
        r=normal(1, 12, 4),
        b=normal(1, 24),
        axis=i64(1),
    )


# ------------------------------------------------------------------------------ the author's own halves


@case()
def mixed_softmax():
    """Half everywhere except a softmax that its author kept in FP32."""
    return parsed(
        """g (float[2,4] x) => (float[2,4] y) {
          [to_half] h = Cast <to=10> (x)
          [scores] s = MatMul(h, w)
          [up] u = Cast <to=1> (s)
          [softmax] p = Softmax(u)
          [down] d = Cast <to=10> (p)
          [values] v = MatMul(d, w)
          [back] y = Cast <to=1> (v)
        }""",
        w=normal(4, 4).astype(np.float16),
    )


@case(half=True)
def all_half():
    return parsed(
        """g (float16[2,4] x) => (float16[2,4] y, float16[4] b, float[2,4] z) {
          [product] p = MatMul(x, w)
          [sum] s = Add(p, b)
          [tail] y = Tanh(s)
          [double] e = Exp(p)
          [back] z = Cast <to=1> (e)
        }""",
        w=normal(4, 4).astype(np.float16),
        b=normal(4).astype(np.float16),
    )


@case()
def local_function():
    return parsed(
        """g (float[2,4] x) => (float[2,4] y) {
          [first] a = local.gate(x, w)
          [second] b = local.gate(a, w)
          [tail] y = Exp(b)
        }
        <domain: "local", opset_import: ["" : 17]>
        gate (p, q) => (r) { [mul] m = Mul(p, q)  [sig] s = Sigmoid(m)  [add] r = Add(s, p) }""",
        w=normal(4),
    )


# ----------------------------------------------------------------------------- integers, picking, shapes


@case(ids=i64(1, 0, 5))
def embedding():
    return parsed(
        """g (int64[3] ids) => (float[3,4] y, int64[3] next) {
          [lookup] e = Gather(table, ids)
          [norm] y = Softmax(e)
          [plus] n = Add(ids, one)
          [keep] next = Abs(n)
        }""",
        table=normal(6, 4),
        one=i64(1),
    )


@case(x=f32(1, 2049, 2048, 3, 2049.5, 2050).reshape(1, 6))
def top_k():
    """Neighbours above 2048 are one number in half, so a rounding changes what is picked."""
    return parsed(
        """g (float[1,6] x) => (float[1,2] best, int64[1,2] where, int64[1,1] next, int32[1,6] whole) {
          [layer] a = Mul(x, one)
          [topk] best, where = TopK(a, k)
          [argmax] top = ArgMax <axis=1> (a)
          [after] next = Add(top, k1)
          [trunc] whole = Cast <to=6> (a)
        }""",
        one=f32(1.0),
        k=i64(2),
        k1=i64(1),
    )


@case()
def resize_computed_scales():
    """The scales are float arithmetic on shapes: TensorRT computes them on the host."""
    return parsed(
        """g (float[1,1,H,W] x) => (float[1,1,P,Q] y) {
          [head] h = Exp(x)
          [shape] s = Shape(h)
          [float] f = Cast <to=1> (s)
          [more] m = Mul(f, factor)
          [ratio] r = Div(m, f)
          [resize] u = Resize <mode="linear"> (h, , r)
          [tail] y = Neg(u)
        }""",
        factor=f32(1, 1, 2, 2),
    )


@case(keep=np.array([[True, True, False, True]]))
def mask_constant():
    return parsed(
        """g (float[1,4] x, bool[1,4] keep) => (float[1,4] y, float[1,4] z) {
          [scores] s = Mul(x, w)
          [mask] m = Where(keep, s, lowest)
          [softmax] y = Softmax(m)
          [bias] b = Add(s, lowest4)
          [softmax2] z = Softmax(b)
        }""",
        w=normal(4),
        lowest=f32(-3.4e38),
        lowest4=f32(0, 0, -1e9, 0),
    )


@case()
def huge_constant():
    return parsed(
        """g (float[2,3] x) => (float[2,3] y) {
          [up] a = Mul(x, million)
          [down] y = Div(a, million)
        }""",
        million=f32(1e6),
    )


@case(n=np.array([2, 3], np.int64))
def made_of_shapes():
    """A tensor filled with a constant, a range, and values of other types on the way."""
    return parsed(
        """g (int64[2] n, float[2,3] x) => (float[2,3] y, double[2,3] d, float[3] r, bool[2,3] small) {
          [fill] c = ConstantOfShape <value = float[1] {2049.0}> (n)
          [sum] a = Add(c, x)
          [tail] y = Sin(a)
          [wide] d = Cast <to=11> (a)
          [narrow] q = Cast <to=1> (d)
          [test] small = Less(q, x)
          [range] i = Range(zero, three, one)
          [wave] r = Sin(i)
        }""",
        zero=np.array(0, np.float32),
        one=np.array(1, np.float32),
        three=np.array(3, np.float32),
    )


@case()
def optional_inputs():
    """Inputs left out, a limit in the middle, an output nobody wants, a node nobody reads."""
    return parsed(
        """g (float[1,2,6] x) => (float[1,2,3] y, float[1,2,6] z) {
          [clip] c = Clip(x, , high)
          [pool] y, places = MaxPool <kernel_shape=[2], strides=[2]> (c)
          [drop] z, kept = Dropout(c)
          [dead] nobody = Exp(c)
        }""",
        high=np.array(0.3, np.float32),
    )


@case()
def constant_nodes():
    """Constants as nodes, and a product of two of them that can be folded."""
    return parsed(
        """g (float[2,2] x) => (float[2,2] y) {
          [left] a = Constant <value = float[2,2] {300.0, 2.0, 3.0, 4.0}> ()
          [right] b = Constant <value = float[2,2] {300.0, 0.0, 0.0, 1.0}> ()
          [folded] c = Mul(a, b)
          [divided] d = Div(c, a)
          [use] u = Mul(x, d)
          [tail] y = Tanh(u)
        }"""
    )


@case()
def sequence():
    return parsed(
        """g (float[2,3] x) => (float[4,3] y) {
          [head] a = Exp(x)
          [other] b = Neg(x)
          [pack] s = SequenceConstruct(a, b)
          [unpack] c = ConcatFromSequence <axis=0> (s)
          [tail] y = Sin(c)
        }"""
    )


@case()
def opset8():
    """Initializers are listed as inputs too, as every file of IR version 3 has them."""
    model = parsed(
        """g (float[1,2,4,4] x) => (float[1,3] y) {
          [conv] c = Conv(x, w)
          [relu] r = Relu(c)
          [pool] p = AveragePool <kernel_shape=[4,4]> (r)
          [flat] f = Reshape(p, shape)
          [dense] y = Gemm <transB=1> (f, v, b)
        }""",
        opset=8,
        w=normal(3, 2, 1, 1),
        shape=i64(1, 3),
        v=normal(3, 3),
        b=normal(3),
    )
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return model


@case()
def unsorted():
    """Sound, only written in another order than it computes."""
    model = parsed("g (float[2,3] x) => (float[2,3] y) { [one] a = Exp(x) [two] b = Tanh(a) [three] y = Mul(a, b) }")
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


# ------------------------------------------------------------------------------ weights in other files


def external_model() -> onnx.ModelProto:
    """Two products whose weights are large enough to stand in files of their own."""
    return parsed(
        """g (float[2,32] x) => (float[2,32] y) {
          [one] a = MatMul(x, w)
          [two] b = MatMul(a, v)
          [three] y = Tanh(b)
        }""",
        w=normal(32, 32),
        v=normal(32, 32, seed=1),
    )


def save_external(folder: Path, *, files: tuple[str, str] = ("weights.bin", "weights.bin")) -> Path:
    """`external_model` with its two weights in `files`, beside `model.onnx`."""
    model = external_model()
    for tensor, file in zip(model.graph.initializer, files, strict=True):
        target = folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        offset = target.stat().st_size if target.exists() else 0
        with target.open("ab") as stream:
            stream.write(tensor.raw_data)
        onnx.external_data_helper.set_external_data(tensor, file, offset=offset, length=len(tensor.raw_data))
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path
