"""Models that others made: whatever trt-helper says of them, it says it; none is met with a traceback.

`benchmarks/corpus.py` takes all of them through the same commands. Here is a sample.
"""

from __future__ import annotations

import random

import pytest
from support.command_line import own_folder
from support.corpus import commands, file_cases, node_cases, outcome, save

SEED, NODES, FILES = 7, 14, 5
TOO_LARGE = "light/"  # whole networks
# Models that ended with a traceback, or with the wrong exit status, once.
MENDED = ("node/matmul_1d_1d", "node/split_to_sequence_1", "simple/sequence_model5", "node/constant", "node/mvn")


@pytest.fixture(scope="module")
def cases():
    return {case.name: case for case in (*node_cases(), *file_cases())}


def _sample(cases, prefix, count):
    names = sorted(name for name in cases if name.startswith(prefix) and not name.startswith(TOO_LARGE))
    return random.Random(SEED).sample(names, count)


def _run(case, folder):
    save(case, folder)
    return [outcome(words, folder) for words in commands(case, engine=False)]


@pytest.mark.parametrize(
    ("prefix", "count"), [("node/", NODES), ("pytorch-", FILES), ("simple/", FILES)], ids=["node", "pytorch", "simple"]
)
def test_no_command_ends_with_a_traceback(cases, prefix, count, tmp_path, monkeypatch):
    own_folder(tmp_path, monkeypatch)
    wrong = []
    for index, name in enumerate(name for name in _sample(cases, prefix, count)):
        folder = tmp_path / "work" / str(index)
        folder.mkdir()
        wrong += [(name, one.command, one.traceback) for one in _run(cases[name], folder) if one.is_bug]
    assert wrong == []


def test_the_sample_meets_what_is_judged_and_what_is_refused(cases, tmp_path, monkeypatch):
    own_folder(tmp_path, monkeypatch)
    seen = set()
    for index, name in enumerate(["node/softmax_example", "node/quantizelinear", "simple/sequence_model1"]):
        folder = tmp_path / "work" / str(index)
        folder.mkdir()
        seen |= {one.status for one in _run(cases[name], folder)}
    assert seen == {0, 3}


@pytest.mark.parametrize("name", MENDED)
def test_a_model_that_showed_a_bug_is_met_without_a_traceback(cases, name, tmp_path, monkeypatch):
    own_folder(tmp_path, monkeypatch)
    assert not any(one.is_bug for one in _run(cases[name], tmp_path / "work"))
