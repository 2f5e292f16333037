"""Models of words and sound with planted FP16 hazards; each docstring says which."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from blocks import (
    attention,
    block,
    gelu,
    layer_norm,
    linear,
    post_norm_block,
    relu_mlp,
    rms_norm,
    sizes_between,
    swiglu_mlp,
)
from hazards import NEVER, OVERFLOW, SQUARE_OVERFLOWS, HazardModel, ids, normal, sized, valid, written
from made import Array, Network
from onnx import TensorProto


def embedded(net: Network, name: str, vocabulary: int, width: int, length: int) -> str:
    table = net.weight(vocabulary, width, scale=1.0)
    return net.node("Gather", table, net.input(name, 1, length, kind=TensorProto.INT64))


def causal(length: int) -> Array:
    return np.tril(np.ones((1, 1, length, length), bool))


def masked(net: Network, name: str, length: int) -> tuple[str, str]:
    """The mask as booleans over keys, and as what is added to scores. -inf in its place does no harm."""
    keys = net.node("Unsqueeze", net.input(name, 1, length), net.ints(1, 2))
    allowed = net.node("Cast", keys, to=TensorProto.BOOL)
    return allowed, net.node("Where", allowed, net.number(0.0), net.number(NEVER))


def bert_base(path: Path, scale: float = 1.0) -> HazardModel:
    """Two blocks whose feed-forward overflows two channels, right before a norm."""
    net = Network()
    width, length, blocks = sized(768, scale, of=64), sized(128, scale, least=16), sized(12, scale, least=4)
    x = embedded(net, "input_ids", 8000, width, length)
    x = layer_norm(net, net.node("Add", x, net.weight(length, width, scale=0.5)), width)
    _, added = masked(net, "attention_mask", length)
    for index in range(blocks):
        net.scope = f"encoder.{index}"
        size = OVERFLOW if index in (blocks // 3, 2 * blocks // 3) else 0.0
        x = post_norm_block(net, x, width, width // 64, size, added=added)
    net.scope = "head"
    logits = linear(net, x, width, 9, bias=net.random(9, scale=0.02))
    draws = {"input_ids": ids(8000, 1, length), "attention_mask": valid(length)}
    return written(net, path, {"logits": logits}, draws, atol=0.03)


def decoder_88m(path: Path, scale: float = 1.0) -> HazardModel:
    """A causal decoder with two norms whose squares overflow."""
    net = Network()
    width, length, blocks = sized(768, scale, of=64), sized(128, scale, least=16), sized(12, scale, least=4)
    x = embedded(net, "input_ids", 2000, width, length)
    added = net.constant(np.where(causal(length), 0, NEVER).astype(np.float32))
    for index, sizes in enumerate(sizes_between(blocks, blocks // 3, blocks // 3 + 1, SQUARE_OVERFLOWS)):
        net.scope = f"layers.{index}"
        x = block(net, x, width, width // 64, sizes, norm=rms_norm, mlp=swiglu_mlp, added=added, rope=length)
    net.scope = "head"
    logits = linear(net, rms_norm(net, x, width), width, 2000)
    return written(net, path, {"logits": logits}, {"input_ids": ids(2000, 1, length)}, atol=0.1)


def t5_small(path: Path, scale: float = 1.0) -> HazardModel:
    """Squares overflow in four norms of the encoder and three of the decoder."""
    net = Network()
    width, length, blocks = sized(512, scale, of=64), sized(64, scale, least=16), sized(6, scale, least=4)
    heads = width // 64

    def stream(x: str, name: str, lifted: int, added: str, memory: str = "") -> str:
        for index, sizes in enumerate(sizes_between(blocks, 1, 1 + lifted, SQUARE_OVERFLOWS)):
            net.scope = f"{name}.{index}"
            options = {"norm": rms_norm, "mlp": relu_mlp, "added": added, "scaled": False}
            x = block(net, x, width, heads, sizes, memory=memory, **options)
        return rms_norm(net, x, width)

    def position_bias(length: int) -> str:
        distance = np.clip(np.arange(length)[None] - np.arange(length)[:, None], -16, 15) + 16
        y = net.node("Gather", net.weight(32, heads, scale=0.5), net.constant(distance))
        return net.node("Unsqueeze", net.node("Transpose", y, perm=[2, 0, 1]), net.ints(0))

    x = embedded(net, "input_ids", 8000, width, length)
    memory = stream(x, "encoder", 2, position_bias(length))
    net.scope = "decoder"
    x = embedded(net, "decoder_input_ids", 8000, width, length // 2)
    never = net.constant(np.where(causal(length // 2), 0, NEVER).astype(np.float32))
    y = stream(x, "decoder", 1, net.node("Add", position_bias(length // 2), never), memory)
    net.scope = "head"
    logits = linear(net, y, width, 8000)
    draws = {"input_ids": ids(8000, 1, length), "decoder_input_ids": ids(8000, 1, length // 2)}
    return written(net, path, {"logits": logits}, draws, atol=0.05)


def whisper_tiny(path: Path, scale: float = 1.0) -> HazardModel:
    """The encoder's stream overflows in one block. Rows that are masked as a whole are set to zero by a Where."""
    net = Network()
    width, frames, length = sized(384, scale, of=64), sized(3000, scale, of=2, least=40), sized(32, scale, least=12)
    heads, vocabulary = width // 64, 12000
    x = net.input("mel", 1, 80, frames)
    for read, stride in ((80, 1), (width, 2)):
        weights = net.weight(width, read, 3, scale=(1.5 / (3 * read)) ** 0.5), net.weight(width, scale=0.02)
        x = gelu(net, net.node("Conv", x, *weights, pads=[1, 1], strides=[stride]))
    x = net.node("Add", net.node("Transpose", x, perm=[0, 2, 1]), net.weight(frames // 2, width, scale=0.5))
    for index, sizes in enumerate(sizes_between(4, 1, 2, OVERFLOW)):
        net.scope = f"encoder.{index}"
        x = block(net, x, width, heads, sizes)
    memory = layer_norm(net, x, width)
    net.scope = "decoder"
    x = embedded(net, "tokens", vocabulary, width, length)
    x = net.node("Add", x, net.weight(length, width, scale=0.5))
    keys, _ = masked(net, "attention_mask", length)
    allowed = net.node("And", net.constant(causal(length)), keys)
    added = net.node("Where", allowed, net.number(0.0), net.number(NEVER))
    for index in range(4):
        net.scope = f"decoder.{index}"
        x = block(net, x, width, heads, memory=memory, added=added, allowed=allowed)
    net.scope = "head"
    logits = linear(net, layer_norm(net, x, width), width, vocabulary)
    draws = {
        "mel": normal(1, 80, frames),
        "tokens": ids(vocabulary, 1, length),
        "attention_mask": valid(length, left=True),
    }
    return written(net, path, {"logits": logits}, draws, atol=0.03)


def lstm_tagger(path: Path, scale: float = 1.0) -> HazardModel:
    """(1 - mask) * -1e9 is 0 * -inf in FP16. The rows of padding are masked as a whole, and a Where drops them."""
    net = Network()
    length, width, hidden = sized(64, scale, least=16), sized(128, scale, of=16), sized(256, scale, of=32)
    x = net.node("Transpose", embedded(net, "words", 8000, width, length), perm=[1, 0, 2])
    for read in (width, 2 * hidden):
        weights = [net.weight(2, 4 * hidden, columns, scale=columns**-0.5) for columns in (read, hidden)]
        weights.append(net.weight(2, 8 * hidden, scale=0.02))
        y = net.node("LSTM", x, *weights, hidden_size=hidden, direction="bidirectional")
        x = net.node("Reshape", net.node("Transpose", y, perm=[0, 2, 1, 3]), net.ints(0, 0, -1))
    x = net.node("Transpose", x, perm=[1, 0, 2])
    net.scope = "attention"
    mask = net.input("mask", 1, length)
    pairs = net.node("Mul", net.node("Unsqueeze", mask, net.ints(1, 2)), net.node("Unsqueeze", mask, net.ints(1, 3)))
    added = net.node("Mul", net.node("Sub", net.number(1.0), pairs), net.number(NEVER))
    net.harmed(added)
    x = net.node("Add", x, attention(net, x, 2 * hidden, 4, added=added))
    net.scope = "head"
    tags = linear(net, x, 2 * hidden, 17, bias=net.random(17, scale=0.02), gain=8.0)
    inside = net.node("Cast", net.node("Unsqueeze", mask, net.ints(2)), to=TensorProto.BOOL)
    tags = net.node("Where", inside, tags, net.number(0.0))
    draws = {"words": ids(8000, 1, length), "mask": valid(length)}
    return written(net, path, {"tags": tags}, draws, atol=0.03)
