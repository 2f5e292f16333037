"""The error model: predicts the error of any plan from what single roundings do.

A plan rounds values, not layers. A value whose producer stays in FP32 is still rounded by every consumer in FP16, and a
value that its producer rounds is rounded for all. So each rounding effect says which layers produce and consume the
value, what rounding it does to the outputs, and what it does when only one consumer rounds it.

The effects that a plan leaves active add up like independent errors: by squares. The sign of a rounding error changes
with everything upstream, so a sum of signed effects that were measured one at a time would predict nothing. But
roundings of the same value (before and after a Relu, a transpose, a product with a power of two) have the same effect
and count once. With the opposite effect, on the two sides of a difference, they cancel.

Some roundings do harm only together. Such a conflict is found when a plan fails that was predicted to pass. It is
blamed on one of its parties, so that all conflicts together take the fewest pins.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, product
from typing import Protocol

import numpy as np

from trt_helper.search import tuning
from trt_helper.search.strategy import Prediction
from trt_helper.values import Array, LayerName, Plan, Statistic, TensorName

ValueName = tuple[TensorName, LayerName]
"""A tensor and its producer; the weights of a layer have no tensor name, graph inputs no producer."""


class Names(Protocol):
    """Layer names that are only tested for membership."""

    def __contains__(self, name: object, /) -> bool: ...


@dataclass(frozen=True, eq=False, slots=True)
class RoundingEffect:
    """What rounding one value does to the outputs.

    Attributes:
        producers: the value is rounded for all its consumers unless all of these are pinned; weights have the layer
            that reads them as their producer, and no consumer.
        consumers: once the producers are pinned, each of these that is not pinned still rounds the value for itself.
        for_all_consumers: errors as a `search.probe.Probe` measures them, shape (errors,), float64, when every consumer
            reads the value rounded.
        per_consumer: the same when only this consumer does, one array per consumer; empty where it was not measured.
        value: the value's name.
    """

    producers: frozenset[LayerName]
    consumers: tuple[LayerName, ...]
    for_all_consumers: Array
    per_consumer: tuple[Array, ...] = ()
    value: ValueName = ("", "")

    @property
    def names(self) -> frozenset[LayerName]:
        return self.producers.union(self.consumers)


@dataclass(frozen=True, eq=False, slots=True)
class Conflict:
    """Parties whose roundings do harm together, and none when any one party does not round.

    Attributes:
        parties: the values of each party; each value of a party alone does that party's share.
        errors: the same as in `RoundingEffect`, when all parties round.
    """

    parties: tuple[tuple[ValueName, ...], ...]
    errors: Array


class ErrorModel:
    """Predicts the error ratio of any plan from rounding effects and conflicts.

    Args:
        layers: the layers that may be pinned, in topological order.
        rounding_effects: one for each value that the empty plan rounds.
        statistic: the statistic that the tolerance judges by.
        conflicts: roundings that do harm only together.
        pin_costs: the cost of pinning each layer, in any unit; decides only between layers that help equally.
    """

    def __init__(
        self,
        layers: Sequence[LayerName],
        rounding_effects: Sequence[RoundingEffect],
        statistic: Statistic = Statistic.MAX,
        conflicts: Sequence[Conflict] = (),
        pin_costs: Mapping[LayerName, float] | None = None,
    ) -> None:
        self._layers = tuple(layers)
        self._costs = pin_costs or {}
        self._statistic = statistic
        self._rounding_effects = _blame(rounding_effects, conflicts, self._costs)
        numbers = _EffectNumbers(self._rounding_effects)
        self._for_all = [numbers.of(index, -1) for index in range(len(self._rounding_effects))]
        self._per_consumer = [
            tuple(numbers.of(index, consumer) for consumer in range(len(rounding.per_consumer)))
            for index, rounding in enumerate(self._rounding_effects)
        ]
        self._squares = numbers.squares()
        self._touching: dict[LayerName, list[int]] = {name: [] for name in layers}
        self._layers_of: dict[int, set[LayerName]] = {}
        for index, rounding in enumerate(self._rounding_effects):
            for name in rounding.names:
                self._touching[name].append(index)
                for number in (self._for_all[index], *self._per_consumer[index]):
                    self._layers_of.setdefault(abs(number), set()).add(name)

    def error(self, plan: Plan) -> float:
        """The predicted error ratio of `plan`."""
        return self._size(self._total(self._active(plan.fp32)))

    def prediction(self) -> Prediction:
        """The order in which pins help most, and the predicted errors that order the search."""
        given_up, errors = self._give_up()
        return Prediction(given_up[::-1], errors[::-1], self.error, self.without)

    def _of_rounding(self, index: int, pinned: Names) -> tuple[int, ...]:
        """Numbers of the effects that rounding `index` has under these pins; negative for the opposite effect."""
        rounding = self._rounding_effects[index]
        if not all(name in pinned for name in rounding.producers):
            return (self._for_all[index],)
        rounding_readers = [i for i, name in enumerate(rounding.consumers) if name not in pinned]
        if not rounding_readers:
            return ()
        if len(rounding_readers) == len(rounding.consumers) or not rounding.per_consumer:
            return (self._for_all[index],)
        return tuple(self._per_consumer[index][i] for i in rounding_readers)

    def _active(self, pinned: frozenset[LayerName]) -> Counter[int]:
        return Counter(c for index in range(len(self._rounding_effects)) for c in self._of_rounding(index, pinned))

    def _total(self, active: Iterable[int]) -> Array:
        present = set(active)
        total: Array = self._squares[sorted(abs(c) for c in present if -c not in present)].sum(axis=0)
        return total

    def _size(self, squares: Array) -> float:
        roots = np.sqrt(np.maximum(squares, 0))
        if self._statistic is Statistic.MEAN:
            return float(roots.mean())
        return float(np.median(roots) if self._statistic is Statistic.MEDIAN else roots.max(initial=0.0))

    def _give_up(self) -> tuple[list[LayerName], list[float]]:
        """Give up the pin that is missed least, one after the other; the order, and the predicted error after each."""
        kept = dict.fromkeys(self._layers)
        active: Counter[int] = Counter()
        order: list[LayerName] = []
        errors = [0.0]
        for name in self._negligible():
            self._toggle(name, kept, active)
            order.append(name)
            errors.append(errors[-1])
        total = self._total(active)
        change = {name: self._change(name, kept, active) for name in kept}
        while kept:
            name = self._least_missed({other: self._size(total + change[other]) for other in kept})
            self._toggle(name, kept, active)
            total = self._total(active)
            order.append(name)
            errors.append(self._size(total))
            touched = {
                abs(c) for index in self._touching[name] for c in (self._for_all[index], *self._per_consumer[index])
            }
            near = {other for number in touched for other in self._layers_of[number]}
            for other in near & kept.keys():
                change[other] = self._change(other, kept, active)
            change.pop(name)
        return order, errors

    def _least_missed(self, sizes: Mapping[LayerName, float]) -> LayerName:
        """The pin to give up next: of those that are missed equally little, the most expensive one."""
        least = min(sizes.values()) * (1 + tuning.EQUAL_LOSS)
        return max((name for name in sizes if sizes[name] <= least), key=lambda name: self._costs.get(name, 0.0))

    def _toggle(self, name: LayerName, kept: dict[LayerName, None], active: Counter[int]) -> None:
        before = [c for index in self._touching[name] for c in self._of_rounding(index, kept)]
        kept.pop(name)
        active.subtract(before)
        active.update(c for index in self._touching[name] for c in self._of_rounding(index, kept))
        for c in [c for c, count in active.items() if count <= 0]:
            del active[c]

    def _change(self, name: LayerName, kept: dict[LayerName, None], active: Counter[int]) -> Array:
        """What giving up the pin `name` adds to the squared errors, shape (errors,)."""
        counts = Counter(c for index in self._touching[name] for c in self._of_rounding(index, _Without(kept, name)))
        counts.subtract(c for index in self._touching[name] for c in self._of_rounding(index, kept))
        change: Array = np.zeros(self._squares.shape[1])
        for number in sorted({abs(c) for c in counts}):
            was = (active[number] > 0) != (active[-number] > 0)
            now = (active[number] + counts[number] > 0) != (active[-number] + counts[-number] > 0)
            change += (int(now) - int(was)) * self._squares[number]
        return change

    def _negligible(self) -> list[LayerName]:
        """Layers whose effects together are negligible, smallest first."""
        own = {
            name: sum(float(self._squares[abs(self._for_all[i])].max(initial=0.0)) for i in self._touching[name])
            for name in self._layers
        }
        ordered = sorted(self._layers, key=lambda layer: own[layer])
        spent = np.cumsum([own[name] for name in ordered])
        return ordered[: int(np.searchsorted(spent, tuning.NEGLIGIBLE**2))]

    def without(self, plan: Plan) -> Mapping[LayerName, float]:
        """The predicted error ratio of `plan` without each of its pins, the most expensive and last layer first."""
        kept = {name: None for name in self._layers if name in plan.fp32}
        active = self._active(plan.fp32)
        total = self._total(active)
        names = [*reversed(kept)]
        names.sort(key=lambda name: -self._costs.get(name, 0.0))
        return {name: self._size(total + self._change(name, kept, active)) for name in names}


def _blame(
    rounding_effects: Sequence[RoundingEffect], conflicts: Sequence[Conflict], costs: Mapping[LayerName, float]
) -> tuple[RoundingEffect, ...]:
    """Blame each conflict on one of its parties, so that pinning those takes the fewest and cheapest pins."""
    if not conflicts:
        return tuple(rounding_effects)
    place = {rounding.value: index for index, rounding in enumerate(rounding_effects)}
    ways = product(*([[place[value] for value in party] for party in conflict.parties] for conflict in conflicts))

    def pins(way: Iterable[Sequence[int]]) -> tuple[int, float]:
        names = frozenset[LayerName]().union(*(rounding_effects[index].names for party in way for index in party))
        return len(names), sum(costs.get(name, 0.0) for name in sorted(names))

    blamed = list(rounding_effects)
    for party, conflict in zip(min(islice(ways, tuning.MOST_BLAME_COMBINATIONS), key=pins), conflicts, strict=True):
        for index in party:
            blamed[index] = replace(blamed[index], for_all_consumers=conflict.errors, per_consumer=())
    return tuple(blamed)


class _Without:
    """Membership in `kept` without one name, without a copy."""

    def __init__(self, kept: dict[LayerName, None], name: LayerName) -> None:
        self._kept, self._name = kept, name

    def __contains__(self, other: object) -> bool:
        return other != self._name and other in self._kept


class _EffectNumbers:
    """Numbers the different effects from 1; the opposite of an effect has its negative number.

    Only effects of neighbouring layers are compared; an effect that was set to another's exact opposite is recognised
    anywhere.
    """

    def __init__(self, rounding_effects: Sequence[RoundingEffect]) -> None:
        self._effects: list[Array] = []
        self._exact: dict[bytes, int] = {}
        self._numbers: dict[tuple[int, int], int] = {}
        near: dict[LayerName, list[int]] = {}
        for index, rounding in enumerate(rounding_effects):
            for consumer, errors in enumerate((rounding.for_all_consumers, *rounding.per_consumer), start=-1):
                known = {number for name in rounding.names for number in near.get(name, ())}
                number = self._find(errors, known)
                self._numbers[index, consumer] = number
                for name in rounding.names:
                    near.setdefault(name, []).append(abs(number))

    def _find(self, errors: Array, known: set[int]) -> int:
        size = float(np.abs(errors).max(initial=0.0))
        for number in sorted(known):
            effect = self._effects[number - 1]
            if float(np.abs(effect - errors).max(initial=0.0)) <= tuning.SAME_EFFECT * size:
                return number
        opposite = self._exact.get((-errors).tobytes(), 0) if size < tuning.ERROR_CAP else 0
        if opposite:
            return -opposite
        self._effects.append(errors)
        self._exact[errors.tobytes()] = len(self._effects)
        return len(self._effects)

    def of(self, index: int, consumer: int) -> int:
        """The number of one effect; consumer -1 stands for all consumers."""
        return self._numbers[index, consumer]

    def squares(self) -> Array:
        """Squared errors by number, shape (1 + effects, errors); no effect has number 0."""
        width = self._effects[0].size if self._effects else 1
        rows = [np.zeros(width), *self._effects]
        return np.array(rows, dtype=np.float64).reshape(len(rows), width) ** 2
