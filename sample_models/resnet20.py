"""ResNet-20 for CIFAR (He et al. 2015, section 4.2): 32x32 images, three stages of 16, 32 and 64 channels.

The shortcut between stages has no weights (option A of the paper): every second pixel, the new channels zero. Module
names are those of the public CIFAR checkpoints: conv1, bn1, layer1 to layer3, linear.
"""

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Two 3x3 convolutions beside an identity, which is thinned and padded where the size changes."""

    def __init__(self, before: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.padding = (channels - before) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            x = nn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        return torch.relu(y + x)


class ResNet(nn.Module):
    """`image` (batch, 3, 32, 32), normalised, to `logits` (batch, classes)."""

    def __init__(self, depth: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, depth, 1)
        self.layer2 = self._stage(16, 32, depth, 2)
        self.layer3 = self._stage(32, 64, depth, 2)
        self.linear = nn.Linear(64, classes)

    @staticmethod
    def _stage(before: int, channels: int, depth: int, stride: int) -> nn.Sequential:
        rest = [Block(channels, channels, 1) for _ in range(depth - 1)]
        return nn.Sequential(Block(before, channels, stride), *rest)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = torch.relu(self.bn1(self.conv1(image)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return {"logits": self.linear(x.mean((2, 3)))}


def resnet20(classes: int = 10) -> ResNet:
    """Six layers a block pair, three pairs a stage: 6 x 3 + 2 = 20."""
    return ResNet(depth=3, classes=classes)
