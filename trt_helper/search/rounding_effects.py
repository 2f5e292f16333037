"""Measures the rounding effects: what each single rounding does to the outputs.

A value is rounded for all consumers when its producer is FP16, and for each FP16 consumer when its producer is not.
This module rounds one value at a time in the FP32 model, for all of its consumers and for each alone, and follows the
difference downstream as far as there is one.

These are forward passes and not trials: no plan rounds one value and nothing else.
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
from trt_helper.search import tuning
from trt_helper.search.error_model import Conflict, RoundingEffect, ValueName
from trt_helper.system.array_store import ArrayStore
from trt_helper.values import Array, LayerName, Plan, Role, Statistic, TensorName, Tolerance, Trial

T = TypeVar("T")
Places = list[tuple[TensorName, LayerName]]
"""Where values are read rounded: (tensor, consumer), as `Emulator.inject` takes them."""


@dataclass(frozen=True, slots=True)
class Value:
    """A value that the empty plan rounds: a tensor, or the weights of a layer.

    Attributes:
        tensor: its name; empty for weights.
        producer: the layer that computes it; empty for a graph input and for the result of a layer that has no FP16
            form.
        consumers: the computing layers that read it, directly or through movement layers.
        others: other consumers, which take it as it is; an empty name stands for the graph's outputs.
    """

    tensor: TensorName
    producer: LayerName
    consumers: tuple[LayerName, ...]
    others: tuple[LayerName, ...]

    @property
    def names(self) -> frozenset[LayerName]:
        """The layers that would have to be pinned to keep it from being rounded."""
        return frozenset((self.producer, *self.consumers)) - {""}


def samples_to_measure(samples: int, worst: int) -> list[int]:
    """The indices of the samples that effects are measured on, of `samples`: `worst` and others, evenly spread."""
    if samples <= tuning.MOST_SAMPLES:
        return list(range(samples))
    even = (round(step * (samples - 1) / (tuning.MOST_SAMPLES - 2)) for step in range(tuning.MOST_SAMPLES - 1))
    return sorted({*even, worst})


def rounded_values(emulator: Emulator) -> list[Value]:
    """Every value that the empty plan rounds, in topological order of the producers."""
    graph = emulator.graph
    weights = [
        Value("", layer.name, (), (layer.name,))
        for layer in graph.layers
        if layer.role is Role.COMPUTE and emulator.has_rounded_weights(layer.name)
    ]
    constants = {value.name or "" for value in graph.model.graph.initializers.values()}
    producers: dict[TensorName, LayerName] = {v.name or "": "" for v in graph.inputs if v.name not in graph.half_io}
    producers.update(dict.fromkeys(constants, ""))  # for consumers behind a movement layer
    consumers: dict[TensorName, dict[LayerName, bool]] = {}
    origins: dict[TensorName, tuple[TensorName, ...]] = {name: (name,) for name in producers}
    for layer in graph.layers:
        node, ports = graph.nodes[layer.name], graph.ports[layer.name]
        followed = {node.inputs[i].name for i in ports.inputs if node.inputs[i] is not None}  # type: ignore[union-attr]
        read = [name for name in dict.fromkeys(layer.inputs) if name in origins]
        written = [layer.outputs[i] for i in ports.outputs]
        if layer.role is Role.MOVEMENT and layer.name not in graph.picking:
            moved = tuple(dict.fromkeys(o for name in read if name in followed for o in origins[name]))
            for name in written:  # a layer that reads no float makes a constant
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
    """Measure what every rounding does to the outputs.

    Values are rounded in groups that are split as long as they matter, so that a large model with few culprits needs
    some passes per culprit and not one per layer.

    Args:
        emulator: of the graph that is searched.
        feeds: the samples to measure on.
        tolerance: the tolerance that errors are divided by.
        on_progress: called with the number of values that are done, and of all.

    Returns:
        The rounding effects, and the number of forward passes.
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
            matters = np.abs(for_all_consumers).max(
                initial=0.0
            ) > tuning.NEGLIGIBLE / 4 and passes < tuning.MOST_PASSES * len(probes)
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
            on_progress(done, len(every))
            left = float(np.abs(errors(*_places(one), *_places(other))).max(initial=0.0))
            if left <= tuning.CANCELLED * float(np.abs(found[one].for_all_consumers).max()):
                found[other] = replace(found[other], for_all_consumers=-found[one].for_all_consumers)
    return list(found.values()), passes


