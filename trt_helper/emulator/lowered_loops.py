"""Kernels that no ONNX graph says in few steps: short products, running sums, recurrent layers. See `lowering`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from trt_helper.onnx_model.rewrites import SHORT
from trt_helper.values import Array

Round = Callable[[Array], Array]
Inputs = Sequence["Array | None"]
Compute = Callable[[ir.Node, Inputs, Round], list[Array]]
"""Node, inputs (None where absent) and what rounds to the layer's type; all outputs, the last step not yet rounded."""

SHORT_VECTOR = 6  # terms of a product with one row or column that are added up in half; `SHORT` with more
POSITIONS = 3  # the input of a RotaryEmbedding that names rows of its tables
TOGETHER = 3  # axes of its first input where all heads are one axis
CHUNK = 1 << 22  # elements of the products of a matrix and a vector that are computed at a time


# ----------------------------------------------------------------------------------------------------------- products


def runs_without_tensor_cores(a: Sequence[object], b: Sequence[object]) -> bool:
    """Whether a product of these shapes is computed term by term, each term in half: with few terms, one row or column.

    A row or a column has to be known when the engine is built. With one, TensorRT-RTX takes either this or tensor
    cores, by sizes and in ways that are not documented; this is the less exact one.
    """
    if not a or not b:
        return False
    terms = a[-1] if isinstance(a[-1], int) else b[0 if len(b) == 1 else -2]
    if isinstance(terms, int) and terms <= SHORT:
        return True
    if not all(isinstance(size, int) for size in (*a, *b)):
        return False
    rows, columns = 1 if len(a) == 1 else a[-2], 1 if len(b) == 1 else b[-1]
    above, below = a[:-2], b[:-2]
    one_row = rows == 1 and (list(above) == list(below) or all(size == 1 for size in above))
    return one_row or columns == 1


def product(a: Array, b: Array, rounded: Round) -> Array:
    """A @ b with every term in half, and sums in FP32, or in half where they are short."""
    left, right = (a[None] if a.ndim == 1 else a), (b[:, None] if b.ndim == 1 else b)
    terms = left.shape[-1]
    if terms <= (SHORT_VECTOR if 1 in (left.shape[-2], right.shape[-1]) else SHORT):
        result = _short(left, right, rounded)
    elif right.shape[-1] == 1:
        result = _of_column(left, right, rounded)
    else:
        result = np.swapaxes(_of_column(np.swapaxes(right, -1, -2), np.swapaxes(left, -1, -2), rounded), -1, -2)
    return of_shapes(result, a, b)


def of_shapes(result: Array, a: Array, b: Array) -> Array:
    """The product of a and b without the axes that vectors were given for it."""
    if b.ndim == 1:
        result = result[..., 0]
    if a.ndim == 1:
        result = result[0] if b.ndim == 1 else result[..., 0, :]
    return result


def _short(a: Array, b: Array, rounded: Round) -> Array:
    total: Array | None = None
    for term in range(a.shape[-1]):
        one = rounded(a[..., term : term + 1] * b[..., term : term + 1, :])
        total = one if total is None else rounded(total + one)
    return total if total is not None else np.matmul(a, b)


