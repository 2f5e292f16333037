"""A trial goes on from what the last one on the same sample left, and answers as one from the start does."""

from __future__ import annotations

import random

import numpy as np
import pytest
from models import Case, normal, parsed
from subjects import MODELS, put

from trt_helper import emulate
from trt_helper.emulate import Emulator
from trt_helper.kernels import Kernel
from trt_helper.precision import assign
from trt_helper.prefix import Prefixes
from trt_helper.values import Plan

LAYERS = 64


@pytest.fixture
def chain(tmp_path):
    body = "\n".join(f"h{i + 1} = Add(h{i}, w)" for i in range(LAYERS))
    text = f"agraph (float[4] x) => (float[4] y) {{ h0 = Identity(x)\n {body}\n y = Mul(h{LAYERS}, w) }}"
    return put(Case("chain", parsed(text, w=normal(4)), {"x": normal(4, seed=1)}), tmp_path)


@pytest.fixture
def computed(monkeypatch):
    """How many kernels have run."""
    runs = []
    run = Kernel.run
    monkeypatch.setattr(Kernel, "run", lambda self, feeds: runs.append(self) or run(self, feeds))
    return runs


@pytest.mark.parametrize("name", MODELS)
def test_any_order_of_plans_gives_the_answers_of_fresh_emulators(subject, name):
    subject = subject(name)
    generator = random.Random(0)
    names = subject.graph.candidates
    for _ in range(8):
        pins = generator.sample(names, generator.randint(0, len(names)))
        bf16 = generator.sample(sorted(set(names) - set(pins)), generator.randint(0, len(names) - len(pins)))
        plan = Plan(frozenset(pins), frozenset(bf16))
        found = subject.emulator.run(plan, subject.feed)
        expected = Emulator(subject.graph).run(plan, subject.feed)
        for output, array in expected.items():
            np.testing.assert_array_equal(found[output], array, err_msg=f"{output} under {plan}")


@pytest.mark.parametrize("place", [0, 8, 17, 40, LAYERS - 1])
def test_only_what_lies_behind_the_change_is_computed_again(chain, computed, place):
    names = chain.graph.candidates
    chain.emulator.run(Plan(), chain.feed)
    computed.clear()
    chain.emulator.run(Plan.of([names[place]]), chain.feed)
    behind = len(chain.graph.layers) - [layer.name for layer in chain.graph.layers].index(names[place])
    assert behind <= len(computed) <= behind + 4


def test_another_sample_starts_at_the_beginning(chain, computed):
    chain.emulator.run(Plan(), chain.feed)
    computed.clear()
    other = {"x": chain.feed["x"] + 1}
    found = chain.emulator.run(Plan(), other)
    assert len(computed) == len(chain.graph.layers)
    assert not np.array_equal(found["y"], chain.emulator.run(Plan(), chain.feed)["y"])


def test_a_plan_is_spread_over_the_layers_once_for_all_samples(chain, monkeypatch):
    plans = []
    monkeypatch.setattr(emulate, "assign", lambda graph, plan: plans.append(plan) or assign(graph, plan))
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


def test_no_more_than_the_limit_is_kept():
    array = np.zeros(1000, np.float32)
    prefixes = Prefixes(limit=4 * array.nbytes)  # a way holds its feed and what it left
    feeds = [{"x": array + index} for index in range(3)]
    for feed in feeds:
        way = prefixes.way(feed, "ab")
        way.pass_by(1, {"h": array + 1})
        prefixes.keep(way)
    assert [prefixes.way(feed, "ab").start()[0] for feed in feeds] == [0, 1, 1]
    way = prefixes.way(feeds[2], "ab")
    way.pass_by(0, {"h": array})
    assert way.size == 2 * array.nbytes  # what the last trial left there, too
    way = prefixes.way({"x": array}, "ab")
    way.pass_by(1, {"h": np.zeros(4000, np.float32)})
    assert way.size == array.nbytes


def test_a_sample_that_is_tried_again_and_again_is_counted_once():
    feed = {"x": np.zeros(1000, np.float32)}
    prefixes = Prefixes(limit=2 * feed["x"].nbytes)
    for _ in range(5):
        way = prefixes.way(feed, "ab")
        way.pass_by(1, {"h": feed["x"] + 1})
        prefixes.keep(way)
    assert prefixes.way(feed, "ab").start()[0] == 1


def test_one_array_under_many_names_and_places_counts_once():
    array = np.zeros(1000, np.float32)
    way = Prefixes().way({"x": array}, "abc")
    way.pass_by(1, {"x": array, "g": array})
    way.pass_by(2, {"h": array})
    assert way.size == array.nbytes
