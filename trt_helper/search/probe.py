"""One sample on which single roundings are looked at: its tensors in FP32, and the elements that are watched."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from trt_helper.emulator.emulator import Emulator
from trt_helper.emulator.kernels import EmulationError
from trt_helper.search import tuning
from trt_helper.values import Array, Feed, LayerName, Statistic, TensorName, Tensors, Tolerance


@dataclass(frozen=True, eq=False, slots=True)
class _Watched:
    """One output: its reference and allowed error, shape (size,), float64, and the indices of watched elements."""

    reference: Array
    allowed: Array
    index: Array


class Probe:
    """Looks at single roundings on one sample.

    Errors are vectors of signed error ratios, float64: one for each watched element, and at last the largest of all
    elements of all outputs, without a sign. Nothing is above `tuning.ERROR_CAP`.

    Args:
        emulator: of the graph that is searched.
        feed: the sample.
        found: the outputs of a plan that failed on it. Half of the watched elements are those with the largest errors.
        tolerance: the tolerance that errors are divided by.
        watched: the largest number of watched elements.

    Attributes:
        reference: every tensor of the FP32 model.
        passes: forward passes so far, in units of the whole model: a pass through half of the layers is half of one.
    """

    def __init__(self, emulator: Emulator, feed: Feed, found: Tensors, tolerance: Tolerance, watched: int) -> None:
        self._emulator = emulator
        self.reference = emulator.all_values(feed, emulator.store.part())
        self.passes = 1.0
        self._watched: dict[TensorName, _Watched] = {}
        for name in emulator.graph.outputs:
            if name in self.reference and self.reference[name].dtype.kind == "f":  # not a constant
                reference = self.reference[name].reshape(-1).astype(np.float64)
                allowed = _allowed(reference, *tolerance.of(name), tolerance.stat)
                self._watched[name] = _Watched(reference, allowed, np.empty(0, np.int64))
        self._watch({name: found[name] for name in self._watched}, watched)

    @property
    def size(self) -> int:
        """The number of watched elements."""
        return sum(one.index.size for one in self._watched.values())

    def errors(self, places: Iterable[tuple[TensorName, LayerName]]) -> Array:
        """The errors with these roundings only, shape (watched elements + 1,)."""
        try:
            injected = self._emulator.inject(places, self.reference)
        except EmulationError:  # a rounded index that points outside, say: as wrong as can be
            self.passes += 1.0
            return np.full(self.size + 1, tuning.ERROR_CAP)
        self.passes += injected.share
        return self.errors_of(injected.changed)

    def errors_of(self, changed: Tensors) -> Array:
        """The errors of these outputs; all others have none."""
        parts, largest = [], 0.0
        for name, one in self._watched.items():
            if name not in changed:
                parts.append(np.zeros(one.index.size))
                continue
            ratios = _ratios(changed[name], one)
            parts.append(ratios[one.index])
            largest = max(largest, float(np.abs(ratios).max(initial=0.0)))
        return np.concatenate([*parts, [largest]])

    def seeds(self) -> Tensors:
        """The gradients of the watched error ratios with respect to the outputs, shape (watched elements, *output)."""
        made, first, size = {}, 0, self.size
        for name, one in self._watched.items():
            if one.index.size:
                seed = np.zeros((size, one.reference.size), np.float32)
                seed[np.arange(first, first + one.index.size), one.index] = 1 / one.allowed[one.index]
                made[name] = seed.reshape(size, *self.reference[name].shape)
            first += one.index.size
        return made

    def _watch(self, found: Tensors, watched: int) -> None:
        """Choose elements: the worst of each output, the worst of all, and then evenly spread ones."""
        largest = max((array.size for array in self.reference.values()), default=1)
        most = int(np.clip(tuning.GRADIENT_ELEMENTS // max(largest, 1), 1, watched))
        ratios = {name: np.abs(_ratios(found[name], one)) for name, one in self._watched.items() if one.reference.size}
        worst = [(float(r[i]), name, int(i)) for name, r in ratios.items() for i in np.argsort(-r, kind="stable")[:most]]
        worst.sort(key=lambda one: -one[0])
        of_each = [(name, int(r.argmax())) for name, r in ratios.items()]
        even = [
            (name, int(i)) for name, r in ratios.items() for i in np.linspace(0, r.size - 1, max(most // 2, 1)).astype(int)
        ]
        mixed = [place for pair in zip([(n, i) for _, n, i in worst], _stretched(even, len(worst)), strict=True) for place in pair]
        chosen = list(dict.fromkeys([*of_each[: most // 2], *mixed]))[:most]
        for name, one in self._watched.items():
            index = np.array(sorted(i for other, i in chosen if other == name), np.int64)
            self._watched[name] = _Watched(one.reference, one.allowed, index)


def _stretched(places: list[tuple[TensorName, int]], length: int) -> list[tuple[TensorName, int]]:
    """`length` of the places, evenly spread over them."""
    return [places[int(i)] for i in np.linspace(0, len(places) - 1, length).round()] if places else []


def _allowed(reference: Array, atol: float, rtol: float, stat: Statistic) -> Array:
    """The error allowed of each element, shape (elements,), float64."""
    allowed = np.full(reference.shape, atol)
    if stat is Statistic.ELEMWISE or atol == 0:
        allowed = np.maximum(atol, rtol * np.abs(reference))
    return np.maximum(allowed, np.finfo(np.float64).tiny)


def _ratios(found: Array, one: _Watched) -> Array:
    """Signed error ratios of every element, shape (elements,)."""
    cap = tuning.ERROR_CAP
    if found.size != one.reference.size:
        return np.full(one.reference.shape, cap)
    with np.errstate(all="ignore"):
        ratios = (found.reshape(-1).astype(np.float64) - one.reference) / one.allowed
    return np.clip(np.nan_to_num(ratios, nan=cap, posinf=cap, neginf=-cap), -cap, cap)
