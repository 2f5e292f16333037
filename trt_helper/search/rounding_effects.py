"""An emulator and samples go in; what each single rounding does to the outputs comes out.

A value is rounded for everybody when its maker is FP16, and for those of its readers that are FP16 when
its maker is not. This module rounds one value at a time in the FP32 model, for all of its readers and
for each alone, and follows the difference only as far downstream as there is one.

These are forward passes, not trials: no plan rounds one value and nothing else.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TypeVar

import numpy as np

from trt_helper.emulator.emulator import Emulator
from trt_helper.emulator.kernels import EmulationError
from trt_helper.search.error_model import CAP, NEGLIGIBLE, Conflict, RoundingEffect, ValueName
from trt_helper.system.array_store import ArrayStore
from trt_helper.values import Array, LayerName, Plan, Role, Statistic, TensorName, Tolerance, Trial

WATCHED = 512  # elements per output and sample whose error is followed
MOST_PASSES = 2000  # per sample; what is left then stays in groups
OPPOSED = -0.8  # cosine between two errors that may cancel
CANCELLED = 0.1  # what two errors that cancel leave of one
MOST_SAMPLES = 8  # that are looked at; all of them judge
MOST_PASSES_TOGETHER = 200  # on the worst sample, to find out which roundings do harm only together

T = TypeVar("T")
Places = list[tuple[TensorName, LayerName]]  # where a tensor is read rounded; as in Emulator.inject


@dataclass(frozen=True, slots=True)
class Value:
    """Something that the empty plan rounds: a tensor, or the weights of a layer (then without a name)."""

    tensor: TensorName
    producer: LayerName  # empty for a graph input, or what a layer without an FP16 form makes
    consumers: tuple[LayerName, ...]  # computing layers that read it, be it through movement layers
    others: tuple[LayerName, ...]  # readers that take it as it is; an empty name for the graph's outputs

    @property
    def names(self) -> frozenset[LayerName]:
        """The layers that would have to be pinned to keep it from being rounded."""
        return frozenset((self.producer, *self.consumers)) - {""}


def looked_at(samples: int, worst: int) -> list[int]:
    """Which of so many samples the roundings are put into: the `worst` and others, evenly spread, in their order."""
    if samples <= MOST_SAMPLES:
        return list(range(samples))
    even = (round(step * (samples - 1) / (MOST_SAMPLES - 2)) for step in range(MOST_SAMPLES - 1))
    return sorted({*even, worst})


def rounded_values(emulator: Emulator) -> list[Value]:
    """Everything that the empty plan rounds, in the order in which it is made."""
    graph = emulator.graph
    weights = [
        Value("", layer.name, (), (layer.name,))
        for layer in graph.layers
        if layer.role is Role.COMPUTE and emulator.has_rounded_weights(layer.name)
    ]
    constants = {value.name or "" for value in graph.model.graph.initializers.values()}
    producers: dict[TensorName, LayerName] = {v.name or "": "" for v in graph.inputs if v.name not in graph.half_io}
    producers.update(dict.fromkeys(constants, ""))  # for the readers behind a layer that only moves them
    consumers: dict[TensorName, dict[LayerName, bool]] = {}
    origins: dict[TensorName, tuple[TensorName, ...]] = {name: (name,) for name in producers}
    for layer in graph.layers:
        node, ports = graph.nodes[layer.name], graph.ports[layer.name]
        followed = {node.inputs[i].name for i in ports.inputs if node.inputs[i] is not None}  # type: ignore[union-attr]
        read = [name for name in dict.fromkeys(layer.inputs) if name in origins]
        written = [layer.outputs[i] for i in ports.outputs]
        if layer.role is Role.MOVEMENT and layer.name not in graph.picking:
            moved = tuple(dict.fromkeys(o for name in read if name in followed for o in origins[name]))
            for name in written:  # a layer that reads no float fills in a constant of its own
                origins[name] = moved or (name,)
                producers.setdefault(name, "")
            continue
        for name in (name for name in read if name not in constants):
            rounds = layer.role is Role.COMPUTE and name in followed
            for origin in origins[name]:
                known = consumers.setdefault(origin, {})
                known[layer.name] = known.get(layer.name, False) or rounds
        for name in written if layer.role is Role.COMPUTE else layer.outputs:
            origins[name] = (name,)
            producers[name] = layer.name if layer.role is Role.COMPUTE else ""
    for name in graph.outputs:
        for origin in origins.get(name, ()):
            consumers.setdefault(origin, {})[""] = False
    values = [
        Value(
            tensor,
            producers[tensor],
            tuple(name for name, rounds in found.items() if rounds),
            tuple(name for name, rounds in found.items() if not rounds and producers[tensor]),
        )
        for tensor, found in consumers.items()
    ]
    return weights + [value for value in values if value.consumers or value.others]


def rounding_effects(
    emulator: Emulator,
    feeds: Sequence[Mapping[TensorName, Array]],
    tolerance: Tolerance,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> tuple[list[RoundingEffect], int]:
    """What every rounding does to the outputs of `feeds`, and how many forward passes that took.

    Values are rounded in groups that are split as long as they matter, so that a large model with few
    culprits needs some passes per culprit and not one per layer.
    """
    every = rounded_values(emulator)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        store = emulator.store.part()
        probes = list(pool.map(lambda feed: _Probe(emulator, feed, tolerance, store), feeds))
        passes, done = len(probes), 0

        def errors(*places: tuple[TensorName, LayerName]) -> Array:
            nonlocal passes
            passes += len(probes)
            return np.concatenate(list(pool.map(lambda probe: probe.errors(places), probes)))

        found: dict[Value, RoundingEffect] = {}
        queue = _first_groups(every)
        while queue:
            group = queue.pop()
            for_all_consumers = errors(*(place for value in group for place in _places(value)))
            matters = np.abs(for_all_consumers).max(initial=0.0) > NEGLIGIBLE / 4 and passes < MOST_PASSES * len(probes)
            if len(group) > 1 and matters:
                middle = len(group) // 2
                queue += [group[middle:], group[:middle]]
                continue
            share = for_all_consumers / np.sqrt(len(group))
            for value in group:
                split = len(group) == 1 and matters and len(value.consumers) > 1
                per_consumer = tuple(errors((value.tensor, consumer)) for consumer in value.consumers) if split else ()
                producers = frozenset({value.producer} - {""})
                found[value] = RoundingEffect(
                    producers, value.consumers, share, per_consumer, (value.tensor, value.producer)
                )
            done += len(group)
            on_progress(done, len(every))
        for one, other in _opposites(emulator, found):
            left = float(np.abs(errors(*_places(one), *_places(other))).max(initial=0.0))
            if left <= CANCELLED * float(np.abs(found[one].for_all_consumers).max()):
                found[other] = replace(found[other], for_all_consumers=-found[one].for_all_consumers)
    return list(found.values()), passes


def _opposites(emulator: Emulator, found: Mapping[Value, RoundingEffect]) -> list[tuple[Value, Value]]:
    """Values that meet in a layer and whose roundings may cancel there, as on the two sides of a difference."""
    children = {layer.name: layer.children for layer in emulator.graph.layers}
    met: dict[LayerName, list[Value]] = {}
    for value, rounding in found.items():
        if NEGLIGIBLE < np.abs(rounding.for_all_consumers).max(initial=0.0) < CAP:
            for name in value.consumers or children[value.producer]:
                met.setdefault(name, []).append(value)
    pairs = dict.fromkeys(pair for values in met.values() for pair in combinations(values, 2))
    return [pair for pair in pairs if _against(*(found[value].for_all_consumers for value in pair)) < OPPOSED]


def _against(a: Array, b: Array) -> float:
    """Cosine of the angle between two errors."""
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def conflict(
    emulator: Emulator,
    feeds: Sequence[Mapping[TensorName, Array]],
    worst_feed: Mapping[TensorName, Array],
    tolerance: Tolerance,
    failed: Trial,
    expected: float,
) -> tuple[Conflict | None, int]:
    """Few roundings that only together explain why `failed` is so much worse than expected; and the passes taken.

    `expected` is its foreseen error over tolerance, `worst_feed` the sample that decided it. All roundings of the plan
    are put into the FP32 model and taken out by halves as long as the harm stays (QuickXplain, Junker 2004): some
    2 k log2(n / k) passes for k of n. None where they do no such harm, where one of them does it alone, or where that
    would take too many passes.
    """
    active = [(value, places) for value in rounded_values(emulator) if (places := _places_under(value, failed.plan))]
    harm = math.sqrt(max(expected, 1.0) * min(failed.error_ratio, CAP))
    worst = _Probe(emulator, worst_feed, tolerance, emulator.store.part())
    passes = 1

    def harmful(group: Sequence[tuple[Value, Places]]) -> bool:
        nonlocal passes
        passes += 1
        if passes > MOST_PASSES_TOGETHER:
            return False
        return float(np.abs(worst.errors(place for _, places in group for place in places)).max(initial=0.0)) > harm

    members = _smallest_group(active, harmful) if active and harmful(active) else []
    if passes > MOST_PASSES_TOGETHER or len(members) <= 1:
        return None, passes
    parties = []
    for member in members:
        others = [other for other in members if other is not member]
        parties.append(_party(member, active, lambda value, others=others: harmful([*others, value])))  # type: ignore[misc]
    places = [place for _, places in members for place in places]
    probes = (_Probe(emulator, feed, tolerance, emulator.store.part()) for feed in feeds)
    errors = np.concatenate([probe.errors(places) for probe in probes])
    return Conflict(tuple(parties), errors), passes + 2 * len(feeds)


RoundedAt = tuple[Value, Places]  # a value, and where a plan rounds it


def _party(
    member: RoundedAt, active: Sequence[RoundedAt], stands_in: Callable[[RoundedAt], bool]
) -> tuple[ValueName, ...]:
    """`member` and what can stand in for it: neighbours, and theirs, that do the same harm in its place."""
    party, border = [member], [member]
    while border:
        names = {name for value, _ in border for name in value.names}
        fresh = [one for one in active if one not in party and not names.isdisjoint(one[0].names)]
        border = [one for one in fresh if stands_in(one)]
        party += border
    return tuple((value.tensor, value.producer) for value, _ in party)


def _smallest_group(items: Sequence[T], harmful: Callable[[Sequence[T]], bool]) -> list[T]:
    """A subset of `items` that is harmful while it is not without any one of its members; `items` is harmful."""

    def explain(kept: list[T], fresh: bool, rest: Sequence[T]) -> list[T]:
        if fresh and harmful(kept):
            return []
        if len(rest) == 1:
            return list(rest)
        left, right = rest[: len(rest) // 2], rest[len(rest) // 2 :]
        of_right = explain([*kept, *left], True, right)
        of_left = explain([*kept, *of_right], bool(of_right), left)
        return of_left + of_right

    return explain([], False, items)


def _places_under(value: Value, plan: Plan) -> Places:
    """Where `value` is rounded under a plan: everywhere when its maker rounds, else where its readers do."""
    if value.producer and value.producer not in plan.fp32:
        return _places(value)
    return [(value.tensor, name) for name in value.consumers if name not in plan.fp32]


def _places(value: Value) -> Places:
    return [(value.tensor, name) for name in (*value.consumers, *value.others)]


def _first_groups(every: list[Value]) -> list[list[Value]]:
    """Small models are looked at one value at a time, large ones in groups to start with."""
    size = 1 if len(every) <= MOST_PASSES // 4 else 16
    return [every[start : start + size] for start in range(0, len(every), size)][::-1]


class _Probe:
    """One sample: its FP32 values, and the elements of its outputs that are watched."""

    def __init__(
        self, emulator: Emulator, feed: Mapping[TensorName, Array], tolerance: Tolerance, store: ArrayStore
    ) -> None:
        self._emulator = emulator
        self._reference = emulator.all_values(feed, store)
        self._watched: dict[TensorName, tuple[Array, Array, Array]] = {}
        for name in emulator.graph.outputs:
            reference = np.asarray(self._reference[name])
            if reference.dtype.kind == "f":
                self._watched[name] = _watch(name, reference.reshape(-1), tolerance)

    def errors(self, places: Iterable[tuple[TensorName, LayerName]]) -> Array:
        """Signed error over tolerance at the watched elements, with these roundings only."""
        try:
            changed = self._emulator.inject(places, self._reference)
        except EmulationError:  # a rounded index that points outside, say: as wrong as can be
            return np.full(max(1, sum(index.size for index, _, _ in self._watched.values())), CAP)
        parts = []
        for name, (index, reference, allowed) in self._watched.items():
            if name not in changed:
                parts.append(np.zeros(index.size))
                continue
            with np.errstate(all="ignore"):
                error = (changed[name].reshape(-1)[index].astype(np.float64) - reference) / allowed
            parts.append(np.clip(np.nan_to_num(error, nan=CAP, posinf=CAP, neginf=-CAP), -CAP, CAP))
        return np.concatenate(parts) if parts else np.zeros(1)


def _watch(name: TensorName, reference: Array, tolerance: Tolerance) -> tuple[Array, Array, Array]:
    """Indices spread evenly over the output, with the largest values among them; what each may be off."""
    if reference.size <= WATCHED:
        index = np.arange(reference.size)
    else:
        even = np.linspace(0, reference.size - 1, WATCHED // 2).astype(np.int64)
        largest = np.argpartition(-np.abs(reference), WATCHED // 2)[: WATCHED // 2]
        index = np.unique(np.concatenate([even, largest]))
    atol, rtol = tolerance.of(name)
    picked = reference[index].astype(np.float64)
    allowed = np.full(picked.shape, atol)
    if tolerance.stat is Statistic.ELEMWISE or atol == 0:
        allowed = np.maximum(atol, rtol * np.abs(picked))
    return index, picked, np.maximum(allowed, np.finfo(np.float64).tiny)
