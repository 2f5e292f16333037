"""The journal of a search: what was interrupted goes on where it was, and comes to the same end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from random import Random

import numpy as np
import pytest
from support.command_line import full_disk
from support.judging import FunctionJudge
from support.overflowing_models import overflowing_norm

from trt_helper.errors import NoVerdictError, OutputError
from trt_helper.inputs.sample import digest
from trt_helper.search.journal import ATTEMPTS, Journal
from trt_helper.search.strategy import Prediction, Stop, Try, drive, smallest
from trt_helper.values import Plan, TensorError, Trial, Verdict

LAYERS = [f"n{index}" for index in range(20)]
CULPRITS = frozenset({"n3", "n11", "n12"})
SEARCH = {"model": "abc", "atol": 0.01}


def judge(plan: Plan) -> Trial:
    missing = len(CULPRITS - plan.fp32)
    error = TensorError("y", 3.0 * missing, 1.0, 0.5, 0.1, 0.1, 0.1, (0, 2), missing, 0, 8, 1.0)
    return Trial(plan, Verdict.FAIL if missing else Verdict.PASS, (error,), 3.0 * missing, 1)


def prediction(_trial: Trial) -> Prediction:
    order = Random(5).sample(LAYERS, len(LAYERS))
    errors = [9.0] * 12 + [0.1] * 9
    return Prediction(order, errors, lambda plan: errors[len(plan)], lambda plan: dict.fromkeys(sorted(plan.fp32), 1.0))


def search(journal: Journal, oracle=judge) -> tuple[Stop, list[Trial]]:
    trials = []
    with journal:
        for event in drive(smallest(LAYERS, prediction), FunctionJudge(oracle, journal)):
            if isinstance(event, Trial):
                trials.append(event)
            elif isinstance(event, Stop):
                return event, trials
    raise AssertionError("no end")


def test_a_journal_gives_back_every_trial_as_it_was(tmp_path):
    path = tmp_path / "plan.yaml.journal"
    stop, trials = search(Journal(path, SEARCH))

    def never(plan: Plan) -> Trial:
        raise AssertionError(f"{plan} was evaluated again")

    again, remembered = search(Journal(path, SEARCH), never)
    assert again == stop
    assert remembered == trials


@pytest.mark.parametrize("after", range(12))
def test_an_interrupt_loses_the_trial_under_way_and_no_other(tmp_path, after):
    path = tmp_path / "plan.yaml.journal"
    expected, trials = search(Journal(tmp_path / "whole", SEARCH))
    requested: list[Plan] = []

    def interrupted(plan: Plan) -> Trial:
        if len(requested) == after:
            raise KeyboardInterrupt
        requested.append(plan)
        return judge(plan)

    with pytest.raises(KeyboardInterrupt):
        search(Journal(path, SEARCH), interrupted)
    rest: list[Plan] = []

    def counted(plan: Plan) -> Trial:
        rest.append(plan)
        return judge(plan)

    stop, _ = search(Journal(path, SEARCH), counted)
    assert stop == expected
    assert [*requested, *rest] == [trial.plan for trial in trials]


def test_a_journal_cut_at_any_byte_still_leads_to_the_same_answer(tmp_path):
    whole = tmp_path / "whole"
    expected, _ = search(Journal(whole, SEARCH))
    data = whole.read_bytes()
    for cut in Random(1).sample(range(len(data)), 40):
        path = tmp_path / f"cut{cut}"
        path.write_bytes(data[:cut])
        stop, _ = search(Journal(path, SEARCH))
        assert stop == expected, cut
        assert Journal(path, SEARCH).__enter__().verdicts > 0


def test_another_search_begins_the_journal_afresh(tmp_path):
    path = tmp_path / "journal"
    search(Journal(path, SEARCH))
    with Journal(path, {**SEARCH, "atol": 0.02}) as journal:
        assert journal.verdicts == 0


def killed_in_the_middle(path, plan):
    """What a process leaves that was killed in the middle of a trial: the beginning alone."""
    with path.open("a") as file:
        file.write(json.dumps({"begin": [sorted(plan.fp32), sorted(plan.bf16)], "on": "all"}) + "\n")


@pytest.mark.parametrize("at", range(0, 12, 3))
@pytest.mark.parametrize("kills", [1, 2])
def test_a_trial_that_was_killed_is_tried_again_and_the_answer_stays(tmp_path, at, kills):
    """Two kills in one trial once made a verdict of it, and nine pins of eight."""
    path = tmp_path / "journal"
    expected, trials = search(Journal(tmp_path / "whole", SEARCH))
    at = min(at, len(trials) - 1)

    def stopped_there(plan: Plan) -> Trial:
        return _stopped(plan) if plan == trials[at].plan else judge(plan)

    with pytest.raises(KeyboardInterrupt):
        search(Journal(path, SEARCH), stopped_there)
    for _ in range(kills):
        killed_in_the_middle(path, trials[at].plan)
    stop, again = search(Journal(path, SEARCH))
    assert stop == expected
    assert again == trials


def test_a_trial_that_always_ends_its_process_stops_the_search_with_its_reason_and_can_be_tried_again(tmp_path):
    path = tmp_path / "journal"
    plan = Plan.of(["n1"])
    with Journal(path, SEARCH):
        pass
    for _ in range(ATTEMPTS):
        killed_in_the_middle(path, plan)
    with Journal(path, SEARCH) as journal, pytest.raises(NoVerdictError, match="1 pins has no verdict: 3 times"):
        FunctionJudge(judge, journal).judge(Try(plan, ""))
    with Journal(path, SEARCH) as journal:
        assert FunctionJudge(judge, journal).judge(Try(plan, "")).verdict is Verdict.FAIL


def test_a_disk_that_fills_while_the_journal_is_written_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "journal"
    with full_disk(400), pytest.raises(OutputError, match="journal cannot be written"):
        search(Journal(path, SEARCH))


def test_two_searches_cannot_write_one_journal(tmp_path):
    path = tmp_path / "journal"
    with Journal(path, SEARCH), pytest.raises(OutputError, match="another search"), Journal(path, SEARCH):
        pass
    with Journal(path, SEARCH):
        pass


def test_a_trial_that_was_interrupted_twice_by_its_user_is_tried_again(tmp_path):
    path = tmp_path / "journal"
    for _ in range(2):
        with Journal(path, SEARCH) as journal, pytest.raises(KeyboardInterrupt):
            FunctionJudge(_stopped, journal).judge(Try(Plan.of(["n1"]), ""))
    with Journal(path, SEARCH) as journal:
        assert FunctionJudge(judge, journal).judge(Try(Plan.of(["n1"]), "")).verdict is Verdict.FAIL


def _stopped(_plan: Plan) -> Trial:
    raise KeyboardInterrupt


def test_samples_are_told_apart_by_every_byte():
    feed = {"x": np.zeros((2, 2), np.float32)}
    other = {"x": np.zeros((2, 2), np.float32)}
    other["x"][1, 1] = 1e-30
    assert digest([feed]) == digest([{"x": feed["x"].copy()}])
    assert len({digest([feed]), digest([other]), digest([feed, feed]), digest([{"y": feed["x"]}])}) == 4


def test_a_journal_that_cannot_be_written_is_an_output_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"), Journal(tmp_path / "file" / "journal", SEARCH):
        pass


def test_five_kills_at_random_moments_change_nothing_in_the_answer(tmp_path):
    model = tmp_path / "model.onnx"
    overflowing_norm(model)
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(1).standard_normal((64, 256)).astype(np.float32))

    def command(out: str) -> list[str]:
        options = ["--inputs", str(tmp_path / "x.npz"), "--atol", "0.05", "--rtol", "0", "-o", str(tmp_path / out)]
        return [sys.executable, "-m", "trt_helper", "locate", str(model), *options]

    started = time.monotonic()
    subprocess.run(command("whole.yaml"), check=True, capture_output=True)
    whole = time.monotonic() - started
    random = Random(os.getpid())
    for _ in range(5):
        process = subprocess.Popen(command("killed.yaml"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(random.uniform(0.3, 0.95) * whole)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
    subprocess.run(command("killed.yaml"), check=True, capture_output=True)
    plan = (tmp_path / "whole.yaml").read_text().split("evidence:")[0]
    assert "- square" in plan
    assert (tmp_path / "killed.yaml").read_text().split("evidence:")[0] == plan
    assert not list(tmp_path.glob("*.journal"))
