"""Measures the rounding effects: what each single rounding does to the outputs, for the price of some forward passes.

1. By first order. Every layer is run once more for each value that it reads, with that value rounded. So what happens
   within a layer is exact: overflow, saturation, a comparison that flips. What becomes of the difference downstream is
   its product with the gradients of the watched figures (`emulator.gradients`).
2. By measuring. First order is not to be trusted where the difference is large or not finite, where an opaque layer
   lies behind, or where it does not explain what all such roundings do together. These are put into the FP32 model in
   groups. A group that is not explained is split, the one with the largest error first, until the passes are spent.

These are forward passes and not trials: no plan rounds one value and nothing else.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, count

import numpy as np

from trt_helper.emulator.emulator import Emulator
from trt_helper.emulator.gradients import BackwardStep, sweep_back
from trt_helper.emulator.kernels import EmulationError
from trt_helper.search import tuning
from trt_helper.search.error_model import RoundingEffect, ValueName
from trt_helper.search.probe import Probe
from trt_helper.search.rounded_values import Value, rounded_values
from trt_helper.values import Array, LayerName, TensorName

Progress = Callable[[int, int], None]


@dataclass(eq=False, slots=True)
class _Estimate:
    """What first order says of one value.

    Attributes:
        parts: errors by consumer, shape (watched figures,).
        sure: whether first order is to be trusted.
        measured: the errors that were measured in its place, or its share of those of a group.
        per_consumer: the same for each consumer alone; empty where it was not measured.
    """

    parts: dict[LayerName, Array] = field(default_factory=dict)
    sure: bool = True
    measured: Array | None = None
    per_consumer: tuple[Array, ...] = ()


def rounding_effects(
    emulator: Emulator,
    probe: Probe,
    most_passes: float,
    suspects: Collection[ValueName] = (),
    on_progress: Progress = lambda _done, _total: None,
) -> list[RoundingEffect]:
    """Measure what every rounding does to the outputs on one sample.

    Args:
        emulator: of the graph that is searched.
        probe: the sample.
        most_passes: the largest number of forward passes; first order is always done.
        suspects: values that did harm on another sample, and that are not in groups here.
        on_progress: called with the number of forward passes so far, and the largest number.

    Returns:
        One effect for each value that the empty plan rounds. `probe.passes` says what it took.
    """
    values = rounded_values(emulator)
    estimates = _first_order(emulator, probe, values, most_passes, on_progress)
    _measure(probe, estimates, most_passes, suspects, on_progress)
    effects = {value: _effect(value, estimate, probe.size) for value, estimate in estimates.items()}
    for one, other in _opposites(emulator, effects):
        if _cancel(one, other, effects, estimates, probe, most_passes):
            effects[other] = replace(effects[other], for_all_consumers=-effects[one].for_all_consumers)
    return list(effects.values())


# ------------------------------------------------------------------------------------------------------ first order


def _first_order(
    emulator: Emulator, probe: Probe, values: Sequence[Value], most_passes: float, on_progress: Progress
) -> dict[Value, _Estimate]:
    estimates = {value: _Estimate() for value in values}
    read_by: dict[LayerName, list[Value]] = {}
    for value in values:
        for _, consumer in value.places:
            read_by.setdefault(consumer, []).append(value)
    for value in read_by.get("", ()):
        changed = emulator.inject_into_layer(value.tensor, "", probe.reference)
        estimates[value].parts[""] = probe.errors_of(changed)[:-1]
    share = 1.0 / max(len(emulator.graph.layers), 1)
    for step in sweep_back(emulator.layers_backwards(probe.reference), probe.seeds()):
        name = step.layer.node.name or ""
        probe.passes += share * (probe.size + len(read_by.get(name, ())))
        on_progress(min(int(probe.passes), int(most_passes)), int(most_passes))
        for value in read_by.get(name, ()):
            _through(emulator, probe, step, value, estimates[value])
    return estimates


def _through(emulator: Emulator, probe: Probe, step: BackwardStep, value: Value, estimate: _Estimate) -> None:
    """What rounding a value for the layer of `step` alone does."""
    name = step.layer.node.name or ""
    try:
        results = emulator.inject_into_layer(value.tensor, name, probe.reference)
    except EmulationError:
        estimate.sure = False
        return
    part = np.zeros(probe.size)
    for output, result in results.items():
        reference = probe.reference[output]
        if result.shape != reference.shape or result.dtype.kind != "f":
            estimate.sure &= bool(result.shape == reference.shape and np.array_equal(result, reference))
            continue
        with np.errstate(all="ignore"):
            difference = np.asarray(result - reference)
        largest = float(np.abs(difference).max(initial=0.0))
        if not np.isfinite(largest):
            difference[(result == reference) | (np.isnan(result) & np.isnan(reference))] = 0  # inf - inf
            largest = float(np.abs(difference).max(initial=0.0))
        if largest == 0:
            continue
        if not step.known or not largest <= tuning.FIRST_ORDER * float(np.abs(reference).max(initial=0.0)):
            estimate.sure = False
        if output in step.gradients and np.isfinite(largest):
            part += step.gradients[output].reshape(probe.size, -1) @ difference.reshape(-1).astype(np.float32)
    estimate.parts[name] = np.clip(np.nan_to_num(part), -tuning.ERROR_CAP, tuning.ERROR_CAP)


def _sum(estimate: _Estimate, size: int) -> Array:
    total: Array = np.sum([np.zeros(size), *estimate.parts.values()], axis=0)
    return total


# -------------------------------------------------------------------------------------------------------- measuring


def _measure(
    probe: Probe,
    estimates: Mapping[Value, _Estimate],
    most_passes: float,
    suspects: Collection[ValueName],
    on_progress: Progress,
) -> None:
    """Measure groups of values, and split those that first order does not explain, while there are passes left."""
    trusted = [value for value, estimate in estimates.items() if estimate.sure]
    others = [value for value, estimate in estimates.items() if not estimate.sure]
    few = len(others) <= tuning.FEW_UNSURE
    alone = [value for value in others if few or value.name in suspects]
    unknown = [value for value in others if value not in alone]
    number = count()
    queue: list[tuple[float, int, list[Value], Array]] = []

    def look(group: list[Value]) -> None:
        errors = probe.errors(place for value in group for place in value.places)
        on_progress(min(int(probe.passes), int(most_passes)), int(most_passes))
        size = float(np.abs(errors).max(initial=0.0))
        if not _explained(group, size, estimates, probe.size):
            heapq.heappush(queue, (-size, next(number), group, errors))
        elif size <= tuning.NEGLIGIBLE / 4:
            _share(group, errors, estimates)

    for group in (trusted, unknown, *([value] for value in alone)):
        if group:
            look(group)
    while queue:
        size, _, group, errors = heapq.heappop(queue)
        if len(group) == 1:
            _keep(group[0], errors, estimates, probe, alone=-size > 1 and probe.passes < most_passes)
        elif probe.passes < most_passes:
            middle = len(group) // 2
            look(group[:middle])
            look(group[middle:])
        else:
            _share(group, errors, estimates)


def _explained(group: Sequence[Value], measured: float, estimates: Mapping[Value, _Estimate], size: int) -> bool:
    """Whether first order predicts no less than was measured, within a factor, or there is nothing to explain."""
    if measured <= tuning.NEGLIGIBLE / 4:
        return True
    sums = np.array([_sum(estimates[value], size) for value in group])
    together, apart = np.abs(sums.sum(axis=0)).max(initial=0.0), np.sqrt((sums**2).sum(axis=0)).max(initial=0.0)
    return bool(measured <= tuning.EXPLAINED * max(together, apart)) and measured < tuning.ERROR_CAP


def _share(group: Sequence[Value], errors: Array, estimates: Mapping[Value, _Estimate]) -> None:
    """Give each value its share of the errors of a group: as first order has it, or as independent errors have it."""
    size = len(errors) - 1
    sums = {value: _with_largest(_sum(estimates[value], size)) for value in group}
    predicted = float(np.sqrt(np.sum([one**2 for one in sums.values()], axis=0)).max(initial=0.0))
    measured = float(np.abs(errors).max(initial=0.0))
    sure = all(estimates[value].sure for value in group)
    for value in group:
        estimates[value].measured = (
            sums[value] * (measured / predicted) if sure and predicted else errors / np.sqrt(len(group))
        )


def _keep(value: Value, errors: Array, estimates: Mapping[Value, _Estimate], probe: Probe, *, alone: bool) -> None:
    """Keep the measured errors of one value, and perhaps measure its consumers each alone."""
    estimates[value].measured = errors
    if alone and len(value.consumers) > 1:
        places: list[tuple[TensorName, LayerName]] = [(value.tensor, consumer) for consumer in value.consumers]
        estimates[value].per_consumer = tuple(probe.errors([place]) for place in places)


def _effect(value: Value, estimate: _Estimate, size: int) -> RoundingEffect:
    producers = frozenset({value.producer} - {""})
    if estimate.measured is not None:
        errors, per_consumer = estimate.measured, estimate.per_consumer
    else:
        errors = _with_largest(_sum(estimate, size))
        nothing = np.zeros(size)
        several = len(value.consumers) > 1
        per_consumer = tuple(
            _with_largest(estimate.parts.get(consumer, nothing)) for consumer in value.consumers if several
        )
    return RoundingEffect(producers, value.consumers, errors, per_consumer, value.name)


def _with_largest(errors: Array) -> Array:
    return np.append(errors, np.abs(errors).max(initial=0.0))


# -------------------------------------------------------------------------------------------------------- opposites


def _opposites(emulator: Emulator, effects: Mapping[Value, RoundingEffect]) -> list[tuple[Value, Value]]:
    """Values that meet in a layer and whose roundings may cancel there, as on the two sides of a difference."""
    children = {layer.name: layer.children for layer in emulator.graph.layers}
    met: dict[LayerName, list[Value]] = {}
    for value, rounding in effects.items():
        if tuning.NEGLIGIBLE < np.abs(rounding.for_all_consumers).max(initial=0.0) < tuning.ERROR_CAP:
            for name in value.consumers or children[value.producer]:
                met.setdefault(name, []).append(value)
    pairs = dict.fromkeys(pair for values in met.values() for pair in combinations(values, 2))
    errors = {value: rounding.for_all_consumers[:-1] for value, rounding in effects.items()}
    return [(one, other) for one, other in pairs if _against(errors[one], errors[other]) < tuning.OPPOSED]


def _against(a: Array, b: Array) -> float:
    """Cosine of the angle between two errors."""
    return float(a @ b / max(float(np.sqrt((a @ a) * (b @ b))), np.finfo(np.float64).tiny))


def _cancel(
    one: Value,
    other: Value,
    effects: Mapping[Value, RoundingEffect],
    estimates: Mapping[Value, _Estimate],
    probe: Probe,
    most_passes: float,
) -> bool:
    """Whether two errors leave next to nothing: by first order where that is to be trusted, else measured."""
    if all(estimates[value].measured is None for value in (one, other)):
        left = effects[one].for_all_consumers[:-1] + effects[other].for_all_consumers[:-1]
    elif probe.passes < most_passes:
        left = probe.errors([*one.places, *other.places])
    else:
        return False
    return bool(np.abs(left).max(initial=0.0) <= tuning.CANCELLED * np.abs(effects[one].for_all_consumers).max())
