"""Blocks of the architectures in `hazard_models.py`, written as exporters write them, around a `Network`.

`size` is how far two channels of a residual stream lie from zero, one on each side, as the massive activations of
trained transformers do; 0 is a stream like any other. A norm divides by that size, so its gains multiply by it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from made import Array, Network

Act = Callable[[Network, str], str]
Norm = Callable[[Network, str, int, float], str]
FeedForward = Callable[..., str]


def spikes(width: int, size: float) -> Array:
    """Two channels of `size` and -`size`, zeros elsewhere."""
    array = np.zeros(width, np.float32)
    array[[width // 3, width // 2]] = size, -size
    return array


def quiet(width: int, share: float) -> Array:
    """Factors for the channels: `share` for those of the spikes, 1 elsewhere."""
    return np.where(spikes(width, 1.0) != 0, np.float32(share), np.float32(1))


def sizes_between(blocks: int, first: int, last: int, size: float) -> list[tuple[float, float]]:
    """The sizes before and after each block: block `first` adds the spikes, block `last` takes them away."""
    after = [size if first <= index < last else 0.0 for index in range(blocks)]
    return list(zip([0.0, *after], after, strict=False))


# ------------------------------------------------------------------------------------------------ arithmetic


def linear(net: Network, x: str, read: int, written: int, *, bias: Array | None = None, gain: float = 1.0) -> str:
    y = net.node("MatMul", x, net.weight(read, written, scale=gain * read**-0.5))
    return y if bias is None else net.node("Add", y, net.constant(bias.astype(np.float32)))


def conv(
    net: Network,
    x: str,
    read: int,
    written: int,
    kernel: int = 1,
    *,
    stride: int = 1,
    groups: int = 1,
    gain: float = 1.0,
    act: Act | None = None,
    bias: Array | None = None,
    mute: Array | None = None,
) -> str:
    """A convolution with a bias. `mute` are factors for what it reads."""
    fan = read // groups * kernel * kernel
    array = net.random(written, read // groups, kernel, kernel, scale=gain * fan**-0.5)
    if mute is not None:
        array *= mute[None, :, None, None]
    shift = net.random(written, scale=0.02) if bias is None else bias
    options = {"strides": [stride] * 2, "group": groups, "kernel_shape": [kernel] * 2, "pads": [kernel // 2] * 4}
    y = net.node("Conv", x, net.constant(array), net.constant(shift.astype(np.float32)), **options)
    return act(net, y) if act else y


def conv_patches(net: Network, x: str, read: int, width: int, stride: int, overlap: int, offset: float = 0.0) -> str:
    """Patches as a sequence. `offset` is the mean of all channels."""
    kernel = stride + overlap
    array = net.random(width, read, kernel, kernel, scale=(read * kernel**2) ** -0.5)
    shift = net.constant((offset + net.random(width, scale=0.1)).astype(np.float32))
    options = {"strides": [stride] * 2, "kernel_shape": [kernel] * 2, "pads": [overlap // 2] * 4}
    y = net.node("Conv", x, net.constant(array), shift, **options)
    return net.node("Transpose", net.node("Reshape", y, net.ints(0, width, -1)), perm=[0, 2, 1])


def relu(net: Network, x: str) -> str:
    return net.node("Relu", x)


def silu(net: Network, x: str) -> str:
    return net.node("Mul", x, net.node("Sigmoid", x))


def gelu(net: Network, x: str) -> str:
    erf = net.node("Erf", net.node("Div", x, net.number(2**0.5)))
    return net.node("Mul", net.node("Mul", x, net.node("Add", erf, net.number(1.0))), net.number(0.5))


# ----------------------------------------------------------------------------------------------------- norms


def _gains(net: Network, width: int, size: float) -> Array:
    """What follows sees all channels around 1: those of the spikes less, as they say the same of every token."""
    root = max(1.0, size * (2 / width) ** 0.5)
    return (1 + net.random(width, scale=0.1)) * root * quiet(width, 0.05 / root)


def layer_norm(net: Network, x: str, width: int, size: float = 0.0) -> str:
    gains, shift = net.constant(_gains(net, width, size)), net.weight(width, scale=0.02)
    return net.node("LayerNormalization", x, gains, shift, axis=-1, epsilon=1e-5)


def rms_norm(net: Network, x: str, width: int, size: float = 0.0) -> str:
    """Written out; the squares of large spikes are beyond FP16."""
    square = net.reaches(net.node("Pow", x, net.number(2.0)), size**2)
    mean = net.reaches(net.node("ReduceMean", square, axes=[-1]), size**2 * 2 / width)
    root = net.node("Sqrt", net.node("Add", mean, net.number(1e-6)))
    return net.node("Mul", net.constant(_gains(net, width, size)), net.node("Div", x, root))


def cancelling_norm(net: Network, x: str, width: int, *, harmed: bool) -> str:
    """The variance as E[x^2] - E[x]^2, which cancels where the mean is far from zero (`harmed`)."""
    mean = net.node("ReduceMean", x, axes=[-1])
    squares = net.node("Mul", x, x)
    of_squares = net.node("ReduceMean", squares, axes=[-1])
    square = net.node("Mul", mean, mean)
    variance = net.node("Sub", of_squares, square)
    root = net.node("Sqrt", net.node("Add", variance, net.number(1e-5)))
    centred = net.node("Sub", x, mean)
    if harmed:
        net.harmed(mean, of_squares, square, variance)
    y = net.node("Div", centred, root)
    y = net.node("Mul", y, net.constant(1 + net.random(width, scale=0.1)))
    return net.node("Add", y, net.weight(width, scale=0.02))


def group_norm(net: Network, x: str, shape: tuple[int, ...], groups: int) -> str:
    """As PyTorch exports it: an InstanceNormalization over groups of channels, then gain and shift."""
    channels = shape[1]
    ones, zeros = (net.constant(np.full(groups, value, np.float32)) for value in (1, 0))
    grouped = net.node("Reshape", x, net.ints(0, groups, -1))
    y = net.node("Reshape", net.node("InstanceNormalization", grouped, ones, zeros, epsilon=1e-5), net.ints(*shape))
    y = net.node("Mul", y, net.constant(1 + net.random(channels, 1, 1, scale=0.1)))
    return net.node("Add", y, net.weight(channels, 1, 1, scale=0.02))


# ----------------------------------------------------------------------------------------------- transformer


def rotated(net: Network, x: str, length: int, head: int) -> str:
    """RoPE, as Llama's code is exported: the second half of each head, negated, before the first."""
    angles = np.outer(np.arange(length), 10000.0 ** (-np.arange(0, head, 2) / head))
    waves = [np.concatenate([wave, wave], 1).astype(np.float32) for wave in (np.cos(angles), np.sin(angles))]
    first = net.node("Slice", x, net.ints(0), net.ints(head // 2), net.ints(3))
    second = net.node("Slice", x, net.ints(head // 2), net.ints(head), net.ints(3))
    turned = net.node("Concat", net.node("Neg", second), first, axis=-1)
    cosine, sine = map(net.constant, waves)
    return net.node("Add", net.node("Mul", x, cosine), net.node("Mul", turned, sine))


def attention(
    net: Network,
    x: str,
    width: int,
    heads: int,
    *,
    memory: str = "",
    memory_width: int = 0,
    added: str = "",
    allowed: str = "",
    rope: int = 0,
    scaled: bool = True,
    outlier: float = 0.0,
) -> str:
    """Attention of `x` to itself or to `memory`.

    Args:
        added: A mask or a bias that is added to the scores.
        allowed: A mask of booleans: probabilities elsewhere become zero.
        rope: The length of `x`, for positions that are rotations.
        scaled: Whether the scores are divided by the root of the heads' width.
        outlier: One channel of each head of queries and keys has this value, which no softmax sees in FP32.
    """
    head = width // heads
    rows, merged = net.ints(0, -1, heads, head), net.ints(0, -1, width)
    bias = net.random(width, scale=0.02)
    bias[::head] += outlier

    def project(read: str, columns: int, shift: Array, perm: list[int], gain: float = 1.0) -> str:
        array = net.random(columns, width, scale=gain * columns**-0.5)
        array[:, ::head] *= 0.0 if outlier else 1.0
        flat = net.node("Add", net.node("MatMul", read, net.constant(array)), net.constant(shift))
        return net.node("Transpose", net.node("Reshape", flat, rows), perm=perm)

    source, columns = memory or x, memory_width or width
    query = project(x, width, bias, [0, 2, 1, 3], gain=1.0 if scaled else head**-0.5)
    key = project(source, columns, bias, [0, 2, 1, 3] if rope else [0, 2, 3, 1])
    value = project(source, columns, net.random(width, scale=0.02), [0, 2, 1, 3])
    if rope:
        query = rotated(net, query, rope, head)
        key = net.node("Transpose", rotated(net, key, rope, head), perm=[0, 1, 3, 2])
    scores = net.reaches(net.node("MatMul", query, key), outlier**2)
    if scaled:
        scores = net.node("Div", scores, net.number(head**0.5))
        if outlier:
            net.reaches(scores, outlier**2)  # not beyond FP16, but too large for the differences that softmax sees
    if added:
        scores = net.node("Add", scores, added)
    shares = net.node("Softmax", scores, axis=-1)
    if allowed:
        shares = net.node("Where", allowed, shares, net.number(0.0))
    mixed = net.node("Transpose", net.node("MatMul", shares, value), perm=[0, 2, 1, 3])
    return linear(net, net.node("Reshape", mixed, merged), width, width, bias=net.random(width, scale=0.02))


def gelu_mlp(net: Network, x: str, width: int, jump: float = 0.0) -> str:
    """Four times as wide inside. `jump` is what the last bias adds to the spikes."""
    hidden = gelu(net, linear(net, x, width, 4 * width, bias=net.random(4 * width, scale=0.02)))
    bias = net.random(width, scale=0.02) + spikes(width, jump)
    return net.reaches(linear(net, hidden, 4 * width, width, bias=bias), jump)


def relu_mlp(net: Network, x: str, width: int, jump: float = 0.0) -> str:
    hidden = relu(net, linear(net, x, width, 4 * width))
    return net.reaches(linear(net, hidden, 4 * width, width, bias=spikes(width, jump) if jump else None), jump)


def swiglu_mlp(net: Network, x: str, width: int, jump: float = 0.0) -> str:
    inner = width * 8 // 3 // 64 * 64
    gate = silu(net, linear(net, x, width, inner))
    hidden = net.node("Mul", gate, linear(net, x, width, inner))
    return net.reaches(linear(net, hidden, inner, width, bias=spikes(width, jump) if jump else None), jump)


def block(
    net: Network,
    x: str,
    width: int,
    heads: int,
    sizes: tuple[float, float] = (0.0, 0.0),
    *,
    norm: Norm = layer_norm,
    mlp: FeedForward = gelu_mlp,
    memory: str = "",
    **options: object,
) -> str:
    """A pre-norm block: attention, attention to `memory` if there is one, and a feed-forward.

    `sizes` are those of the stream before and after it; `options` belong to the attention of `x` to itself.
    """
    before, after = sizes
    y = attention(net, norm(net, x, width, before), width, heads, **options)
    x = net.reaches(net.node("Add", x, y), before)
    if memory:
        y = attention(net, norm(net, x, width, before), width, heads, memory=memory, scaled=options.get("scaled", True))
        x = net.reaches(net.node("Add", x, y), before)
    y = mlp(net, norm(net, x, width, before), width, after - before)
    return net.reaches(net.node("Add", x, y), after)


def post_norm_block(
    net: Network, x: str, width: int, heads: int, size: float = 0.0, *, memory: str = "", **options: object
) -> str:
    """As BERT has it, with norms behind the additions. The feed-forward adds spikes, the norm takes them away."""
    x = layer_norm(net, net.node("Add", x, attention(net, x, width, heads, **options)), width)
    if memory:
        x = layer_norm(net, net.node("Add", x, attention(net, x, width, heads, memory=memory)), width)
    y = net.reaches(net.node("Add", x, gelu_mlp(net, x, width, size)), size)
    return layer_norm(net, y, width, size)
