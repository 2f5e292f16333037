"""Twelve small networks of different kinds, as people write them: for the tests of `trt-helper export`.

Weights are seeded; each has 1,000 to 50,000 of them. `ARCHITECTURES` says what each is called with. Nothing here
is meant to go wrong in FP16; see zoo.py for that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

F = nn.functional


class Residual(nn.Module):
    def __init__(self, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.down = nn.Sequential(nn.Conv2d(channels, channels, 1, stride), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        out += self.down(x)  # in place, as in torchvision
        return out.relu_()


class ResidualCnn(nn.Module):
    """Residual blocks, pooling, a linear head."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.layer1 = nn.Sequential(Residual(8), Residual(8, 2))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.layer1(self.stem(x))).flatten(1))


class DepthwiseCnn(nn.Module):
    """Inverted residuals with squeeze-and-excitation, hard swish and ReLU6, as in MobileNet."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(3, 12, 1)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.squeeze = nn.Conv2d(12, 4, 1)
        self.excite = nn.Conv2d(4, 12, 1)
        self.project = nn.Conv2d(12, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.hardswish(self.norm(self.depthwise(F.relu6(self.expand(x)))))
        gate = F.hardsigmoid(self.excite(F.relu(self.squeeze(h.mean((2, 3), keepdim=True)))))
        return x + self.project(h * gate)


class Detector(nn.Module):
    """One convolution stage, anchors made in forward from the size of the map, boxes decoded from them."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.SiLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.SiLU())
        self.box = nn.Conv2d(8, 4, 1)
        self.score = nn.Conv2d(8, classes, 1)
        self.register_buffer("stride", torch.tensor(8.0))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features = self.body(image)
        height, width = features.shape[-2:]
        rows, columns = torch.arange(height, device=image.device), torch.arange(width, device=image.device)
        y, x = torch.meshgrid(rows.float() + 0.5, columns.float() + 0.5, indexing="ij")
        centre = torch.stack((x, y), -1).view(1, -1, 2) * self.stride
        raw = self.box(features).flatten(2).transpose(1, 2)
        middle = centre + raw[..., :2] * self.stride
        size = raw[..., 2:].clamp(max=4).exp() * self.stride
        boxes = torch.cat((middle - size / 2, middle + size / 2), -1)
        return {"boxes": boxes, "scores": self.score(features).flatten(2).transpose(1, 2).sigmoid()}