def _of_column(a: Array, b: Array, rounded: Round) -> Array:
    """A (..., m, k) times b (..., k, 1)."""
    row = np.swapaxes(b, -1, -2)
    batch = max(int(np.prod(np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), dtype=np.int64)), 1)
    at_a_time = max(CHUNK // max(batch * a.shape[-1], 1), 1)
    parts = [
        rounded(a[..., first : first + at_a_time, :] * row).sum(axis=-1, keepdims=True, dtype=np.float32)
        for first in range(0, a.shape[-2], at_a_time)
    ]
    return np.concatenate(parts, axis=-2) if parts else np.matmul(a, b)


def matmul(_node: ir.Node, inputs: Inputs, rounded: Round) -> list[Array]:
    """MatMul."""
    a, b = _given(inputs, 2)
    return [product(a, b, rounded)]


def gemm(node: ir.Node, inputs: Inputs, rounded: Round) -> list[Array]:
    """Gemm with one row or column, or few terms."""
    return with_bias(node, inputs, rounded, product)


def with_bias(
    node: ir.Node, inputs: Inputs, rounded: Round, product_of: Callable[[Array, Array, Round], Array]
) -> list[Array]:
    """Gemm: the product is stored in half, then the third input is added."""
    a, b = _given(inputs, 2)
    a = a.T if node.attributes.get_int("transA", 0) else a
    b = b.T if node.attributes.get_int("transB", 0) else b
    result = product_of(a, b, rounded) * np.float32(node.attributes.get_float("alpha", 1.0))
    (c,) = inputs[2:] or (None,)
    if c is None:
        return [result]
    beta = np.float32(node.attributes.get_float("beta", 1.0))
    return [rounded(result) + (c if beta == 1 else rounded(c * beta))]


def is_short_convolution(node: ir.Node) -> bool:
    """Whether a convolution is a short product for each position: with a kernel of 1, and few channels."""
    weight = node.inputs[1]
    if weight is None or weight.shape is None or not all(isinstance(size, int) for size in weight.shape):
        return False
    _, channels, *places = (int(size) for size in weight.shape if isinstance(size, int))
    moved = {"pads": 0, "strides": 1}
    plain = all(set(node.attributes.get_ints(name, ())) <= {same} for name, same in moved.items())
    one_place = all(size == 1 for size in places) and node.attributes.get_int("group", 1) == 1
    return plain and one_place and channels <= SHORT


def convolution(_node: ir.Node, inputs: Inputs, rounded: Round) -> list[Array]:
    """Conv with a kernel of 1 and few channels."""
    x, weight = _given(inputs, 2)
    flat = product(weight.reshape(weight.shape[:2]), x.reshape(*x.shape[:2], -1), rounded)
    result = flat.reshape(len(x), len(weight), *x.shape[2:])
    (bias,) = inputs[2:] or (None,)
    return [result if bias is None else rounded(result) + bias.reshape(-1, *[1] * (x.ndim - 2))]


# --------------------------------------------------------------------------------------------------------- rotations


def rotary_embedding(node: ir.Node, inputs: Inputs, rounded: Round) -> list[Array]:
    """RotaryEmbedding: pairs of elements are rotated, each product and each sum in half."""
    x, cosine, sine = _given(inputs, 3)
    positions = inputs[POSITIONS] if len(inputs) > POSITIONS else None
    shape = x.shape
    if x.ndim == TOGETHER:  # batch, sequence, heads * size; else batch, heads, sequence, size
        heads = node.attributes.get_int("num_heads", 1)
        x = x.reshape(*shape[:2], heads, -1).swapaxes(1, 2)
    if positions is not None:
        cosine, sine = cosine[positions], sine[positions]
    size = node.attributes.get_int("rotary_embedding_dim", 0) or x.shape[-1]
    cosine, sine = (table[:, None, :, : size // 2] for table in (cosine, sine))
    interleaved = node.attributes.get_int("interleaved", 0)
    first, second = (
        (slice(0, size, 2), slice(1, size, 2)) if interleaved else (slice(0, size // 2), slice(size // 2, size))
    )
    a, b = np.ascontiguousarray(x[..., first]), np.ascontiguousarray(x[..., second])
    result = x.copy()
    result[..., first] = rounded(cosine * a) - rounded(sine * b)
    result[..., second] = rounded(sine * a) + rounded(cosine * b)
    return [result.swapaxes(1, 2).reshape(shape) if len(shape) == TOGETHER else result]


# ------------------------------------------------------------------------------------------------------- running sums


def cum_sum(node: ir.Node, inputs: Inputs, rounded: Round) -> list[Array]:
    """CumSum: the running sum is kept in half, one element after the other."""
    x, axes = _given(inputs, 2)
    axis = int(np.asarray(axes).reshape(-1)[0])
    along = np.moveaxis(x, axis, 0)
    if node.attributes.get_int("reverse", 0):
        along = along[::-1]
    sums = np.empty_like(along)
    total = np.zeros_like(along[:1])[0] if len(along) else along
    exclusive = node.attributes.get_int("exclusive", 0)
    for index in range(len(along)):
        before, total = total, rounded(np.ascontiguousarray(total + along[index]))
        sums[index] = before if exclusive else total
    if node.attributes.get_int("reverse", 0):
        sums = sums[::-1]
    return [np.ascontiguousarray(np.moveaxis(sums, 0, axis))]


# --------------------------------------------------------------------------------------------------- recurrent layers


def logistic(x: Array, rounded: Round) -> Array:
    """The sigmoid of a kernel: 0.5 tanh(x / 2) + 0.5, with a tanh of 11 bits."""
    approximate = np.tanh(x * np.float32(0.5)).astype(np.float16).astype(np.float32)
    return rounded(approximate * np.float32(0.5) + np.float32(0.5))


def is_plain_recurrence(node: ir.Node) -> bool:
    """Whether a recurrent layer has the default activations and none of the options that change its steps."""
    absent = all(value is None for index, value in enumerate(node.inputs) if index in (4, 7))  # lengths, peepholes
    return absent and not {"activations", "clip", "input_forget", "layout"} & set(node.attributes)


def lstm(node: ir.Node, inputs: Inputs, rounded: Round) -> list[Array]:
    """LSTM: both products, every sum, gate and state in half."""

    def cell(from_x: Array, h: Array, states: list[Array], r: Array, bias: tuple[Array, Array]) -> list[Array]:
        sums = rounded(rounded(from_x + rounded(h @ r.T)) + rounded(bias[0] + bias[1]))
        i, o, f, c = np.split(sums, 4, axis=-1)
        kept = rounded(logistic(f, rounded) * states[1])
        state = rounded(kept + rounded(logistic(i, rounded) * rounded(np.tanh(c))))
        return [rounded(logistic(o, rounded) * rounded(np.tanh(state))), state]

    return _recurrence(node, inputs, rounded, cell, states=2)


def gru(node: ir.Node, inputs: Inputs, rounded: Round) -> list[Array]:
    """GRU: both products, every sum, gate and state in half."""
    after = bool(node.attributes.get_int("linear_before_reset", 0))

    def cell(from_x: Array, h: Array, _states: list[Array], r: Array, bias: tuple[Array, Array]) -> list[Array]:
        hidden = h.shape[-1]
        gates, one = slice(0, 2 * hidden), slice(2 * hidden, 3 * hidden)
        sums = rounded(from_x[:, gates] + rounded(h @ r[gates].T))
        sums = rounded(rounded(sums + bias[0][gates]) + bias[1][gates])
        z, reset = np.split(logistic(sums, rounded), 2, axis=-1)
        read = rounded(from_x[:, one] + bias[0][one])
        if after:
            kept = rounded(reset * rounded(rounded(h @ r[one].T) + bias[1][one]))
        else:
            kept = rounded(rounded(rounded(reset * h) @ r[one].T) + bias[1][one])
        new = rounded(np.tanh(rounded(read + kept)))
        return [rounded(rounded(rounded(np.float32(1) - z) * new) + rounded(z * h))]

    return _recurrence(node, inputs, rounded, cell, states=1)


def rnn(node: ir.Node, inputs: Inputs, rounded: Round) -> list[Array]:
    """RNN: both products, every sum and the state in half."""

    def cell(from_x: Array, h: Array, _states: list[Array], r: Array, bias: tuple[Array, Array]) -> list[Array]:
        sums = rounded(rounded(from_x + rounded(h @ r.T)) + rounded(bias[0] + bias[1]))
        return [rounded(np.tanh(sums))]

    return _recurrence(node, inputs, rounded, cell, states=1)


Cell = Callable[[Array, Array, list[Array], Array, tuple[Array, Array]], list[Array]]
"""One time step: the product with x, the last output, all states, R and the two biases; the new states."""


def _recurrence(node: ir.Node, inputs: Inputs, rounded: Round, cell: Cell, states: int) -> list[Array]:
    """Run a cell over the sequence x (time, batch, size), in each direction; Y, Y_h and, with two states, Y_c."""
    x, w, r = _given(inputs, 3)
    inputs = [*inputs, *[None] * 8]
    both = np.zeros((w.shape[0], 2 * w.shape[1]), np.float32) if inputs[3] is None else inputs[3]
    shape = (w.shape[0], x.shape[1], r.shape[2])
    initial = [np.zeros(shape, np.float32) if array is None else array for array in inputs[5 : 5 + states]]
    direction = node.attributes.get_string("direction", "forward")
    results, last = np.empty((len(x), *shape), np.float32), [np.empty(shape, np.float32) for _ in range(states)]
    for index in range(len(w)):
        backward = direction == "reverse" or index == 1
        from_x = rounded(np.ascontiguousarray((x[::-1] if backward else x) @ w[index].T))
        bias = both[index][: w.shape[1]], both[index][w.shape[1] :]
        current = [state[index] for state in initial]
        for time in range(len(x)):
            current = cell(from_x[time], current[0], current, r[index], bias)
            results[len(x) - 1 - time if backward else time, index] = current[0]
        for state, array in zip(last, current, strict=True):
            state[index] = array
    return [results, *last]


def _given(inputs: Inputs, count: int) -> list[Array]:
    """The first inputs, which the operator requires."""
    return [array for array in inputs[:count] if array is not None]
