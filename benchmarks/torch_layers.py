"""Convolutions, pools, norms, attention and recurrent layers of ONNX in PyTorch, in the types of their inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - as everybody calls it
from torch import Tensor


class NotCoveredError(Exception):
    """The interpreter cannot run this model; says which operator it is."""


@dataclass(frozen=True, eq=False)
class Node:
    """One node, with its attributes as Python values and its subgraphs as `Body`."""

    name: str
    op: str
    inputs: tuple[str, ...]  # empty where one is omitted
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]

    def get(self, attribute: str, default: Any = None) -> Any:
        """The value of an attribute."""
        return self.attributes.get(attribute, default)


def _same_pads(node: Node, x: Tensor, kernel: Sequence[int]) -> list[int]:
    """The pads of a convolution or a pool: all that come before, then all that come after."""
    kind, count = node.get("auto_pad", "NOTSET"), len(kernel)
    if kind in ("NOTSET", "VALID"):
        return node.get("pads", [0] * 2 * count) if kind == "NOTSET" else [0] * 2 * count
    strides, dilations = node.get("strides", [1] * count), node.get("dilations", [1] * count)
    totals = [
        max((-(-size // stride) - 1) * stride + (width - 1) * dilation + 1 - size, 0)
        for size, stride, width, dilation in zip(x.shape[2:], strides, kernel, dilations, strict=True)
    ]
    less, more = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return less + more if kind == "SAME_UPPER" else more + less


def _padded(x: Tensor, pads: Sequence[int], value: float = 0.0) -> Tensor:
    count = len(pads) // 2
    return F.pad(x, [p for axis in range(count)[::-1] for p in (pads[axis], pads[axis + count])], value=value)


def _one_or_two(x: Tensor, node: Node, one: Callable[..., Any], two: Callable[..., Any]) -> Callable[..., Any]:
    if x.dim() not in (3, 4):
        raise NotCoveredError(f"operator {node.op} in {x.dim() - 2} dimensions")
    return one if x.dim() == 3 else two


def conv(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    count, kernel = x.dim() - 2, weight.shape[2:]
    pads = _same_pads(node, x, kernel)
    if pads[:count] != pads[count:]:
        x, pads = _padded(x, pads), [0] * count
    settings = (node.get("strides", [1] * count), pads[:count], node.get("dilations", [1] * count))
    return _one_or_two(x, node, F.conv1d, F.conv2d)(x, weight, bias, *settings, node.get("group", 1))


def conv_transpose(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    count = x.dim() - 2
    pads, ones = node.get("pads", [0] * 2 * count), [1] * count
    if pads[:count] != pads[count:] or node.get("auto_pad", "NOTSET") != "NOTSET" or node.get("output_shape"):
        raise NotCoveredError("operator ConvTranspose with unequal pads")
    function = _one_or_two(x, node, F.conv_transpose1d, F.conv_transpose2d)
    settings = (node.get("strides", ones), pads[:count], node.get("output_padding", [0] * count), node.get("group", 1))
    return function(x, weight, bias, *settings, node.get("dilations", ones))


def max_pool(node: Node, x: Tensor) -> Tensor:
    kernel = node.get("kernel_shape")
    count = len(kernel)
    if len(node.outputs) > 1 or (node.get("ceil_mode", 0) and any(node.get("pads", [0]))):
        raise NotCoveredError("operator MaxPool with indices or rounded up")
    x = _padded(x, _same_pads(node, x, kernel), -math.inf)
    settings = (node.get("strides", [1] * count), 0, node.get("dilations", [1] * count), bool(node.get("ceil_mode", 0)))
    return _one_or_two(x, node, F.max_pool1d, F.max_pool2d)(x, kernel, *settings)


def average_pool(node: Node, x: Tensor) -> Tensor:
    kernel = node.get("kernel_shape")
    pads = _same_pads(node, x, kernel)
    count = len(kernel)
    if pads[:count] != pads[count:]:
        raise NotCoveredError("operator AveragePool with unequal pads")
    settings = (node.get("strides", [1] * count), pads[:count])
    function = _one_or_two(x, node, F.avg_pool1d, F.avg_pool2d)
    return function(
        x, kernel, *settings, bool(node.get("ceil_mode", 0)), count_include_pad=bool(node.get("count_include_pad", 0))
    )


def resize(
    node: Node,
    x: Tensor,
    _roi: object = None,
    scales: Sequence[float] | None = None,
    sizes: Sequence[int] | None = None,
) -> Tensor:
    mode, place = node.get("mode", "nearest"), node.get("coordinate_transformation_mode", "half_pixel")
    wanted = list(sizes or [math.floor(size * scale) for size, scale in zip(x.shape, scales or [], strict=True)])
    factors = list(scales or [new / old for new, old in zip(wanted, x.shape, strict=True)])
    if mode == "nearest":
        for axis, (size, factor) in enumerate(zip(wanted, factors, strict=True)):
            if size != x.shape[axis]:
                x = _nearest(x, axis, size, factor, place, node.get("nearest_mode", "round_prefer_floor"))
        return x
    if mode != "linear" or place not in ("half_pixel", "pytorch_half_pixel", "align_corners") or x.dim() not in (3, 4):
        raise NotCoveredError(f"operator Resize, {mode} {place} in {x.dim() - 2} dimensions")
    name = "linear" if x.dim() == 3 else "bilinear"
    return F.interpolate(x, wanted[2:], mode=name, align_corners=place == "align_corners")


def _nearest(x: Tensor, axis: int, new: int, scale: float, place: str, rounding: str) -> Tensor:
    """`x` with `new` elements on an axis, each the nearest one."""
    if place not in ("asymmetric", "half_pixel"):
        raise NotCoveredError(f"operator Resize, nearest {place}")
    at = torch.arange(new, device=x.device, dtype=torch.float64)
    where = at / scale if place == "asymmetric" else (at + 0.5) / scale - 0.5
    rounded = {
        "floor": where.floor(),
        "ceil": where.ceil(),
        "round_prefer_floor": (where - 0.5).ceil(),
        "round_prefer_ceil": (where + 0.5).floor(),
    }[rounding]
    return x.index_select(axis, rounded.clamp(0, x.shape[axis] - 1).long())


def layer_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    shape = x.shape[node.get("axis", -1) % x.dim() :]
    bias = bias if bias is None else bias.expand(shape)
    return F.layer_norm(x, shape, scale.expand(shape), bias, node.get("epsilon", 1e-5))


def instance_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return F.instance_norm(x, weight=scale, bias=bias, eps=node.get("epsilon", 1e-5))


def batch_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return F.batch_norm(x, mean, variance, scale, bias, eps=node.get("epsilon", 1e-5))


def attention(node: Node, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """`k` is transposed already, as the second factor of the first product."""
    added = [tensor.unsqueeze(0) if tensor.dim() == 3 else tensor for tensor in (q, k.transpose(-1, -2), v)]
    found = F.scaled_dot_product_attention(*added, attn_mask=mask, scale=node.get("scale"))
    return found.squeeze(0) if q.dim() == 3 else found


def lstm_step(_node: Node, x: Tensor, state: list[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
    """One step; `x` is the product with its own weights already. Gates: input, output, forget, cell."""
    r, bias = weights
    h, c = state
    i, o, f, g = (x + h @ r.T + bias).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return [o.sigmoid() * c.tanh(), c]


def gru_step(node: Node, x: Tensor, state: list[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
    """One step, as for the LSTM. Gates: update, reset, hidden."""
    r, bias = weights
    (h,) = state
    size = h.shape[-1]
    update, reset = (x[..., : 2 * size] + h @ r[: 2 * size].T + bias[: 2 * size]).sigmoid().chunk(2, -1)
    if node.get("linear_before_reset", 0):
        past = reset * (h @ r[2 * size :].T + bias[2 * size :])
    else:
        past = (reset * h) @ r[2 * size :].T + bias[2 * size :]
    hidden = (x[..., 2 * size :] + past).tanh()
    return [(1 - update) * hidden + update * h]


def recurrent(step: Callable[..., list[Tensor]], states: int) -> Callable[..., Sequence[Tensor]]:
    """LSTM or GRU, by a loop over the steps: every gate and state in the type of the input."""

    def run(
        node: Node,
        x: Tensor,
        w: Tensor,
        r: Tensor,
        b: Tensor | None = None,
        lengths: Tensor | None = None,
        *initial: Tensor | None,
    ) -> Sequence[Tensor]:
        if lengths is not None or len(initial) > states or node.get("layout", 0) or node.get("activations"):
            raise NotCoveredError(f"operator {node.op} with lengths, peepholes or other activations")
        size, backwards = r.shape[-1], {"reverse": [True], "bidirectional": [False, True]}
        directions = backwards.get(node.get("direction", "forward"), [False])
        b = torch.zeros(len(directions), 2 * r.shape[1], dtype=x.dtype, device=x.device) if b is None else b
        zero = torch.zeros(len(directions), x.shape[1], size, dtype=x.dtype, device=x.device)
        first = [zero if given is None else given for given in (*initial, *[None] * states)][:states]
        outputs, last = [], []
        for index, backward in enumerate(directions):
            own, past = b[index].chunk(2)
            moved = x @ w[index].T + own
            state = [tensor[index] for tensor in first]
            steps = []
            for at in range(x.shape[0])[:: -1 if backward else 1]:
                state = step(node, moved[at], state, (r[index], past))
                steps.append(state[0])
            outputs.append(torch.stack(steps[::-1] if backward else steps))
            last.append(state)
        return [torch.stack(outputs, 1), *(torch.stack(list(of_all)) for of_all in zip(*last, strict=True))]

    return run
