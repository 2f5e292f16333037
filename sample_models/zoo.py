"""Small PyTorch models whose FP16 answer is known by construction, not from any tool.

Each class says what breaks in FP16, which layers are the smallest cure, and why no fewer will do. `MODELS`
holds them with the shapes they take and that cure. Each cure is also the only one of its size: with all
layers in FP32 but any single layer of the cure, the model is wrong already. Weights are seeded, nothing is
trained.

FP16 means: each float tensor that a layer reads or writes is rounded to half precision (at most 65504, at
least 6e-8, above 2048 no odd numbers), the arithmetic inside one layer is not. The answers hold for inputs
drawn from N(0, 1), as `examples` gives them, and from U(0, 1).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

# In max abs, a cured model errs by less than 0.003; one without its cure by 0.5 or more, or it gives NaN.
ATOL = 0.01


class Layer(NamedTuple):
    """A layer of a cure: the path of the module it is written in ("" is the model) and its ONNX operator.

    The two together fit exactly one layer of the exported model.
    """

    module: str
    op: str


@dataclass(frozen=True, slots=True)
class Sample:
    """A model, the inputs it takes (the first dimension is the batch), and its known answer."""

    factory: Callable[[], nn.Module]
    inputs: Mapping[str, tuple[int, ...]]
    cure: tuple[Layer, ...]  # what must stay in FP32, in execution order

    def model(self, *, seed: int = 0) -> nn.Module:
        """Give the module in evaluation mode; its weights depend on the seed alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.factory().eval()

    def examples(self, *, seed: int = 0) -> dict[str, Tensor]:
        """Draw one value for every input from N(0, 1)."""
        generator = torch.Generator().manual_seed(seed)
        return {name: torch.randn(shape, generator=generator) for name, shape in self.inputs.items()}


class RootMeanSquare(nn.Module):
    """The root mean square of the last dimension, step by step.

    The squares pass 65504 as soon as |x| passes 256. They must stay in FP32 until the square root has
    brought them back: Mul writes the squares, ReduceMean, Add and Sqrt read them or their mean.
    """

    def forward(self, x: Tensor) -> Tensor:
        return torch.sqrt((x * x).mean(dim=-1, keepdim=True) + 1e-6)


