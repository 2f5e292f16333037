"""Compare the outputs of a module and its ONNX model on the same inputs.

The inputs have several sizes if dimensions are dynamic, and at the given size several kinds of values: mixed, all
positive and all negative, so that a decision that tracing fixed is detected. The module runs twice on the same input
to detect that it keeps a state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from trt_helper.emulator.compare import compare
from trt_helper.errors import InputError, ModelError
from trt_helper.export.specs import Input
from trt_helper.export.target import ExportTarget, as_array
from trt_helper.inputs.references import references
from trt_helper.inputs.sample import Sample
from trt_helper.onnx_model.graph import Graph
from trt_helper.values import Array, TensorError, Tolerance

SEED = 0
PARITY = 1e-4  # largest difference over the output's largest |value|; another order of FP32 sums gives about 1e-6
NOISES = 4.0  # times the noise of FP32 that a difference may be: of both sides, at other inputs
SMALLEST = 1e-6  # lower bound of an output's largest |value|
Sizes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Checked:
    """One input and the difference of each output from PyTorch's."""

    sample: str
    shapes: Sizes
    outputs: tuple[TensorError, ...]


@dataclass(frozen=True, slots=True)
class Parity:
    """The result of the comparison.

    Attributes:
        checked: One entry per input.
        tolerance: Largest allowed `worst`.
        why: A reason why parity fails regardless of the differences; empty if there is none.
        noise: How far the module in FP32 is from itself in FP64, over the range of the output; 0 where that was not
            measured, because nothing differed or the module does not run in FP64.
    """

    checked: tuple[Checked, ...]
    tolerance: float
    why: str = ""
    noise: float = 0.0

    @property
    def worst(self) -> float:
        """The largest difference divided by the largest |value| of its output; inf if nothing was compared."""
        return max((of_range(error) for check in self.checked for error in check.outputs), default=float("inf"))

    @property
    def holds(self) -> bool:
        """Whether the ONNX model has the module's outputs; within the noise of FP32, unless a tolerance was given."""
        noise = NOISES * self.noise if self.tolerance == PARITY else 0.0
        return not self.why and self.worst <= max(self.tolerance, noise)

    @property
    def explained(self) -> bool:
        """Whether only the noise of FP32 makes the difference acceptable."""
        return self.holds and self.worst > self.tolerance


def of_range(error: TensorError) -> float:
    """Return the largest difference over the largest |value| of the output; inf if it is non-finite."""
    return float("inf") if error.non_finite else error.max / max(error.reference_max, SMALLEST)


def check(
    target: ExportTarget, graph: Graph, tolerance: float, on_progress: Callable[[str, int, int], None] | None = None
) -> Parity:
    """Run the module and the exported model on the same inputs and compare the outputs.

    Args:
        target: The module and its inputs.
        graph: The exported model.
        tolerance: Largest allowed difference over the largest |value| of the output.
        on_progress: Called with a label, the inputs done and their number.

    Raises:
        ModelError: The module or the exported model does not run.
    """
    sets = [("given", _given(target.inputs)), *_sizes(target.inputs, graph)]
    samples = [
        Sample(f"{kind} values", feed_of(target.inputs, sets[0][1], kind)) for kind in ("mixed", "positive", "negative")
    ]
    samples += [Sample(f"{name} sizes", feed_of(target.inputs, sizes, "mixed")) for name, sizes in sets[1:]]
    checked: list[Checked] = []
    why = _state(target, samples[0])
    for index, sample in enumerate(samples):
        if on_progress:
            on_progress("parity", index, len(samples))
        expected = [as_array(tensor) for tensor in target.run(dict(sample.feed))]
        try:
            (found,) = references(graph, [sample])
        except InputError as error:  # a size that was fixed when tracing
            why = why or error.message
            continue
        exact = Tolerance(0.0, 0.0)
        outputs = tuple(
            compare(name, found[name], array, exact) for name, array in zip(graph.outputs, expected, strict=True)
        )
        checked.append(Checked(sample.source, sample.shapes, outputs))
    parity = Parity(tuple(checked), tolerance, why)
    if parity.holds or why or not math.isfinite(parity.worst):
        return parity
    return replace(parity, noise=_noise(target, samples[0]))


