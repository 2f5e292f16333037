"""Roundings and their effects go in, a ladder of plans with foreseen errors comes out.

Each rounding has an effect at the outputs and is silent when all of its pins are in the plan. Effects
of roundings that a plan leaves add up like independent errors: their squares do. (They are not
independent of one another in sign, but which way a value is rounded changes with everything upstream,
so a sum of signs measured one at a time foretells nothing.) Roundings of the same values - before and
after a Relu, a transpose, a product with a power of two - have the same effect: they are one rounding,
and it is silent only when the pins of all of them are there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from trt_helper.search.strategy import Guess, Rung
from trt_helper.values import LayerName, Plan, Statistic

Array = np.ndarray
CAP = 1e4  # errors over tolerance beyond this are all the same: hopeless
SAME = 0.02  # two effects that differ by less than this share are the effect of one rounding
NEGLIGIBLE = 0.02  # of the tolerance: layers are given up together while their sum stays below


@dataclass(frozen=True, eq=False, slots=True)
class Effect:
    """What one rounding does: `errors` over tolerance at the watched elements, all samples, signed."""

    pins: frozenset[LayerName]
    errors: Array  # shape (watched elements,)


def merge(effects: Sequence[Effect]) -> list[Effect]:
    """Effects of one and the same rounding become one, with the pins of all."""
    merged: list[Effect] = []
    by_name: dict[LayerName, list[int]] = {}
    for effect in effects:
        size = np.abs(effect.errors).max(initial=0.0)
        if size == 0:
            continue
        near = {index for name in effect.pins for index in by_name.get(name, ())}
        twin = next((i for i in sorted(near) if _same(merged[i].errors, effect.errors, size)), None)
        if twin is None:
            twin = len(merged)
            merged.append(effect)
        else:
            merged[twin] = Effect(merged[twin].pins | effect.pins, merged[twin].errors)
        for name in effect.pins:
            by_name.setdefault(name, []).append(twin)
    return merged


def _same(a: Array, b: Array, size: float) -> bool:
    return bool(np.abs(a - b).max() <= SAME * size)


class Foresight:
    """Foretells the error of any plan from the effects of single roundings."""

    def __init__(
        self, layers: Sequence[LayerName], effects: Sequence[Effect], statistic: Statistic = Statistic.MAX
    ) -> None:
        self._layers = tuple(layers)
        self._statistic = statistic
        self._effects = merge(effects)
        width = self._effects[0].errors.size if self._effects else 1
        squares = [np.minimum(np.abs(np.nan_to_num(e.errors, nan=CAP)), CAP) ** 2 for e in self._effects]
        self._squares = np.array(squares, dtype=np.float64).reshape(len(squares), width)
        self._of: dict[LayerName, list[int]] = {name: [] for name in layers}
        for index, effect in enumerate(self._effects):
            for name in effect.pins:
                self._of[name].append(index)

    def guess(self) -> Guess:
        """The ladder, and the order in which pins are least missed."""
        return Guess(self._ladder(), self._without)

    def error(self, plan: Plan) -> float:
        """Foreseen error over tolerance of `plan`."""
        return self._size(self._squares[self._loud(plan)].sum(axis=0))

    def _loud(self, plan: Plan) -> list[int]:
        return [index for index, effect in enumerate(self._effects) if not effect.pins <= plan.fp32]

    def _ladder(self) -> list[Rung]:
        """From everything pinned downwards, always giving up the layer that is least missed."""
        kept = dict.fromkeys(self._layers)
        silent = np.ones(len(self._effects), dtype=bool)
        total = np.zeros(self._squares.shape[1])
        rungs: list[Rung] = [(Plan.of(kept), 0.0)]
        for name in self._negligible():
            kept.pop(name)
            new = [index for index in self._of[name] if silent[index]]
            silent[new] = False
            total = total + self._squares[new].sum(axis=0)
        added = {name: self._squares[[i for i in self._of[name] if silent[i]]].sum(axis=0) for name in kept}
        while kept:
            if len(kept) < len(self._layers):
                rungs.append((Plan.of(kept), self._size(total)))
            name = min(kept, key=lambda other: float((total + added[other]).max()))
            kept.pop(name)
            total = total + added.pop(name)
            for index in self._of[name]:
                if silent[index]:
                    silent[index] = False
                    for other in self._effects[index].pins & kept.keys():
                        added[other] = added[other] - self._squares[index]
        rungs.append((Plan(), self._size(total)))
        return rungs[::-1]

    def _negligible(self) -> Iterable[LayerName]:
        """Layers that can be given up all at once, smallest effect first."""
        own = {name: float(self._squares[self._of[name]].max(initial=0.0)) for name in self._layers}
        spent = 0.0
        for name in sorted(self._layers, key=lambda layer: own[layer]):
            spent += own[name] * max(1, len(self._of[name]))
            if spent > NEGLIGIBLE**2:
                return
            yield name

    def _without(self, plan: Plan) -> list[LayerName]:
        total = self._squares[self._loud(plan)].sum(axis=0)
        place = {name: index for index, name in enumerate(self._layers)}

        def missed(name: LayerName) -> tuple[float, int]:
            new = [index for index in self._of[name] if self._effects[index].pins <= plan.fp32]
            return self._size(total + self._squares[new].sum(axis=0)), -place[name]

        return sorted(plan.fp32, key=missed)

    def _size(self, squares: Array) -> float:
        roots = np.sqrt(squares)
        if self._statistic is Statistic.MEAN:
            return float(roots.mean())
        return float(np.median(roots) if self._statistic is Statistic.MEDIAN else roots.max(initial=0.0))
