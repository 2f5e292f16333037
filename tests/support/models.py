"""Small ONNX models with known traits, each with one feed that shows them.

`MODELS` holds them by name; `special_models` adds more. Weights are seeded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

Feed = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    name: str
    model: onnx.ModelProto
    feed: Feed


MODELS: dict[str, Callable[[], Case]] = {}


def case(*, half: bool = False, **feed: np.ndarray) -> Callable[[Callable[[], onnx.ModelProto]], Callable[[], Case]]:
    """Register a model; inputs that `feed` lacks are standard normal."""

    def register(build: Callable[[], onnx.ModelProto]) -> Callable[[], Case]:
        def made() -> Case:
            model = build()
            return Case(build.__name__, model, dict(filled(model, feed, half=half)))

        MODELS[build.__name__] = made
        return made

    return register


def filled(model: onnx.ModelProto, given: Feed, *, half: bool) -> Iterator[tuple[str, np.ndarray]]:
    generator = np.random.default_rng(7)
    held = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        if value.name in held:
            continue
        shape = [d.dim_value or 3 for d in value.type.tensor_type.shape.dim]
        made = generator.standard_normal(shape).astype(np.float32)
        array = given.get(value.name, made)
        yield value.name, array.astype(np.float16).astype(np.float32) if half and array.dtype.kind == "f" else array


def parsed(text: str, *, opset: int = 17, **weights: np.ndarray) -> onnx.ModelProto:
    """A model from ONNX's text form without its header; functions of the domain "local" may follow."""
    header = f'<ir_version: 8, opset_import: ["" : {opset}, "local" : 1]>\n'
    model = onnx.parser.parse_model(header + text)
    if not model.functions:
        del model.opset_import[1]
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    return model


