"""One sample on which single roundings are looked at: its tensors in FP32, and the figures that are watched."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from trt_helper.emulator.emulator import Emulator
from trt_helper.emulator.kernels import EmulationError
from trt_helper.search import tuning
from trt_helper.values import Array, Feed, LayerName, Statistic, TensorName, Tensors, Tolerance


@dataclass(frozen=True, eq=False, slots=True)
class _Watched:
    """One output, and its part in the figures that are watched.

    Attributes:
        reference: its reference, shape (elements,), float64.
        allowed: the error allowed of each element, shape (elements,), float64.
        figure, element, weight: shape (m,); `weight` times the error ratio of `element` is a part of `figure`.
    """

    reference: Array
    allowed: Array
    figure: Array
    element: Array
    weight: Array


class Probe:
    """Looks at single roundings on one sample.

    Errors are vectors of watched figures, float64, and at last the largest error ratio of all elements of all outputs,
    without a sign. Some figures are the signed error ratios of single elements. The others stand for many
    elements of one output: a sum of theirs with random signs, such that its square is expected to be that of the
    output's largest error. Nothing is above `tuning.ERROR_CAP`.

    Args:
        emulator: of the graph that is searched.
        feed: the sample.
        found: the outputs of a plan that failed on it; one that is missing is as wrong as can be. The elements with the
            largest errors are watched.
        tolerance: the tolerance that errors are divided by.
        watched: the largest number of figures.

    Attributes:
        reference: every tensor of the FP32 model.
        size: the number of watched figures.
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
                nothing = np.empty(0, np.int64)
                self._watched[name] = _Watched(reference, allowed, nothing, nothing, np.empty(0))
        self.size = self._watch(found, watched)

    def errors(self, places: Iterable[tuple[TensorName, LayerName]]) -> Array:
        """The errors with these roundings only, shape (watched figures + 1,)."""
        try:
            injected = self._emulator.inject(places, self.reference)
        except EmulationError:  # a rounded index that points outside, say: as wrong as can be
            self.passes += 1.0
            return np.full(self.size + 1, tuning.ERROR_CAP)
        self.passes += injected.share
        return self.errors_of(injected.changed)

    def errors_of(self, changed: Tensors) -> Array:
        """The errors of these outputs; all others have none."""
        figures, largest = np.zeros(self.size), 0.0
        for name in self._watched.keys() & changed.keys():
            one = self._watched[name]
            ratios = _ratios(changed[name], one)
            np.add.at(figures, one.figure, one.weight * ratios[one.element])
            largest = max(largest, float(np.abs(ratios).max(initial=0.0)))
        return np.append(figures, largest)

    def seeds(self) -> Tensors:
        """The gradients of the watched figures with respect to the outputs, shape (figures, *output)."""
        made = {}
        for name, one in self._watched.items():
            if one.figure.size:
                seed = np.zeros((self.size, one.reference.size), np.float32)
                np.add.at(seed, (one.figure, one.element), one.weight / one.allowed[one.element])
                made[name] = seed.reshape(self.size, *self.reference[name].shape)
        return made

    def _watch(self, found: Tensors, watched: int) -> int:
        """Choose what is watched, from the elements with the largest errors; the number of figures."""
        largest = max((array.size for array in self.reference.values()), default=1)
        watched = int(np.clip(tuning.GRADIENT_ELEMENTS // max(largest, 1), 1, watched))
        random = np.random.default_rng(0)
        nothing = np.empty(0)
        ratios = {
            name: np.abs(_ratios(found.get(name, nothing), one))
            for name, one in self._watched.items()
            if one.reference.size
        }
        worst = {name: _largest(ratio, watched * tuning.ELEMENTS_OF_A_FIGURE, random) for name, ratio in ratios.items()}
        names = sorted(ratios, key=lambda name: -float(ratios[name].max()))
        of_all = [(name, i) for name in names for i in worst[name]]
        of_all.sort(key=lambda at: -ratios[at[0]][at[1]])
        single = max(watched // 4, min(watched // 2, watched - len(names))) or 1
        alone = of_all[: single if len(of_all) > watched else watched]
        chosen = [(figure, place, 1.0) for figure, place in enumerate(alone)]
        size = len(alone)
        groups = watched - size
        for place, name in enumerate(names):
            rest = [i for i in worst[name] if (name, i) not in set(alone)]
            parts = len(range(place, groups, len(names)))
            for part in range(min(parts, len(rest))):
                members = rest[part::parts]
                errors = ratios[name][members]
                peak = float(ratios[name].max()) / max(float(np.sqrt((errors**2).mean())), np.finfo(np.float64).tiny)
                signs = random.choice((-1.0, 1.0), len(members)) * (min(peak, tuning.PEAK) / np.sqrt(len(members)))
                chosen += [(size, (name, element), sign) for element, sign in zip(members, signs, strict=True)]
                size += 1
        for name, one in self._watched.items():
            own = [(number, at, weight) for number, (other, at), weight in chosen if other == name]
            self._watched[name] = replace(
                one,
                figure=np.array([number for number, _, _ in own], np.int64),
                element=np.array([at for _, at, _ in own], np.int64),
                weight=np.array([weight for _, _, weight in own], np.float64),
            )
        return size


def _largest(ratio: Array, count: int, random: np.random.Generator) -> list[int]:
    """The elements with the largest error ratios, the largest first; equal ones in random order."""
    order = random.permutation(ratio.size)
    return [int(element) for element in order[np.argsort(-ratio[order], kind="stable")[:count]]]


def _allowed(reference: Array, atol: float, rtol: float, stat: Statistic) -> Array:
    """The error allowed of each element, shape (elements,), float64."""
    allowed = np.full(reference.shape, atol)
    if stat is Statistic.ELEMWISE or atol == 0:
        allowed = np.maximum(atol, rtol * np.abs(reference))
    return np.asarray(np.maximum(allowed, np.finfo(np.float64).tiny))


def _ratios(found: Array, one: _Watched) -> Array:
    """Signed error ratios of every element, shape (elements,)."""
    cap = tuning.ERROR_CAP
    if found.size != one.reference.size:
        return np.full(one.reference.shape, cap)
    with np.errstate(all="ignore"):
        ratios = (found.reshape(-1).astype(np.float64) - one.reference) / one.allowed
    clipped: Array = np.clip(np.nan_to_num(ratios, nan=cap, posinf=cap, neginf=-cap), -cap, cap)
    return clipped
