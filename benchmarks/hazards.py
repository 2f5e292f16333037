"""What a model with planted FP16 hazards is: its file, its samples, and the layers that must stay in FP32."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from made import Array, Network

Feed = dict[str, Array]
Draw = Callable[[np.random.Generator], Array]
OVERFLOW = 9e4  # beyond the largest FP16 value, 65504
SQUARE_OVERFLOWS = 400.0
NEVER = -1e9  # what exporters add to scores that are masked; -inf in FP16


@dataclass(frozen=True)
class HazardModel:
    """A written model. `planted` are the layers that must stay in FP32, in groups that belong together.

    `atol` lies between the error of the model with these layers in FP32 and that of pure FP16.
    """

    path: Path
    draws: Mapping[str, Draw]
    planted: tuple[frozenset[str], ...]
    atol: float

    def feeds(self, count: int) -> list[Feed]:
        """Samples, all different and the same every time."""
        return [
            {name: draw(random) for name, draw in self.draws.items()}
            for random in map(np.random.default_rng, range(count))
        ]

    @property
    def kept(self) -> frozenset[str]:
        return frozenset().union(*self.planted)


def written(
    net: Network, path: Path, outputs: Mapping[str, str], draws: Mapping[str, Draw], *, atol: float
) -> HazardModel:
    net.write(path, outputs)
    return HazardModel(path, draws, net.planted(), atol)


def normal(*shape: int, scale: float = 1.0) -> Draw:
    return lambda random: (random.standard_normal(shape) * scale).astype(np.float32)


def step_embedding(width: int) -> Draw:
    """Sines of a step of the diffusion."""

    def draw(random: np.random.Generator) -> Array:
        angles = np.exp(-np.arange(width // 2) / 9) * random.integers(1000)
        return np.concatenate([np.cos(angles), np.sin(angles)])[None].astype(np.float32)

    return draw


def ids(vocabulary: int, *shape: int) -> Draw:
    return lambda random: random.integers(0, vocabulary, shape)


def valid(length: int, *, left: bool = False) -> Draw:
    """A mask of ones, with zeros for padding behind them, or to the left."""

    def draw(random: np.random.Generator) -> Array:
        ones = np.arange(length) < random.integers(length // 2, length)
        return (ones[::-1] if left else ones)[None].astype(np.float32)

    return draw


def sized(full: int, scale: float, *, of: int = 1, least: int = 1) -> int:
    """`full` by `scale`, a multiple of `of`."""
    return max(least, of, round(full * scale / of) * of)