def _opposites(emulator: Emulator, found: Mapping[Value, RoundingEffect]) -> list[tuple[Value, Value]]:
    """Values that meet in a layer and whose roundings may cancel there, as on the two sides of a difference."""
    children = {layer.name: layer.children for layer in emulator.graph.layers}
    met: dict[LayerName, list[Value]] = {}
    for value, rounding in found.items():
        if tuning.NEGLIGIBLE < np.abs(rounding.for_all_consumers).max(initial=0.0) < tuning.ERROR_CAP:
            for name in value.consumers or children[value.producer]:
                met.setdefault(name, []).append(value)
    pairs = dict.fromkeys(pair for values in met.values() for pair in combinations(values, 2))
    return [pair for pair in pairs if _against(*(found[value].for_all_consumers for value in pair)) < tuning.OPPOSED]


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
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> tuple[Conflict | None, int]:
    """Find few roundings that only together explain why a plan is so much worse than predicted.

    All roundings of the plan are put into the FP32 model and taken out by halves as long as the harm stays
    (QuickXplain, Junker 2004): some 2 k log2(n / k) passes for k of n.

    Args:
        emulator: of the graph that is searched.
        feeds: the samples to measure the conflict on.
        worst_feed: the sample that decided the trial.
        tolerance: the tolerance that errors are divided by.
        failed: the trial.
        expected: its predicted error ratio.
        on_progress: called before each forward pass with the number of passes, and the largest number.

    Returns:
        The conflict, and the number of forward passes. The conflict is None where all roundings together do no such
        harm, where one of them does it alone, or where more than `tuning.MOST_CONFLICT_PASSES` would be needed.
    """
    active = [(value, places) for value in rounded_values(emulator) if (places := _places_under(value, failed.plan))]
    harm = math.sqrt(max(expected, 1.0) * min(failed.error_ratio, tuning.ERROR_CAP))
    worst = _Probe(emulator, worst_feed, tolerance, emulator.store.part())
    passes = 1

    def harmful(group: Sequence[tuple[Value, Places]]) -> bool:
        nonlocal passes
        passes += 1
        if passes > tuning.MOST_CONFLICT_PASSES:
            return False
        on_progress(passes, tuning.MOST_CONFLICT_PASSES)
        return float(np.abs(worst.errors(place for _, places in group for place in places)).max(initial=0.0)) > harm

    members = _smallest_group(active, harmful) if active and harmful(active) else []
    if passes > tuning.MOST_CONFLICT_PASSES or len(members) <= 1:
        return None, passes
    parties = []
    for member in members:
        others = [other for other in members if other is not member]
        parties.append(_party(member, active, lambda value, others=others: harmful([*others, value])))  # type: ignore[misc]
    places = [place for _, places in members for place in places]
    probes = (_Probe(emulator, feed, tolerance, emulator.store.part()) for feed in feeds)
    errors = np.concatenate([probe.errors(places) for probe in probes])
    return Conflict(tuple(parties), errors), passes + 2 * len(feeds)


RoundedAt = tuple[Value, Places]
"""A value, and where a plan rounds it."""


def _party(
    member: RoundedAt, active: Sequence[RoundedAt], stands_in: Callable[[RoundedAt], bool]
) -> tuple[ValueName, ...]:
    """`member` and the values that can stand in for it: neighbours, and theirs, that do the same harm in its place."""
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
    """Where `value` is rounded under a plan: everywhere when its producer rounds, else where its consumers do."""
    if value.producer and value.producer not in plan.fp32:
        return _places(value)
    return [(value.tensor, name) for name in value.consumers if name not in plan.fp32]


def _places(value: Value) -> Places:
    return [(value.tensor, name) for name in (*value.consumers, *value.others)]


def _first_groups(every: list[Value]) -> list[list[Value]]:
    """Values of small models are measured one at a time, those of large ones in groups at first."""
    size = 1 if len(every) <= tuning.MOST_PASSES // 4 else 16
    return [every[start : start + size] for start in range(0, len(every), size)][::-1]


class _Probe:
    """One sample: its tensors in FP32, and the elements of its outputs that are watched."""

    def __init__(
        self, emulator: Emulator, feed: Mapping[TensorName, Array], tolerance: Tolerance, store: ArrayStore
    ) -> None:
        self._emulator = emulator
        self._reference = emulator.all_values(feed, store)
        self._watched: dict[TensorName, tuple[Array, Array, Array]] = {}
        for name in emulator.graph.outputs:
            if name not in self._reference:  # a constant: no rounding changes it
                continue
            reference = np.asarray(self._reference[name])
            if reference.dtype.kind == "f":
                self._watched[name] = _watch(name, reference.reshape(-1), tolerance)

    def errors(self, places: Iterable[tuple[TensorName, LayerName]]) -> Array:
        """Signed error ratios at the watched elements, shape (elements,), float64, with these roundings only."""
        try:
            changed = self._emulator.inject(places, self._reference)
        except EmulationError:  # a rounded index that points outside, say: as wrong as can be
            return np.full(max(1, sum(index.size for index, _, _ in self._watched.values())), tuning.ERROR_CAP)
        parts = []
        for name, (index, reference, allowed) in self._watched.items():
            if name not in changed:
                parts.append(np.zeros(index.size))
                continue
            with np.errstate(all="ignore"):
                error = (changed[name].reshape(-1)[index].astype(np.float64) - reference) / allowed
            parts.append(
                np.clip(
                    np.nan_to_num(error, nan=tuning.ERROR_CAP, posinf=tuning.ERROR_CAP, neginf=-tuning.ERROR_CAP),
                    -tuning.ERROR_CAP,
                    tuning.ERROR_CAP,
                )
            )
        return np.concatenate(parts) if parts else np.zeros(1)


def _watch(name: TensorName, reference: Array, tolerance: Tolerance) -> tuple[Array, Array, Array]:
    """Indices of watched elements (evenly spread, and the largest), their reference, and the error allowed of each."""
    if reference.size <= tuning.WATCHED_ELEMENTS:
        index = np.arange(reference.size)
    else:
        even = np.linspace(0, reference.size - 1, tuning.WATCHED_ELEMENTS // 2).astype(np.int64)
        largest = np.argpartition(-np.abs(reference), tuning.WATCHED_ELEMENTS // 2)[: tuning.WATCHED_ELEMENTS // 2]
        index = np.unique(np.concatenate([even, largest]))
    atol, rtol = tolerance.of(name)
    picked = reference[index].astype(np.float64)
    allowed = np.full(picked.shape, atol)
    if tolerance.stat is Statistic.ELEMWISE or atol == 0:
        allowed = np.maximum(atol, rtol * np.abs(picked))
    return index, picked, np.maximum(allowed, np.finfo(np.float64).tiny)