class UNet(nn.Module):
    """Down, up by a transposed convolution and by interpolation, skips by concatenation, GroupNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.GELU())
        self.down = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1), nn.InstanceNorm2d(12, affine=True), nn.LeakyReLU(0.1))
        self.deep = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(12, 12, 3, padding=1), nn.Mish())
        self.up = nn.ConvTranspose2d(24, 8, 2, 2)
        self.leave = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.enter(x)
        second = self.down(first)
        third = F.interpolate(self.deep(second), scale_factor=2, mode="bilinear", align_corners=False)
        return self.leave(torch.cat((first, self.up(torch.cat((second, third), 1))), 1))


class SuperResolution(nn.Module):
    """Twice as large by pixel shuffle, with a bicubic skip."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, channels, 3, padding=1)
        self.body = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.act = nn.PReLU(channels)
        self.tail = nn.Sequential(nn.Conv2d(channels, 12, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, low: Tensor) -> Tensor:
        h = self.head(low)
        for layer in self.body:
            h = h + self.act(layer(h))
        return self.tail(h) + F.interpolate(low, scale_factor=2, mode="nearest")


class Attention(nn.Module):
    """Multi-head attention written out; `bias` is added to the scores."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) / math.sqrt(width // self.heads)
        scores = (scores if bias is None else scores + bias).softmax(-1)
        return self.proj((scores @ v).transpose(1, 2).reshape(batch, length, width))


class Vit(nn.Module):
    """Patches, a class token, learned positions, pre-norm blocks."""

    def __init__(self, width: int = 16, depth: int = 2) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, 17, width) * 0.1)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm1": nn.LayerNorm(width, eps=1e-6),
                    "attn": Attention(width, 2),
                    "norm2": nn.LayerNorm(width, eps=1e-6),
                    "mlp": nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)),
                }
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, 4)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch(image).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(x.shape[0], -1, -1), x), 1) + self.position
        for block in self.blocks:
            x = x + block["attn"](block["norm1"](x))
            x = x + block["mlp"](block["norm2"](x))
        return self.head(self.norm(x)[:, 0])


class Bert(nn.Module):
    """Token and position embeddings, PyTorch's own encoder layers, a padding mask, a tuple of results."""

    def __init__(self, vocabulary: int = 50, width: int = 16) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(64, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.layers = nn.ModuleList(nn.ModuleList((Attention(width, 2), nn.LayerNorm(width))) for _ in range(2))
        self.pooler = nn.Linear(width, width)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        position = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.norm(self.tokens(input_ids) + self.positions(position))
        bias = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * -10000.0
        for attention, norm in self.layers:
            x = norm(x + attention(x, bias))
        return x, torch.tanh(self.pooler(x[:, 0]))


class Decoder(nn.Module):
    """Rotary positions, torch's RMSNorm, a causal mask, grouped key heads, SwiGLU, tied embeddings: as in Llama."""

    def __init__(self, vocabulary: int = 40, width: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.embed = nn.Embedding(vocabulary, width)
        self.norm1 = nn.RMSNorm(width, eps=1e-6)
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(width, width, bias=False)
        self.o = nn.Linear(width, width, bias=False)
        self.norm2 = nn.RMSNorm(width, eps=1e-6)
        self.gate = nn.Linear(width, 2 * width, bias=False)
        self.up = nn.Linear(width, 2 * width, bias=False)
        self.down = nn.Linear(2 * width, width, bias=False)
        inverse = 1.0 / 10000 ** (torch.arange(0, self.size, 2).float() / self.size)
        self.register_buffer("inverse", inverse, persistent=False)

    def rotated(self, x: Tensor) -> Tensor:
        angle = torch.arange(x.shape[-2], device=x.device).float()[:, None] * self.inverse
        angle = torch.cat((angle, angle), -1)
        a, b = x.chunk(2, -1)
        return x * angle.cos() + torch.cat((-b, a), -1) * angle.sin()

    def forward(self, ids: Tensor) -> Tensor:
        batch, length = ids.shape
        x = self.embed(ids)
        h = self.norm1(x)
        q = self.rotated(self.q(h).view(batch, length, self.heads, self.size).transpose(1, 2))
        k, v = self.kv(h).view(batch, length, 2, self.heads // 2, self.size).permute(2, 0, 3, 1, 4)
        k, v = (t.repeat_interleave(2, dim=1) for t in (self.rotated(k), v))
        h = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(h.transpose(1, 2).reshape(batch, length, -1))
        h = self.norm2(x)
        x = x + self.down(F.silu(self.gate(h)) * self.up(h))
        return x @ self.embed.weight.T


class T5Norm(nn.Module):
    """RMS norm by hand, as T5 has it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class T5(nn.Module):
    """Encoder and decoder, relative position buckets, cross attention, ReLU feed-forward, norms by hand."""

    def __init__(self, vocabulary: int = 30, width: int = 16) -> None:
        super().__init__()
        self.shared = nn.Embedding(vocabulary, width)
        self.relative = nn.Embedding(8, 2)
        self.encoder = nn.ModuleDict({"norm": T5Norm(width), "attention": Attention(width, 2)})
        self.feed = nn.Sequential(T5Norm(width), nn.Linear(width, 32, bias=False), nn.ReLU(), nn.Linear(32, width))
        self.cross_q = nn.Linear(width, width, bias=False)
        self.cross_kv = nn.Linear(width, 2 * width, bias=False)
        self.final = T5Norm(width)

    def forward(self, input_ids: Tensor, decoder_input_ids: Tensor) -> Tensor:
        place = torch.arange(input_ids.shape[1], device=input_ids.device)
        bucket = (place[None, :] - place[:, None]).clamp(-4, 3) + 4
        bias = self.relative(bucket).permute(2, 0, 1)[None]
        x = self.shared(input_ids)
        x = x + self.encoder["attention"](self.encoder["norm"](x), bias)
        x = x + self.feed(x)
        y = self.shared(decoder_input_ids)
        k, v = self.cross_kv(x).chunk(2, -1)
        y = y + (self.cross_q(y) @ k.transpose(1, 2)).softmax(-1) @ v
        return self.final(y) @ self.shared.weight.T


class Recurrent(nn.Module):
    """A bidirectional LSTM and a GRU whose state goes in and comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 8, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(16, 8, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, frames: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        x, _ = self.lstm(frames)
        x, state = self.gru(x, state)
        return self.head(x), state


class Nested(nn.Module):
    """A dictionary and a tuple go in, nested ones come out."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Conv2d(3, 4, 3, padding=1)
        self.text = nn.Linear(5, 4)

    def forward(self, batch: dict[str, Tensor], pair: tuple[Tensor, Tensor]) -> dict[str, object]:
        image, text = self.image(batch["image"]), self.text(batch["text"])
        first, second = pair
        joint = image.mean((2, 3)) + text
        return {"joint": joint, "parts": (image * first[:, None, None, None], [text - second[:, None]]), "none": None}


class AnySize(nn.Module):
    """Fully convolutional: height and width vary, the result has the input's own size."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, 2, 1)
        self.norm = nn.BatchNorm2d(8)
        self.out = nn.Conv2d(8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.silu(self.norm(self.down(x)))
        return F.interpolate(self.out(h), size=x.shape[-2:], mode="bilinear", align_corners=False)


@dataclass(frozen=True)
class Architecture:
    """What returns the module, and what `trt-helper export` is told of its inputs."""

    make: Callable[[], nn.Module]
    inputs: tuple[str, ...]
    dynamic: tuple[str, ...] = ()


ARCHITECTURES = {
    "residual_cnn": Architecture(ResidualCnn, ("x:1x3x16x16",), ("x:0=1..4",)),
    "depthwise_cnn": Architecture(DepthwiseCnn, ("x:1x3x12x12",)),
    "detector": Architecture(Detector, ("image:1x3x32x32",)),
    "unet": Architecture(UNet, ("x:1x1x16x16",)),
    "super_resolution": Architecture(SuperResolution, ("low:1x3x8x8",), ("low:2=4..16,3=4..16",)),
    "vit": Architecture(Vit, ("image:2x3x16x16",), ("image:0=1..4",)),
    "bert": Architecture(
        Bert, ("input_ids:2x8:int64", "attention_mask:2x8:int64"), ("input_ids:1=2..16", "attention_mask:1=2..16")
    ),
    "decoder": Architecture(Decoder, ("ids:1x6:int64",)),
    "t5": Architecture(T5, ("input_ids:1x6:int64", "decoder_input_ids:1x3:int64")),
    "recurrent": Architecture(Recurrent, ("frames:1x7x6", "state:1x1x8")),
    "nested": Architecture(Nested, ("batch.image:2x3x6x6", "batch.text:2x5", "pair.0:2", "pair.1:2")),
    "any_size": Architecture(AnySize, ("x:1x3x32x32",), ("x:0=1..4,2=16..64,3=16..64",)),
}


def make(name: str) -> nn.Module:
    """The module of that name with seeded weights and statistics, in evaluation mode."""
    torch.manual_seed(sum(map(ord, name)))
    module = ARCHITECTURES[name].make()
    for inner in module.modules():
        if isinstance(inner, nn.BatchNorm2d):
            nn.init.uniform_(inner.running_mean, -0.5, 0.5)
            nn.init.uniform_(inner.running_var, 0.5, 2.0)
            nn.init.uniform_(inner.weight, 0.5, 1.5)
    return module.eval()
