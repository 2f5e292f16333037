"""Models with a planted hazard whose smallest sets of pins are known: `locate` finds one of them, in few trials.

What is known is proven first, by files that are judged without the tool: the stated sets pass with room,
and nothing smaller does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import median

import pytest
import support.zoo_cases  # noqa: F401 - registers the cases
from support.zoo import CASES
from support.zoo_judge import Judged, trace

from trt_helper.search import tuning
from trt_helper.values import Plan, Role, Verdict

ROOM = 5.0  # factor between the tolerance and the error, of what passes and of what does not
MOST_RATIO = 2.0  # trials / (pins + 2): two controls, and one proof a pin
MEDIAN_RATIO = 1.5
MOST_TRIALS_CLEAN = 3

Judge = Callable[[str], Judged]


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judge]:
    """The case of that name, written, read and located once."""
    made: dict[str, Judged] = {}

    def of(name: str) -> Judged:
        if name not in made:
            made[name] = Judged(CASES[name], tmp_path_factory.mktemp(name))
        return made[name]

    yield of
    made.clear()


# -------------------------------------------------------------------------------- what is known is true


@pytest.mark.parametrize("name", CASES)
def test_every_stated_set_passes_with_room_on_all_samples(judged: Judge, name: str):
    case = judged(name)
    allowed = case.case.atol / ROOM
    for pins in case.case.culprits:
        assert pins <= set(case.graph.candidates)
        assert case.error(pins) <= allowed
        assert case.error(pins, held_out=True) <= allowed


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.k])
def test_a_stated_set_less_any_layer_fails_by_far(judged: Judge, name: str):
    case = judged(name)
    far = case.case.atol * ROOM
    assert case.error(()) >= far
    for pins in case.case.culprits:
        for layer in pins:
            assert case.error(pins - {layer}) >= far, layer


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.hazards])
def test_no_smaller_set_passes_and_no_other_of_that_size(judged: Judge, name: str):
    """Each hazard needs as many of its own layers as stated, also with every other layer in FP32.

    The hazards are disjoint, so no plan with fewer pins than their sum passes, and one with as many has
    nothing to spare for layers outside.
    """
    case = judged(name)
    allowed, far = case.case.atol / ROOM, case.case.atol * ROOM
    for hazard in case.case.hazards:
        for size in range(hazard.k + 1):
            for kept, error in case.subsets(hazard, size):
                if kept in hazard.smallest_sets:
                    assert error <= allowed, sorted(kept)
                else:
                    assert error >= far, sorted(kept)


# --------------------------------------------------------------------------------- what locate makes of it


@pytest.mark.parametrize("name", CASES)
def test_the_plan_passes_on_samples_seen_and_unseen(judged: Judge, name: str):
    case = judged(name)
    assert case.located.after.verdict is Verdict.PASS
    assert case.error(case.located.plan.fp32) <= case.case.atol
    assert case.error(case.located.plan.fp32, held_out=True) <= case.case.atol


@pytest.mark.parametrize("name", CASES)
def test_the_plan_is_one_of_the_smallest(judged: Judge, name: str):
    case = judged(name)
    assert len(case.located.plan) == case.case.k, trace(case.located)
    assert case.located.plan.fp32 in case.case.culprits


@pytest.mark.parametrize("name", CASES)
def test_it_is_found_in_few_trials(judged: Judge, name: str):
    case = judged(name)
    assert ratio(case) <= MOST_RATIO, trace(case.located)


@pytest.mark.parametrize("name", CASES)
def test_what_is_looked_up_between_trials_is_no_more_than_stated(judged: Judge, name: str):
    """60 forward passes on one sample, 120 on several, whatever the number of layers; the last look may go over it."""
    located = judged(name).located
    samples = len(located.samples)
    around = samples * (len(located.trials) + 5)  # the trials, references, shapes and the errors of every layer
    allowed = tuning.MOST_PASSES_OF_A_SEARCH * min(samples, 2) + tuning.MOST_PASSES_LATER
    assert located.inferences - around <= allowed


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.k])
def test_where_nothing_is_needed_the_controls_are_all(judged: Judge, name: str):
    located = judged(name).located
    assert located.plan == Plan()
    assert len(located.trials) <= MOST_TRIALS_CLEAN


def test_half_of_the_searches_try_little_more_than_the_proof(judged: Judge):
    assert median(ratio(judged(name)) for name in CASES) <= MEDIAN_RATIO


def test_a_loop_stays_fp32_as_a_whole(judged: Judge):
    case = judged("inside_loop")
    assert "Loop" in [layer.op for layer in case.graph.layers if layer.role is Role.FIXED]
    assert case.error(()) <= case.case.atol / ROOM


def ratio(case: Judged) -> float:
    return len(case.located.trials) / (case.case.k + 2)
