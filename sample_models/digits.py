"""A small classifier of 8x8 digits that reads raw 12-bit sensor counts, trained by `train_digits.py`.

The camera gives counts from 0 to 4095, and the exposure differs from shot to shot. Nobody scales the input:
the network itself divides its features by their length (the L2 norm with a learned scale that ParseNet and
SSD use), written out as square, sum, add, square root, divide. Training keeps this, for in FP32 it does no
harm.

In FP16 the features (hundreds and thousands) are fine, but the sum of their squares passes 65504 and
becomes inf, so the length is inf, and every feature is divided to 0. No NaN appears: the model calmly gives
each image the same answer. The known cure is what lies between the square and the square root that brings
it back into range, in both norms, 8 layers: Mul (the square), ReduceSum, Add and Sqrt in `gate.norm` and in
`norm`.
"""

import torch
from torch import Tensor, nn

CLASSES = 10
CHANNELS = 16


class L2Norm(nn.Module):
    """Divide each image's features by their length, so that the exposure drops out; scale every channel."""

    def __init__(self, channels: int, *, scale: float = 20.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels, 1, 1), scale))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        energy = (x * x).sum(dim=(1, 2, 3), keepdim=True)
        return x / torch.sqrt(energy + self.eps) * self.scale


class Gate(nn.Module):
    """Weigh every feature by 0..1, judged from the normalised features; the counts keep their scale."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = L2Norm(channels)
        self.look = nn.Conv2d(channels, channels, 3, padding=1)
        self.weigh = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.weigh(torch.relu(self.look(self.norm(x)))))


class Residual(nn.Module):
    """Two convolutions beside a skip connection, on features that are of order 1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.second(torch.relu(self.first(x))))


class Digits(nn.Module):
    """`image` (batch, 1, 8, 8), counts 0..4095, to `probabilities` (batch, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, CHANNELS, 3, padding=1)
        self.gate = Gate(CHANNELS)
        self.mix = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.norm = L2Norm(CHANNELS)
        self.body = nn.Sequential(Residual(CHANNELS), Residual(CHANNELS))
        self.shrink = nn.Conv2d(CHANNELS, 2 * CHANNELS, 3, stride=2, padding=1)
        self.head = nn.Linear(2 * CHANNELS * 4 * 4, CLASSES)

    def logits(self, image: Tensor) -> Tensor:
        """What training needs: `forward` without its softmax."""
        x = self.gate(torch.relu(self.stem(image)))
        x = self.norm(torch.relu(self.mix(x)))
        x = torch.relu(self.shrink(self.body(x)))
        return self.head(x.flatten(1))

    def forward(self, image: Tensor) -> Tensor:
        return torch.softmax(self.logits(image), dim=1)


def digits() -> Digits:
    """Give the model in evaluation mode; load `digits.pt` into it."""
    return Digits().eval()
