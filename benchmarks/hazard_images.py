"""Models of images with planted FP16 hazards; each docstring says which."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from blocks import (
    attention,
    block,
    cancelling_norm,
    conv,
    conv_patches,
    gelu,
    gelu_mlp,
    group_norm,
    layer_norm,
    linear,
    post_norm_block,
    quiet,
    relu,
    silu,
    sizes_between,
    spikes,
)
from hazards import OVERFLOW, HazardModel, normal, sized, step_embedding, written
from made import Array, Network


def vit_b16(path: Path, scale: float = 1.0) -> HazardModel:
    """A residual stream that one block lifts beyond FP16 and a later one brings back."""
    net = Network()
    width, size, blocks = sized(768, scale, of=64), sized(224, scale, of=16, least=32), sized(12, scale, least=5)
    x = conv_patches(net, net.input("pixels", 1, 3, size, size), 3, width, 16, 0)
    x = net.node("Concat", net.weight(1, 1, width, scale=0.5), x, axis=1)
    x = net.node("Add", x, net.weight(1, (size // 16) ** 2 + 1, width, scale=0.5))
    for index, sizes in enumerate(sizes_between(blocks, blocks // 3, blocks // 3 + 2, OVERFLOW)):
        net.scope = f"blocks.{index}"
        x = block(net, x, width, width // 64, sizes)
    net.scope = "head"
    first = net.node("Gather", layer_norm(net, x, width), net.constant(np.array(0)), axis=1)
    logits = linear(net, first, width, 1000, bias=net.random(1000, scale=0.02))
    return written(net, path, {"logits": logits}, {"pixels": normal(1, 3, size, size)}, atol=0.05)


def segformer_b0(path: Path, scale: float = 1.0) -> HazardModel:
    """Two norms behind patch embeddings compute E[x^2] - E[x]^2 where the mean is 60 deviations."""
    net = Network()
    size, widths = (
        sized(512, scale, of=32, least=64),
        [sized(full, scale, of=32, least=96 if full > 64 else 0) for full in (32, 64, 160, 256)],
    )
    decoded, heads = sized(256, scale, of=8), (1, 2, 5, 8) if scale == 1 else (1, 1, 1, 2)
    x, read, maps = net.input("pixels", 1, 3, size, size), 3, []
    for stage, width in enumerate(widths):
        net.scope = f"stage.{stage}"
        side, reduction = size // (4 << stage), 8 >> stage
        harmed = stage in (2, 3)
        x = conv_patches(net, x, read, width, 2 if stage else 4, 2 if stage else 4, 60.0 if harmed else 0.0)
        x = cancelling_norm(net, x, width, harmed=harmed) if harmed else layer_norm(net, x, width)
        for index in range(2):
            net.scope = f"stage.{stage}.{index}"
            shape = net.ints(1, width, side, side)
            memory = normed = layer_norm(net, x, width)
            if reduction > 1:
                image = net.node("Reshape", net.node("Transpose", normed, perm=[0, 2, 1]), shape)
                memory = layer_norm(net, conv_patches(net, image, width, width, reduction, 0), width)
            x = net.node("Add", x, attention(net, normed, width, heads[stage], memory=memory))
            x = net.node("Add", x, mix_mlp(net, layer_norm(net, x, width), width, side))
        net.scope = f"stage.{stage}"
        last = layer_norm(net, x, width)
        x = net.node("Reshape", net.node("Transpose", last, perm=[0, 2, 1]), net.ints(1, width, side, side))
        y = net.node("Transpose", linear(net, last, width, decoded), perm=[0, 2, 1])
        y = net.node("Reshape", y, net.ints(1, decoded, side, side))
        target = net.ints(1, decoded, size // 4, size // 4)
        maps.append(net.node("Resize", y, "", "", target, mode="linear") if stage else y)
        read = width
    net.scope = "head"
    y = conv(net, net.node("Concat", *maps, axis=1), 4 * decoded, decoded, gain=1.4, act=relu)
    classes = conv(net, y, decoded, 19)
    return written(net, path, {"classes": classes}, {"pixels": normal(1, 3, size, size)}, atol=0.5)


def mix_mlp(net: Network, x: str, width: int, side: int) -> str:
    inner = 4 * width
    y = net.node("Transpose", linear(net, x, width, inner, bias=net.random(inner, scale=0.02)), perm=[0, 2, 1])
    y = conv(net, net.node("Reshape", y, net.ints(1, inner, side, side)), inner, inner, 3, groups=inner)
    y = net.node("Transpose", net.node("Reshape", y, net.ints(0, inner, -1)), perm=[0, 2, 1])
    return linear(net, gelu(net, y), inner, width, bias=net.random(width, scale=0.02))


def detr_like(path: Path, scale: float = 1.0) -> HazardModel:
    """Boxes around reference points, in the pixels of images that are 8,000 wide."""
    net = Network()
    width, side, queries = sized(256, scale, of=64), sized(512, scale, of=32, least=64), sized(100, scale, least=20)
    blocks, heads = sized(6, scale, least=2), width // 32
    x = conv(net, net.input("pixels", 1, 3, side, side), 3, width // 4, 7, stride=2, gain=1.4, act=relu)
    x = net.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    read = width // 4
    for stage, channels in enumerate((width // 4, width // 2, width, 2 * width)):
        net.scope = f"backbone.{stage}"
        y = conv(net, x, read, channels, 3, stride=2 if stage else 1, gain=1.4, act=relu)
        x = relu(net, net.node("Add", y, conv(net, y, channels, channels, 3, gain=0.5)))
        read = channels
    net.scope = "encoder"
    tokens = (side // 32) ** 2
    x = conv(net, x, read, width)
    x = net.node("Transpose", net.node("Reshape", x, net.ints(0, width, -1)), perm=[0, 2, 1])
    x = net.node("Add", x, net.weight(1, tokens, width, scale=0.5))
    for index in range(blocks):
        net.scope = f"encoder.{index}"
        x = post_norm_block(net, x, width, heads)
    net.scope = "decoder"
    y = net.node("Add", net.weight(1, queries, width, scale=1.0), net.node("ReduceMean", x, axes=[1]))
    for index in range(blocks):
        net.scope = f"decoder.{index}"
        y = post_norm_block(net, y, width, heads, memory=x)
    net.scope = "head"
    inner = relu(net, linear(net, y, width, width, bias=net.random(width, scale=0.02)))
    boxes = decoded_boxes(net, linear(net, inner, width, 4, gain=0.03), queries)
    classes = linear(net, y, width, 91, bias=net.random(91, scale=0.02))
    draws = {"pixels": normal(1, 3, side, side), "size": lambda random: random.uniform(7000, 8000, (1, 4)).astype("f4")}
    return written(net, path, {"boxes": boxes, "classes": classes}, draws, atol=0.5)


def decoded_boxes(net: Network, offsets: str, queries: int) -> str:
    """Sigmoids of centres and sizes, then corners, then pixels: every step rounds positions of up to 8,000 pixels."""
    points = net.random(1, queries, 4, scale=1.0)
    points[..., 2:] = points[..., 2:] * 0.3 - 4
    placed = net.node("Add", offsets, net.constant(points))
    shares = net.node("Sigmoid", placed)
    centres, extents = net.nodes_of("Split", shares, net.ints(2, 2), outputs=2, axis=-1)
    half = net.node("Mul", extents, net.number(0.5))
    corners = net.node("Sub", centres, half), net.node("Add", centres, half)
    boxes = net.node("Mul", net.node("Concat", *corners, axis=-1), net.input("size", 1, 4))
    net.harmed(placed, shares, *corners, boxes)
    return boxes


def resnet50(path: Path, scale: float = 1.0) -> HazardModel:
    """The sum of squares of a hand-written L2 normalisation overflows."""
    net = Network()
    width, size = sized(64, scale, of=8), sized(224, scale, of=32, least=64)
    x = conv(net, net.input("pixels", 1, 3, size, size), 3, width, 7, stride=2, gain=1.4, act=relu)
    x = net.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    read = width
    for stage, full in enumerate((3, 4, 6, 3)):
        inner, out = width << stage, 4 * width << stage
        for index in range(sized(full, scale)):
            net.scope = f"layer{stage + 1}.{index}"
            stride = 2 if stage and not index else 1
            y = conv(net, x, read, inner, gain=1.4, act=relu)
            y = conv(net, y, inner, inner, 3, stride=stride, gain=1.4, act=relu)
            skip = x if index else conv(net, x, read, out, stride=stride)
            x, read = relu(net, net.node("Add", conv(net, y, inner, out, gain=0.4), skip)), out
    net.scope = "head"
    pooled = net.node("Flatten", net.node("GlobalAveragePool", x))
    features = linear(net, pooled, read, read, gain=700 * read**-0.5)  # squares of some 1e5 in all
    total = net.reaches(net.node("ReduceSum", net.node("Mul", features, features), net.ints(1), keepdims=1), 1e5)
    embedding = net.node("Div", features, net.node("Sqrt", total))
    return written(net, path, {"embedding": embedding}, {"pixels": normal(1, 3, size, size)}, atol=0.01)


def efficientnet_b0(path: Path, scale: float = 1.0) -> HazardModel:
    """Two channels of the residual stream of one stage lie beyond FP16; convolutions hardly read them."""
    net = Network()
    size = sized(224, scale, of=32, least=64)
    read = sized(32, scale, of=8)
    x = conv(net, net.input("pixels", 1, 3, size, size), 3, read, 3, stride=2, act=silu)
    stages = ((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3))
    stages += ((6, 112, 3, 1, 5), (6, 192, 4, 2, 5), (6, 320, 1, 1, 3))
    for stage, (expand, full, repeats, stride, kernel) in enumerate(stages):
        width, lifted = sized(full, scale, of=8), 0.0
        for index in range(repeats):
            net.scope = f"stage.{stage}.{index}"
            after = OVERFLOW if stage == 3 and index < 2 else 0.0
            mute = quiet(read, 1e-5) if lifted else None
            step = stride if not index else 1
            y = mbconv(net, x, read, width, kernel, step, expand, bias=spikes(width, after - lifted), mute=mute)
            y = net.reaches(y, after - lifted)
            x, read, lifted = (net.reaches(net.node("Add", y, x), after) if index else y), width, after
    net.scope = "head"
    y = conv(net, x, read, 4 * read, gain=1.4, act=silu)
    y = net.node("Flatten", net.node("GlobalAveragePool", y))
    logits = linear(net, y, 4 * read, 1000, gain=10.0)
    return written(net, path, {"logits": logits}, {"pixels": normal(1, 3, size, size)}, atol=0.03)


def mbconv(
    net: Network,
    x: str,
    read: int,
    width: int,
    kernel: int,
    stride: int,
    expand: int,
    *,
    bias: Array,
    mute: Array | None,
) -> str:
    """Expansion, depthwise convolution, squeeze and excitation, and projection with a bias beside a small one."""
    inner = read * expand
    y = conv(net, x, read, inner, gain=1.4, act=silu, mute=mute) if expand > 1 else x
    y = conv(net, y, inner, inner, kernel, stride=stride, groups=inner, gain=1.4, act=silu)
    squeezed = conv(net, net.node("GlobalAveragePool", y), inner, max(1, read // 4), act=silu)
    y = net.node("Mul", y, net.node("Sigmoid", conv(net, squeezed, max(1, read // 4), inner)))
    return conv(net, y, inner, width, gain=1.5, bias=net.random(width, scale=0.02) + bias)


def yolov8s_like(path: Path, scale: float = 1.0) -> HazardModel:
    """Boxes in the pixels of the image before it was scaled down to 640: 8,192 wide."""
    net = Network()
    size, base = sized(640, scale, of=64, least=320), sized(32, scale, of=8)

    def cbs(x: str, read: int, out: int, kernel: int = 1, stride: int = 1) -> str:
        return conv(net, x, read, out, kernel, stride=stride, gain=1.5, act=silu)

    def c2f(x: str, read: int, out: int, count: int, *, shortcut: bool = True) -> str:
        half = out // 2
        parts = net.nodes_of("Split", cbs(x, read, out), net.ints(half, half), outputs=2, axis=1)
        for _ in range(count):
            y = conv(net, cbs(parts[-1], half, half, 3), half, half, 3, gain=0.7, act=silu)
            parts.append(net.node("Add", parts[-1], y) if shortcut else y)
        return cbs(net.node("Concat", *parts, axis=1), half * len(parts), out)

    def merged(x: str, other: str, read: int, out: int) -> str:
        return c2f(net.node("Concat", x, other, axis=1), read, out, 1, shortcut=False)

    def doubled(x: str) -> str:
        return net.node("Resize", x, "", net.constant(np.array([1, 1, 2, 2], np.float32)), mode="nearest")

    c2, c3, c4, c5 = (base << power for power in range(1, 5))
    x = cbs(cbs(net.input("images", 1, 3, size, size), 3, base, 3, 2), base, c2, 3, 2)
    p3 = c2f(cbs(c2f(x, c2, c2, 1), c2, c3, 3, 2), c3, c3, 2)
    p4 = c2f(cbs(p3, c3, c4, 3, 2), c4, c4, 2)
    pools = [cbs(c2f(cbs(p4, c4, c5, 3, 2), c5, c5, 1), c5, c5 // 2)]
    for _ in range(3):
        pools.append(net.node("MaxPool", pools[-1], kernel_shape=[5, 5], pads=[2] * 4))
    p5 = cbs(net.node("Concat", *pools, axis=1), 2 * c5, c5)
    net.scope = "neck"
    p4 = merged(doubled(p5), p4, c5 + c4, c4)
    p3 = merged(doubled(p4), p3, c4 + c3, c3)
    p4 = merged(cbs(p3, c3, c3, 3, 2), p4, c3 + c4, c4)
    p5 = merged(cbs(p4, c4, c4, 3, 2), p5, c4 + c5, c5)
    net.scope = "head"
    levels = []
    for x, read in ((p3, c3), (p4, c4), (p5, c5)):
        bins = np.tile(-1.5 * np.arange(16), 4)
        box = conv(net, cbs(cbs(x, read, 64, 3), 64, 64, 3), 64, 64, gain=0.1, bias=bins)
        kinds = conv(net, cbs(cbs(x, read, c3, 3), c3, c3, 3), c3, 80, bias=np.full(80, -3.0))
        levels.append(net.node("Reshape", net.node("Concat", box, kinds, axis=1), net.ints(1, 144, -1)))
    box, kinds = net.nodes_of("Split", net.node("Concat", *levels, axis=2), net.ints(64, 80), outputs=2, axis=1)
    outputs = {"boxes": boxes_of_bins(net, box, size), "scores": net.node("Sigmoid", kinds)}
    return written(net, path, outputs, {"images": normal(1, 3, size, size)}, atol=1.0)


def boxes_of_bins(net: Network, box: str, size: int) -> str:
    """The expected distances to the sides of each box, from its cell, in cells, then in pixels."""
    shares = net.node("Transpose", net.node("Reshape", box, net.ints(1, 4, 16, -1)), perm=[0, 2, 1, 3])
    bins = net.constant(np.arange(16, dtype=np.float32).reshape(1, 16, 1, 1))
    distances = net.node("Reshape", net.node("Conv", net.node("Softmax", shares, axis=1), bins), net.ints(1, 4, -1))
    first, second = net.nodes_of("Split", distances, net.ints(2, 2), outputs=2, axis=1)
    strides = [np.full((size // stride) ** 2, stride, np.float32) for stride in (8, 16, 32)]
    cells = [np.indices((size // stride,) * 2)[::-1].reshape(2, -1) + 0.5 for stride in (8, 16, 32)]
    centres = net.constant(np.concatenate(cells, 1)[None].astype(np.float32))
    corners = net.node("Sub", centres, first), net.node("Add", centres, second)
    scaled = net.node("Mul", net.node("Concat", *corners, axis=1), net.constant(np.concatenate(strides)))
    boxes = net.node("Mul", scaled, net.number(8192 / size))
    net.harmed(*corners, scaled, boxes)
    return boxes


def diffusion_unet(path: Path, scale: float = 1.0) -> HazardModel:
    """Scores of the attention of two blocks overflow before they are scaled."""
    net = Network()
    base, size, words = sized(96, scale, of=24), sized(64, scale, of=4, least=16), sized(77, scale, least=8)
    groups, context_width, timed = base // 3, sized(768, scale, of=32), 4 * base
    x = net.input("latents", 1, 4, size, size)
    context = net.input("context", 1, words, context_width)
    time = silu(net, linear(net, net.input("time", 1, base), base, timed, bias=net.random(timed, scale=0.02)))
    time = silu(net, linear(net, time, timed, timed, bias=net.random(timed, scale=0.02)))

    def resnet(x: str, read: int, out: int, side: int) -> str:
        y = conv(net, silu(net, group_norm(net, x, (1, read, side, side), groups)), read, out, 3, gain=1.4)
        shift = linear(net, time, timed, out, bias=net.random(out, scale=0.02))
        y = net.node("Add", y, net.node("Unsqueeze", shift, net.ints(2, 3)))
        y = conv(net, silu(net, group_norm(net, y, (1, out, side, side), groups)), out, out, 3)
        return net.node("Add", x if read == out else conv(net, x, read, out), y)

    def spatial(x: str, width: int, side: int, outlier: float = 0.0) -> str:
        heads = width // (base // 3)
        y = conv(net, group_norm(net, x, (1, width, side, side), groups), width, width)
        y = net.node("Transpose", net.node("Reshape", y, net.ints(1, width, -1)), perm=[0, 2, 1])
        y = net.node("Add", y, attention(net, layer_norm(net, y, width), width, heads, outlier=outlier))
        options = {"memory": context, "memory_width": context_width, "outlier": outlier}
        y = net.node("Add", y, attention(net, layer_norm(net, y, width), width, heads, **options))
        y = net.node("Add", y, gelu_mlp(net, layer_norm(net, y, width), width))
        y = net.node("Reshape", net.node("Transpose", y, perm=[0, 2, 1]), net.ints(1, width, side, side))
        return net.node("Add", x, conv(net, y, width, width))

    widths = (base, 2 * base, 4 * base)
    x, read, skips = conv(net, x, 4, base, 3), base, []
    for level, width in enumerate(widths):
        side = size >> level
        for index in range(2):
            net.scope = f"down.{level}.{index}"
            x, read = resnet(x, read, width, side), width
            x = spatial(x, width, side, 300.0 if (level, index) == (1, 1) else 0.0) if level else x
            skips.append((x, width))
        x = conv(net, x, width, width, 3, stride=2) if level < 2 else x
    net.scope = "middle"
    x = resnet(spatial(resnet(x, read, read, size // 4), read, size // 4), read, read, size // 4)
    for level in (2, 1, 0):
        side, width = size >> level, widths[level]
        for index in range(2):
            net.scope = f"up.{level}.{index}"
            skip, extra = skips.pop()
            x, read = resnet(net.node("Concat", x, skip, axis=1), read + extra, width, side), width
            x = spatial(x, width, side, 300.0 if (level, index) == (2, 0) else 0.0) if level else x
        if level:
            doubled = net.constant(np.array([1, 1, 2, 2], np.float32))
            x = conv(net, net.node("Resize", x, "", doubled, mode="nearest"), width, width, 3)
    net.scope = "out"
    noise = conv(net, silu(net, group_norm(net, x, (1, base, size, size), groups)), base, 4, 3)
    draws = {
        "latents": normal(1, 4, size, size),
        "context": normal(1, words, context_width),
        "time": step_embedding(base),
    }
    return written(net, path, {"noise": noise}, draws, atol=0.03)