def _noise(target: ExportTarget, sample: Sample) -> float:
    """Return the largest difference between the module in FP32 and in FP64, over the range of the output.

    Two orders of the sums of FP32 differ by as much: where activations are large and cancel, that is more than any
    usual tolerance (a channel at 9e4 in a ViT: 2e-4).
    """
    try:
        exact = target.run_in_fp64(dict(sample.feed))
    except ModelError:
        return 0.0
    found = 0.0
    for single, double in zip(target.run(dict(sample.feed)), exact, strict=True):
        if single.is_floating_point() and single.shape == double.shape and single.numel():
            range_ = max(float(double.abs().max()), SMALLEST)
            found = max(found, float((single.double() - double).abs().max()) / range_)
    return found if math.isfinite(found) else 0.0


def _state(target: ExportTarget, sample: Sample) -> str:
    """Return a message if the module gives two different outputs for the same input, else an empty text."""
    first, second = (target.run(dict(sample.feed)) for _ in range(2))
    pairs = zip(first, second, strict=False)
    if len(first) == len(second) and all(
        a.shape == b.shape and np.array_equal(as_array(a), as_array(b), equal_nan=a.is_floating_point())
        for a, b in pairs
    ):
        return ""
    return "the module answers the same input differently the second time: it keeps a state or draws random numbers"


def feed_of(inputs: Sequence[Input], sizes: Sizes, kind: str) -> dict[str, Array]:
    """Return seeded random inputs.

    Args:
        inputs: The inputs.
        sizes: The shape of each input.
        kind: `mixed` (standard normal floats), `positive` (their magnitudes) or `negative`. Integers are always 0 or 1.
    """
    generator = np.random.default_rng([SEED, *kind.encode()])
    feed: dict[str, Array] = {}
    for given in inputs:
        dtype = np.dtype(given.dtype)
        if dtype.kind == "f":
            normal: Any = np.asarray(generator.standard_normal(sizes[given.name]))
            normal = {"mixed": normal, "positive": np.abs(normal), "negative": -np.abs(normal)}[kind]
            feed[given.name] = normal.astype(dtype)
        else:
            feed[given.name] = np.asarray(generator.integers(0, 2, sizes[given.name])).astype(dtype)
    return feed


def _given(inputs: Sequence[Input]) -> Sizes:
    return {given.name: given.shape for given in inputs}


def traced(inputs: Sequence[Input]) -> tuple[Input, ...]:
    """Return the inputs to trace with: a dynamic size of 1 becomes 2, because exporters take 1 for a constant."""
    return tuple(
        replace(given, shape=tuple(2 if n == 1 and axis in given.dynamic else n for axis, n in enumerate(given.shape)))
        for given in inputs
    )


def _sizes(inputs: Sequence[Input], graph: Graph) -> list[tuple[str, Sizes]]:
    """Return the sizes to compare at, besides the given ones.

    These are the smallest sizes together, and the largest size of each dynamic dimension alone: all of them together
    may not fit into memory.
    """
    bounds: dict[str, tuple[int, int]] = {}
    places: dict[tuple[str, int], str] = {}
    for given, value in zip(inputs, graph.inputs, strict=True):
        for axis, size in enumerate(value.shape or ()):
            if axis in given.dynamic and not isinstance(size, int):
                symbol = str(size.value)
                low, high = bounds.get(symbol, (1, 1 << 30))
                bounds[symbol] = (max(low, given.dynamic[axis][0]), min(high, given.dynamic[axis][1]))
                places[given.name, axis] = symbol

    def sized(chosen: dict[str, int]) -> Sizes:
        return {
            given.name: tuple(chosen.get(places.get((given.name, axis), ""), n) for axis, n in enumerate(given.shape))
            for given in inputs
        }

    if not bounds:
        return []
    found = [("smallest", sized({symbol: low for symbol, (low, _) in bounds.items()}))]
    found += [(f"largest {symbol}", sized({symbol: _reach(high)})) for symbol, (_, high) in bounds.items()]
    return [(name, sizes) for name, sizes in found if sizes != _given(inputs)]


def _reach(high: int) -> int:
    """Return the largest size to compare at: the open upper bounds of torch.export programs are cut."""
    return min(high, 1 << 12)


def fixed_axes(inputs: Sequence[Input], model: ir.Model) -> list[str]:
    """Return the axes that should be dynamic and are fixed in the exported model."""
    return [
        f"{given.name} axis {axis}"
        for given, value in zip(inputs, model.graph.inputs, strict=True)
        for axis in given.dynamic
        if value.shape is not None and isinstance(value.shape[axis], int)
    ]