class RMSNorm(nn.Module):
    """Divide by the root mean square. The division and the weight are safe in FP16, the root is not."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.root = RootMeanSquare()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x / self.root(x) * self.weight


class SquareOverflow(nn.Module):
    """Large activations reach a norm: x is in the thousands, its square is inf, and x / inf is 0.

    Cure: Mul, ReduceMean, Add, Sqrt of `norm.root`. Not one value is NaN; the features are wiped out
    silently. The layers before it are safe (thousands fit into FP16), the layers behind it are victims.
    """

    def __init__(self) -> None:
        super().__init__()
        self.grow = nn.Linear(16, 32)
        self.norm = RMSNorm(32)
        self.head = nn.Linear(32, 8)
        with torch.no_grad():
            self.grow.weight.mul_(5000)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.grow(x))))


class SplitSquareOverflow(nn.Module):
    """A group norm by hand: a Reshape lies between the squares that overflow and their mean.

    Cure: Mul, ReduceMean, Add, Sqrt. The Reshape only moves what it is given, so it follows its neighbours
    into FP32 and is no part of the answer. A tool that puts casts around it loses the squares on the way.
    """

    GROUPS = 4

    def __init__(self) -> None:
        super().__init__()
        self.grow = nn.Conv2d(3, 16, 3, padding=1)
        self.head = nn.Conv2d(16, 4, 1)
        with torch.no_grad():
            self.grow.weight.mul_(5000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.grow(x)
        groups = (x * x).reshape(-1, self.GROUPS, 16 // self.GROUPS * 8 * 8)
        scale = torch.sqrt(groups.mean(dim=-1) + 1e-6).repeat_interleave(16 // self.GROUPS, dim=1)
        return self.head(torch.relu(x / scale[:, :, None, None]))


class MaskTimesInfinity(nn.Module):
    """A padding mask as early BERT made it: (1 - keep) * -1e9 is added to the attention scores.

    -1e9 becomes -inf, and where nothing is masked 0 * -inf is NaN: every output is lost. (A position is
    kept if its `presence` is above -1, so that random inputs mask some positions but never a whole row.)

    Cure: the one Mul that reads the constant. From there on FP16 will do: what it writes is 0 or -1e9, the
    latter is rounded to -inf, and a softmax is at ease with -inf as long as one score in its row is finite.
    """

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(16, 16)
        self.key = nn.Linear(16, 16)
        self.value = nn.Linear(16, 16)

    def forward(self, x: Tensor, presence: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).transpose(1, 2)
        keep = (presence > -1.0).to(x.dtype)
        mask = (1.0 - keep) * -1e9
        return torch.softmax(scores + mask[:, None, :], dim=-1) @ self.value(x)


class EmptyMaskRow(nn.Module):
    """Attention to the strict past: the first position has nobody to look at, its whole mask row is -1e9.

    In FP32 adding -1e9 drowns the scores, all are equal, and the softmax gives the plain average. In FP16
    the row is all -inf and its softmax is NaN. Cure: Add, which reads the constant, and Softmax, which
    reads the sum.
    """

    LENGTH = 8

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(16, 16)
        self.key = nn.Linear(16, 16)
        self.value = nn.Linear(16, 16)
        self.register_buffer("mask", torch.ones(self.LENGTH, self.LENGTH).triu() * -1e9)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).transpose(1, 2)
        return torch.softmax(scores + self.mask, dim=-1) @ self.value(x)


class VanishingEpsilon(nn.Module):
    """Padded positions are all 0, and only 1e-12 guards the division by their length. In FP16 it is 0: 0 /
    0.

    Cure: Add, which reads the epsilon and writes 1e-12, and Sqrt, which reads that. The root, 1e-6, is a
    subnormal half but not 0, so the division is safe. (Hardware that flushes subnormals to 0 needs Div as
    well.)

    Export with `optimize=False`: the optimizer behind `torch.onnx.export` takes a constant within 1e-8 of 0
    for 0 and drops the addition (seen with onnxscript 0.7.2). Then the ONNX file gives NaN even in FP32.
    """

    LENGTH = 6

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 16)
        self.head = nn.Linear(16, 4)
        self.register_buffer("inside", (torch.arange(self.LENGTH) < self.LENGTH - 2).float()[:, None])

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) * self.inside
        length = torch.sqrt((x * x).sum(dim=-1, keepdim=True) + 1e-12)
        return self.head(x / length)


class VanishingFloor(nn.Module):
    """As `VanishingEpsilon`, but a lower bound keeps the length from 0, as in
    `torch.nn.functional.normalize`.

    Cure: Clip, which reads the bound and writes 1e-12, and Div, which reads that. A half cannot hold 1e-12.
    """

    LENGTH = 6

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 16)
        self.head = nn.Linear(16, 4)
        self.register_buffer("inside", (torch.arange(self.LENGTH) < self.LENGTH - 2).float()[:, None])

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) * self.inside
        length = torch.sqrt((x * x).sum(dim=-1, keepdim=True)).clamp_min(1e-12)
        return self.head(x / length)


class Fraction(nn.Module):
    """A tile of a large image, pixels 3000 to 3063: absolute position = grid + offset, then its fraction.

    Between 2048 and 4096 a half holds even numbers only. Add reads the grid and writes positions, Floor
    reads positions, Sub reads both; what Sub writes is 0..1 and good in FP16.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("grid", torch.arange(3000.0, 3064.0))

    def forward(self, offset: Tensor) -> Tensor:
        position = self.grid + offset
        return position - torch.floor(position)


