"""A trial that resumes from a checkpoint gives the same answers as one that computes every layer."""

from __future__ import annotations

import random
import weakref

import numpy as np
import pytest
from support.model_cases import MODELS, save_case
from support.models import Case, normal, parsed

from trt_helper.emulator.checkpoints import CheckpointStore
from trt_helper.emulator.emulator import Emulator
from trt_helper.emulator.kernels import Kernel
from trt_helper.onnx_model.precision import assign
from trt_helper.values import Plan

LAYERS = 64


@pytest.fixture
def chain(tmp_path):
    body = "\n".join(f"h{i + 1} = Add(h{i}, w)" for i in range(LAYERS))
    text = f"agraph (float[4] x) => (float[4] y) {{ h0 = Identity(x)\n {body}\n y = Mul(h{LAYERS}, w) }}"
    return save_case(Case("chain", parsed(text, w=normal(4)), {"x": normal(4, seed=1)}), tmp_path)


@pytest.fixture
def computed(monkeypatch):
    """How many kernels have run."""
    runs = []
    run = Kernel.run
    monkeypatch.setattr(Kernel, "run", lambda self, feeds: runs.append(self) or run(self, feeds))
    return runs


@pytest.mark.parametrize("name", MODELS)
def test_any_order_of_plans_gives_the_answers_of_fresh_emulators(model_case, name):
    case = model_case(name)
    generator = random.Random(0)
    names = case.graph.candidates
    for _ in range(8):
        pins = generator.sample(names, generator.randint(0, len(names)))
        bf16 = generator.sample(sorted(set(names) - set(pins)), generator.randint(0, len(names) - len(pins)))
        plan = Plan(frozenset(pins), frozenset(bf16))
        found = case.emulator.run(plan, case.feed)
        expected = Emulator(case.graph).run(plan, case.feed)
        for output, array in expected.items():
            np.testing.assert_array_equal(found[output], array, err_msg=f"{output} under {plan}")


@pytest.mark.parametrize("index", [0, 8, 17, 40, LAYERS - 1])
def test_only_the_layers_after_the_change_are_computed_again(chain, computed, index):
    names = chain.graph.candidates
    chain.emulator.run(Plan(), chain.feed)
    computed.clear()
    chain.emulator.run(Plan.of([names[index]]), chain.feed)
    after = len(chain.graph.layers) - [layer.name for layer in chain.graph.layers].index(names[index])
    assert after <= len(computed) <= after + 4


def test_another_sample_starts_at_the_beginning(chain, computed):
    chain.emulator.run(Plan(), chain.feed)
    computed.clear()
    other = {"x": chain.feed["x"] + 1}
    found = chain.emulator.run(Plan(), other)
    assert len(computed) == len(chain.graph.layers)
    assert not np.array_equal(found["y"], chain.emulator.run(Plan(), chain.feed)["y"])


def test_the_precisions_of_a_plan_are_assigned_once_for_all_samples(chain, monkeypatch):
    plans = []
    monkeypatch.setattr(
        "trt_helper.emulator.emulator.assign", lambda graph, plan: plans.append(plan) or assign(graph, plan)
    )
    for plan in (Plan(), chain.graph.all_pinned()):
        for index in range(3):
            chain.emulator.run(plan, {"x": chain.feed["x"] + index})
    assert plans == [Plan(), chain.graph.all_pinned()]


def test_what_is_watched_is_computed(chain, computed):
    chain.emulator.run(Plan(), chain.feed)
    computed.clear()
    seen = []
    chain.emulator.run(Plan(), chain.feed, lambda layer, _exact, _half: seen.append(layer))
    assert len(computed) == len(chain.graph.layers)
    assert set(seen) >= set(chain.graph.candidates)


def first_layers(store, feed, keys="abcd"):
    """The layers that trials start at whose first 3, 2 and 1 keys are those of the last trial on `feed`."""
    return [store.begin(feed, keys[:same].ljust(len(keys), "-")).resume()[0] for same in (3, 2, 1)]


def kept(store, feed, *sizes, keys="abcd"):
    """The checkpoints of a finished trial, with one array of each size in elements alive before each layer."""
    checkpoints = store.begin(feed, keys)
    for index, size in enumerate(sizes, 1):
        checkpoints.save(index, {"h": np.zeros(size, np.float32)})
    store.keep(checkpoints)
    return checkpoints


def test_the_largest_checkpoint_is_removed_first():
    store, feed = CheckpointStore(limit=4 * 150), {"x": np.zeros(1000, np.float32)}
    checkpoints = kept(store, feed, 100, 60, 80)
    assert checkpoints.size == 4 * 140
    assert checkpoints.resume()[0] == 3
    assert first_layers(store, feed) == [3, 2, 0]
    assert kept(store, {"x": feed["x"] + 1}, 200).size == 0


def test_all_samples_share_the_limit():
    store, feeds = CheckpointStore(limit=4 * 300), [{"x": np.full(9, index, np.float32)} for index in range(3)]
    samples = [kept(store, feed, 60, 60, 30) for feed in feeds]
    assert [checkpoints.size for checkpoints in samples] == [4 * 90] * 3
    assert [first_layers(store, feed) for feed in feeds] == [[3, 2, 0]] * 3


def test_a_sample_without_checkpoints_is_not_kept_in_memory():
    store = CheckpointStore(limit=4 * 100)
    feed = {"x": np.zeros(9, np.float32)}
    array = weakref.ref(feed["x"])
    kept(store, feed, 90)
    del feed
    assert array() is not None
    for index in range(3):
        kept(store, {"x": np.full(9, index, np.float32)}, 90)
    assert array() is None


def test_a_sample_that_is_tried_again_and_again_is_counted_once():
    store, feed = CheckpointStore(limit=4 * 1500), {"x": np.zeros(1000, np.float32)}
    for _ in range(5):
        kept(store, feed, 1000)
    assert store.begin(feed, "abcd").resume()[0] == 1


def test_one_array_in_several_checkpoints_counts_once_and_the_feed_never():
    array, feed = np.zeros(1000, np.float32), {"x": np.ones(50, np.float32)}
    checkpoints = CheckpointStore().begin(feed, "abc")
    checkpoints.save(1, {"x": feed["x"], "g": array})
    checkpoints.save(2, {"h": array})
    assert checkpoints.size == array.nbytes