def normal(*shape: int, seed: int = 0, scale: float = 0.3) -> np.ndarray:
    return (scale * np.random.default_rng([seed, *shape]).standard_normal(shape)).astype(np.float32)


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def i64(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def bn(channels: int, variance: float = 1.0) -> dict[str, np.ndarray]:
    ramp = np.linspace(0.5, 1.5, channels, dtype=np.float32)
    mean = ramp * np.float32(variance**0.5)
    return {"scale": ramp, "bias": ramp - 1, "mean": mean, "var": ramp * np.float32(variance)}


# ------------------------------------------------------------------------------- convolution and norms


@case()
def conv_bn_relu():
    return parsed(
        """g (float[1,3,6,6] x) => (float[1,4,4,4] y) {
          [conv] c = Conv(x, w)
          [bn] b = BatchNormalization <epsilon=1e-5> (c, scale, bias, mean, var)
          [relu] y = Relu(b)
        }""",
        w=normal(4, 3, 3, 3, scale=2000),
        **bn(4, 4.8e7),
    )


@case()
def conv_read_twice_before_bn():
    return parsed(
        """g (float[1,3,4,4] x) => (float[1,4,4,4] y, float[1,4,4,4] c) {
          [conv] c = Conv(x, w, cb)
          [bn] y = BatchNormalization(c, scale, bias, mean, var)
        }""",
        w=normal(4, 3, 1, 1),
        cb=normal(4),
        **bn(4),
    )


@case()
def gemm_bn_transposed_conv_bn():
    return parsed(
        """g (float[2,3] x, float[1,4,3,3] z) => (float[2,4] y, float[1,2,5,5] t) {
          [gemm] m = Gemm <transB=1, alpha=0.5, beta=2.0> (x, w, gb)
          [bn_gemm] y = BatchNormalization(m, scale, bias, mean, var)
          [deconv] d = ConvTranspose(z, k)
          [bn_deconv] t = BatchNormalization(d, scale2, bias2, mean2, var2)
        }""",
        w=normal(4, 3),
        gb=normal(4),
        k=normal(4, 2, 3, 3),
        **bn(4, 9.0),
        **{f"{name}2": array for name, array in bn(2, 0.25).items()},
    )


@case(x=normal(2, 3, 5, scale=3000.0))
def standalone_bn():
    return parsed(
        """g (float[2,3,5] x) => (float[2,3,5] y) {
          [relu] r = Relu(x)
          [bn] b = BatchNormalization(r, scale, bias, mean, var)
          [tail] y = Sigmoid(b)
        }""",
        **bn(3, 4.8e7),
    )


@case(x=normal(2, 8, scale=400.0))
def layernorm_overflow():
    """The variance is some 1.6e5: beyond half, while the answer is of the order of 1."""
    return parsed(
        """g (float[2,8] x) => (float[2,8] y) {
          [mean] m = ReduceMean <axes=[1]> (x)
          [centre] d = Sub(x, m)
          [square] s = Mul(d, d)
          [variance] v = ReduceMean <axes=[1]> (s)
          [epsilon] e = Add(v, eps)
          [root] r = Sqrt(e)
          [divide] n = Div(d, r)
          [gain] g1 = Mul(n, gamma)
          [shift] y = Add(g1, beta)
        }""",
        eps=f32(1e-12),
        gamma=normal(8),
        beta=normal(8),
    )


@case(x=np.linspace(-60, 60, 24, dtype=np.float32).reshape(2, 12))
def gelu_cube():
    return parsed(
        """g (float[2,12] x) => (float[2,12] y) {
          [square] x2 = Mul(x, x)
          [cube] x3 = Mul(x2, x)
          [scaled] c = Mul(x3, k)
          [sum] s = Add(x, c)
          [inner] i = Mul(s, root)
          [tanh] t = Tanh(i)
          [plus] p = Add(t, one)
          [half] h = Mul(x, point5)
          [out] y = Mul(h, p)
        }""",
        k=f32(0.044715),
        root=f32(0.7978846),
        one=f32(1),
        point5=f32(0.5),
    )


# --------------------------------------------------------------------------------- edges between layers


@case()
def residual():
    """`a` is read by three layers and is an output too."""
    return parsed(
        """g (float[2,6] x) => (float[2,6] y, float[2,6] a) {
          [first] a = MatMul(x, w)
          [left] l = Tanh(a)
          [right] r = Exp(a)
          [join] j = Add(l, r)
          [skip] y = Add(j, a)
        }""",
        w=normal(6, 6),
    )


@case()
def shared_initializer():
    return parsed(
        """g (float[2,4] x) => (float[2,4] y) {
          [one] a = MatMul(x, w)
          [two] b = MatMul(a, w)
          [three] y = Mul(b, w0)
        }""",
        w=normal(4, 4),
        w0=normal(4),
    )


@case()
def movement_between():
    return parsed(
        """g (float[1,2,4,4] x) => (float[4,3] y) {
          [conv] c = Conv(x, w)
          [turn] t = Transpose <perm=[0,2,3,1]> (c)
          [flat] f = Reshape(t, shape)
          [join] j = Concat <axis=1> (f, more)
          [product] p = MatMul(j, v)
          [tail] y = Tanh(p)
        }""",
        w=normal(2, 2, 3, 3),
        shape=i64(4, 2),
        more=f32(0.5, -0.25, 1, 0).reshape(4, 1),
        v=normal(3, 3),
    )


@case()
def joined():
    """What two layers make is joined for a third."""
    return parsed(
        """g (float[2,3] x) => (float[2,6] y) {
          [left] a = Exp(x)
          [right] b = Tanh(x)
          [join] c = Concat <axis=1> (a, b)
          [tail] y = Softmax(c)
        }"""
    )


@case()
def padded():
    """The constant that is padded with is 2048 in half."""
    return parsed(
        """g (float[2,3] x) => (float[2,5] y) {
          [head] h = Exp(x)
          [pad] p = Pad(h, pads, fill)
          [tail] y = Sqrt(p)
        }""",
        pads=i64(0, 1, 0, 1),
        fill=np.array(2049, np.float32),
    )


@case()
def many_movements():
    return parsed(
        """g (float[1,2,4] x) => (float[1,6,4] y, float[1,2,6] p, float[1,1,4] g) {
          [head] h = Exp(x)
          [split] s0, s1 = Split <axis=1> (h, parts)
          [big] b = Expand(s0, shape)
          [squeeze] q = Squeeze(s1, one)
          [unsqueeze] u = Unsqueeze(q, one)
          [tile] t = Tile(u, repeats)
          [cat] c = Concat <axis=1> (b, t, s1)
          [tail] y = Log(c)
          [pad] p = Pad(h, pads, fill)
          [slice] l = Slice(h, zero, one, one)
          [flat] f = Flatten(l)
          [again] g = Unsqueeze(f, zero)
        }""",
        parts=i64(1, 1),
        shape=i64(1, 2, 4),
        one=i64(1),
        zero=i64(0),
        repeats=i64(1, 3, 1),
        pads=i64(0, 0, 1, 0, 0, 1),
        fill=np.array(0.125, np.float32),
    )


@case()
def scatter_add():
    """With a reduction a scatter computes; without one it moves."""
    return parsed(
        """g (float[4] x, float[3] u) => (float[4] y, float[4] z) {
          [head] h = Exp(x)
          [sum] s = ScatterElements <axis=0, reduction="add"> (h, where, u)
          [tail] y = Tanh(s)
          [place] p = ScatterElements <axis=0> (h, where, u)
          [tail2] z = Sin(p)
        }""",
        where=i64(0, 2, 2),
    )


@case()
def identity_output():
    return parsed(
        """g (float[2,3] x) => (float[2,3] y, float[2,3] z) {
          [work] a = Exp(x)
          [noop] y = Identity(a)
          [more] z = Neg(a)
        }"""
    )


@case()
def input_is_output():
    return parsed("g (float[2,3] x) => (float[2,3] y, float[2,3] x) { [work] y = Exp(x) }")


@case()
def initializer_is_output():
    return parsed("g (float[2,3] x) => (float[2,3] y, float[3] w) { [work] y = Mul(x, w) }", w=normal(3))


@case()
def unnamed_and_doubly_named():
    return parsed(
        """g (float[2,3] x) => (float[2,3] y) {
          a = Exp(x)
          [twin] b = Tanh(a)
          [twin] c = Neg(b)
          y = Sin(c)
        }"""
    )
