"""Operators as TensorRT-RTX's kernels compute them in half precision, written down again in numpy.

Shares no code with trt_helper: every step is a float16 array of numpy, sums are FP32 until they are stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

H, S = np.float16, np.float32
Array = np.ndarray


def half(x) -> Array:
    """Rounded to half."""
    return np.asarray(x, S).astype(H)


def single(x) -> Array:
    return np.asarray(x).astype(S)


def each(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """A function of one half that is computed in FP32 and rounded once."""
    return lambda x: half(function(single(x)))


exp, log, log1p, tanh = each(np.exp), each(np.log), each(np.log1p), each(np.tanh)


def sigmoid(x: Array) -> Array:
    return half(single(tanh(S(0.5) * single(x))) * S(0.5) + S(0.5))


def total(x: Array, axis: int) -> Array:
    """A sum in FP32 that is stored in half."""
    return half(single(x).sum(axis=axis, keepdims=True, dtype=S))


def softmax(x: Array, axis: int = -1) -> Array:
    e = exp(x - x.max(axis=axis, keepdims=True))
    return e / total(e, axis)


def log_sum_exp(x: Array) -> Array:
    largest = x.max(axis=-1, keepdims=True)
    return log(total(exp(x - largest), -1)) + largest


def softplus(x: Array) -> Array:
    e = exp(x)
    return np.where(np.isinf(e), x, log1p(e))


def erf(x: Array) -> Array:
    return half(np.vectorize(math.erf)(single(x)))


def gelu(x: Array) -> Array:
    return x * (erf(x / H(np.sqrt(2))) + H(1)) * H(0.5)


def gelu_tanh(x: Array) -> Array:
    return x * (tanh((x * x * x * H(0.044715) + x) * H(np.sqrt(2 / np.pi))) + H(1)) * H(0.5)


def elu(x: Array) -> Array:
    return np.where(x > 0, x, H(1) * (exp(x) - H(1)))


def selu(x: Array) -> Array:
    alpha, gamma = H(1.67326319217681884765625), H(1.05070102214813232421875)
    return np.where(x > 0, x, exp(x) * alpha - alpha) * gamma


def line(x: Array, slope: float, offset: float) -> Array:
    return np.clip(x * H(slope) + H(offset), H(0), H(1))


def mod(x: Array, y: Array) -> Array:
    quotient = x / y
    return x - y * np.trunc(quotient)


def batch_norm(x: Array, scale: Array, bias: Array, mean: Array, variance: Array) -> Array:
    factor = single(scale) / np.sqrt(single(variance) + S(1e-5))
    summand = half(single(bias) - single(mean) * factor)
    shape = (-1, *[1] * (x.ndim - 2))
    return x * half(factor).reshape(shape) + summand.reshape(shape)


def normalised(x: Array, axes: tuple[int, ...], *, centred: bool = True) -> Array:
    full = single(x)
    full = full - full.mean(axis=axes, keepdims=True) if centred else full
    return half(full / np.sqrt((full**2).mean(axis=axes, keepdims=True) + S(1e-5)))


def group_norm(x: Array, scale: Array, bias: Array) -> Array:
    flat = x.reshape(len(x), 2, -1)
    shape = (-1, *[1] * (x.ndim - 2))
    return normalised(flat, (2,)).reshape(x.shape) * scale.reshape(shape) + bias.reshape(shape)


def vector_product(a: Array, b: Array) -> Array:
    """A product with one row or one column: each term in half."""
    terms = a[..., :, :, None] * b[..., None, :, :]
    return half(single(terms).sum(axis=-2, dtype=S))


def short_product(a: Array, b: Array) -> Array:
    terms = a[..., :, :, None] * b[..., None, :, :]
    result = terms[..., 0, :]
    for index in range(1, a.shape[-1]):
        result = result + terms[..., index, :]
    return result


def short_convolution(x: Array, weight: Array, bias: Array) -> Array:
    flat = short_product(weight.reshape(len(weight), -1), x.reshape(*x.shape[:2], -1))
    return flat.reshape(len(x), len(weight), *x.shape[2:]) + bias.reshape(-1, 1, 1)


def product(a: Array, b: Array) -> Array:
    """On tensor cores: FP32 inside, stored in half."""
    return half(single(a) @ single(b))


def lstm(x: Array, w: Array, r: Array, b: Array) -> Array:
    hidden = r.shape[-1]
    h = c = np.zeros((x.shape[1], hidden), H)
    found = []
    for step in x:
        sums = (product(step, w[0].T) + product(h, r[0].T)) + (b[0][: 4 * hidden] + b[0][4 * hidden :])
        i, o, f, new = np.split(sums, 4, axis=-1)
        c = sigmoid(f) * c + sigmoid(i) * tanh(new)
        h = sigmoid(o) * tanh(c)
        found.append(h)
    return np.stack(found)[:, None]


def gru(x: Array, w: Array, r: Array, b: Array) -> Array:
    hidden = r.shape[-1]
    (wz, wr, wn), (rz, rr, rn) = np.split(w[0], 3), np.split(r[0], 3)
    bz, br, bn, cz, cr, cn = np.split(b[0], 6)
    h = np.zeros((x.shape[1], hidden), H)
    found = []
    for step in x:
        z = sigmoid(((product(step, wz.T) + product(h, rz.T)) + bz) + cz)
        reset = sigmoid(((product(step, wr.T) + product(h, rr.T)) + br) + cr)
        new = tanh((product(step, wn.T) + bn) + reset * (product(h, rn.T) + cn))
        h = (H(1) - z) * new + z * h
        found.append(h)
    return np.stack(found)[:, None]


def rnn(x: Array, w: Array, r: Array, b: Array) -> Array:
    hidden = r.shape[-1]
    h = np.zeros((x.shape[1], hidden), H)
    found = []
    for step in x:
        h = tanh((product(step, w[0].T) + product(h, r[0].T)) + (b[0][:hidden] + b[0][hidden:]))
        found.append(h)
    return np.stack(found)[:, None]


def rotary(x: Array, cosine: Array, sine: Array) -> Array:
    """x (batch, heads, sequence, size), tables (batch, sequence, size / 2)."""
    a, b = np.split(x, 2, axis=-1)
    cosine, sine = cosine[:, None], sine[:, None]
    return np.concatenate([cosine * a - sine * b, sine * a + cosine * b], axis=-1)


def running_sum(x: Array) -> Array:
    return np.add.accumulate(x, axis=-1, dtype=H)


STEPS: Mapping[str, Callable[..., Array]] = {
    "BatchNormalization": batch_norm,
    "Conv": short_convolution,
    "CumSum": lambda x, _axis: running_sum(x),
    "Elu": elu,
    "GRU": gru,
    "Gelu": gelu,
    "Gemm": lambda a, b, c: vector_product(a, b) + c,
    "GroupNormalization": group_norm,
    "HardSigmoid": lambda x: line(x, 0.2, 0.5),
    "HardSwish": lambda x: x * line(x, 1 / 6, 0.5),
    "LSTM": lstm,
    "LayerNormalization": lambda x, scale, bias: normalised(x, (-1,)) * scale + bias,
    "LogSoftmax": lambda x: log(softmax(x)),
    "MatMul": vector_product,
    "Mean": lambda x, y, z: (x + y + z) * H(1 / 3),
    "Mish": lambda x: x * tanh(softplus(x)),
    "Mod": mod,
    "Pow": lambda x, _exponent: x * x * x,
    "RMSNormalization": lambda x, scale: normalised(x, (-1,), centred=False) * scale,
    "RNN": rnn,
    "ReduceLogSumExp": lambda x, _axes: log_sum_exp(x),
    "ReduceSumSquare": lambda x, _axes: total(x * x, -1),
    "RotaryEmbedding": rotary,
    "Selu": selu,
    "Sigmoid": sigmoid,
    "Softmax": softmax,
    "Softplus": softplus,
    "Softsign": lambda x: x / (H(1) + np.abs(x)),
    "Sum": lambda x, y, z: x + y + z,
    "Swish": lambda x: half(single(x) * (single(tanh(S(0.5) * single(x))) * S(0.5) + S(0.5))),
}