class CoordinateGrid(nn.Module):
    """Interpolate between two features at a sub-pixel position whose fraction FP16 cannot hold.

    Everything stays finite and looks plausible. Cure: Add, Floor, Sub of `fraction`. Offsets stay within
    0.1..0.9, so that no position is so near to a whole number that a rounding takes it across.
    """

    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Conv1d(4, 1, 3, padding=1)
        self.fraction = Fraction()
        self.left = nn.Conv1d(4, 8, 3, padding=1)
        self.right = nn.Conv1d(4, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        fraction = self.fraction(0.1 + 0.8 * torch.sigmoid(self.offset(x)))
        left = self.left(x)
        return left + (self.right(x) - left) * fraction


class Softplus(nn.Module):
    """log(1 + exp(x)) by hand: exp passes 65504 at x = 11.1, and the logarithm of inf is inf.

    Exp writes the large value, Add and Log read it; the logarithm brings it back to x.
    """

    def forward(self, x: Tensor) -> Tensor:
        return torch.log(torch.exp(x) + 1.0)


class TwoCulprits(nn.Module):
    """Two unrelated failures in two branches; curing one of them alone shows no success at the output.

    Cure: Mul, ReduceMean, Add, Sqrt of `norm.root` and Exp, Add, Log of `softplus`. A search that takes up
    one layer or one region at a time, and keeps it only if the verdict gets better, gets nowhere.
    """

    def __init__(self) -> None:
        super().__init__()
        self.grow = nn.Linear(16, 32)
        self.norm = RMSNorm(32)
        self.steep = nn.Linear(16, 32)
        self.softplus = Softplus()
        self.head = nn.Linear(32, 8)
        with torch.no_grad():
            self.grow.weight.mul_(5000)
            self.steep.weight.mul_(40)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.grow(x)) + 0.1 * self.softplus(self.steep(x)))


class CleanCNN(nn.Module):
    """Nothing breaks: convolutions, batch norms and ReLU on values of order 1. The cure is no layer at all.

    The first running variance is 4.8e7 on purpose. Rounded to half precision it is inf, so whoever rounds
    before folding the batch norm into its convolution "finds" a failure that no engine has.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.first_norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.second_norm = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 5)
        with torch.no_grad():
            self.first.weight.mul_(7000)
            self.first_norm.running_var.fill_(4.8e7)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first_norm(self.first(x)))
        x = torch.relu(self.second_norm(self.second(x)))
        return self.head(x.mean(dim=(2, 3)))


def within(module: str, *ops: str) -> tuple[Layer, ...]:
    return tuple(Layer(module, op) for op in ops)


MODELS: dict[str, Sample] = {
    "square_overflow": Sample(SquareOverflow, {"x": (2, 16)}, within("norm.root", "Mul", "ReduceMean", "Add", "Sqrt")),
    "split_square_overflow": Sample(
        SplitSquareOverflow, {"x": (2, 3, 8, 8)}, within("", "Mul", "ReduceMean", "Add", "Sqrt")
    ),
    "mask_times_infinity": Sample(MaskTimesInfinity, {"x": (2, 8, 16), "presence": (2, 8)}, within("", "Mul")),
    "empty_mask_row": Sample(EmptyMaskRow, {"x": (2, 8, 16)}, within("", "Add", "Softmax")),
    "vanishing_epsilon": Sample(VanishingEpsilon, {"x": (2, 6, 8)}, within("", "Add", "Sqrt")),
    "vanishing_floor": Sample(VanishingFloor, {"x": (2, 6, 8)}, within("", "Clip", "Div")),
    "coordinate_grid": Sample(CoordinateGrid, {"x": (2, 4, 64)}, within("fraction", "Add", "Floor", "Sub")),
    "two_culprits": Sample(
        TwoCulprits,
        {"x": (2, 16)},
        within("norm.root", "Mul", "ReduceMean", "Add", "Sqrt") + within("softplus", "Exp", "Add", "Log"),
    ),
    "clean_cnn": Sample(CleanCNN, {"x": (2, 3, 16, 16)}, ()),
}
