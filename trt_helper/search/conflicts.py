"""Finds the few roundings that explain why a plan is so much worse than predicted."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from trt_helper.emulator.emulator import Emulator
from trt_helper.search import tuning
from trt_helper.search.error_model import ValueName
from trt_helper.search.probe import Probe
from trt_helper.search.rounded_values import Places, Value, rounded_values
from trt_helper.values import Trial

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Roundings:
    """Roundings that do harm together, and none when any one party does not round.

    Attributes:
        parties: the values of each party; each value of a party alone does that party's share.
        places: where one value of each party is read rounded.
    """

    parties: tuple[tuple[ValueName, ...], ...]
    places: tuple[tuple[str, str], ...]


def conflict(
    emulator: Emulator,
    probe: Probe,
    failed: Trial,
    expected: float,
    most_passes: float,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Roundings | None:
    """Find few roundings that explain why a plan is so much worse than predicted: one, or several that do it together.

    All roundings of the plan are put into the FP32 model and taken out by halves as long as the harm stays
    (QuickXplain, Junker 2004): some 2 k log2(n / k) passes for k of n.

    Args:
        emulator: of the graph that is searched.
        probe: of the sample that decided the trial. `probe.passes` says what it took.
        failed: the trial.
        expected: its predicted error ratio.
        most_passes: the largest number of forward passes.
        on_progress: called before each forward pass with the number of passes, and the largest number.

    Returns:
        None where all roundings together do no such harm, or where it would take more passes.
    """
    active = [(value, places) for value in rounded_values(emulator) if (places := value.places_under(failed.plan))]
    harm = math.sqrt(max(expected, 1.0) * min(failed.error_ratio, tuning.ERROR_CAP))
    first = probe.passes

    def spent() -> bool:
        return probe.passes - first >= most_passes

    def harmful(group: Sequence[RoundedAt]) -> bool:
        if spent():
            return False
        on_progress(int(probe.passes - first), int(most_passes))
        return float(np.abs(probe.errors(place for _, places in group for place in places)).max(initial=0.0)) > harm

    members = _smallest_group(active, harmful) if active and harmful(active) else []
    if spent() or not members:
        return None
    parties = []
    for member in members:
        others = [other for other in members if other is not member]
        parties.append(_party(member, active, lambda value, others=others: harmful([*others, value])))  # type: ignore[misc]
    return Roundings(tuple(parties), tuple(place for _, places in members for place in places))


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
