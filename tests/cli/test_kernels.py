"""What kernels are taken to compute: `--kernels`, `--robust`, `--margin`, and what is said of the answer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from support.command_line import ok, run, save_input, saved
from support.onnx_parts import constant, model, node, value

from trt_helper.values import Verdict

pytestmark = pytest.mark.usefixtures("own_folder")


def mean_of_large():
    """Twice the mean of 300 values of 300: their sum, 90000, passes 65504 only where it is accumulated in half."""
    return saved(
        model(
            [
                node("ReduceMean", ["x"], ["m"], "mean", axes=[-1], keepdims=1),
                node("Mul", ["m", "two"], ["y"], "twice"),
            ],
            [value("x", ["b", 300])],
            [value("y", ["b", 1])],
            [constant("two", np.array(2, np.float32))],
        )
    ), save_input("x.npz", x=np.full((2, 300), 300, np.float32))


def tight_sum():
    """x + 1 of 2048.0 is 2048 in half: wrong by 1."""
    return saved(
        model(
            [node("Add", ["x", "one"], ["y"], "add")],
            [value("x", ["b", 4])],
            [value("y", ["b", 4])],
            [constant("one", np.array(1, np.float32))],
        )
    ), save_input("x.npz", x=np.full((2, 4), 2048, np.float32))


def test_an_answer_is_judged_by_three_readings_and_says_where_it_does_not_hold():
    path, x = mean_of_large()
    found = ok("locate", path, "--inputs", x, "--json")
    assert found.json["fp32_layers"] == []
    assert found.json["kernels"]["verdicts"] == {"typical": "pass", "exact": "pass", "worst": "fail"}
    assert found.json["kernels"]["excess"]["worst"] is None
    said = ok("locate", path, "--inputs", x).out
    assert "typical 0, exact 0, worst inf" in said
    assert "It fails with worst kernels: locate --robust" in said
    assert "Only kernels that accumulate in FP32 get mean (ReduceMean) right: partial sums up to 9e+04" in said
    (one,) = found.json["kernels"]["partial_sums"]
    assert one == {"layer": "mean", "op": "ReduceMean", "terms": 300, "largest": pytest.approx(90_000)}
    assert yaml.safe_load(Path("fp32_layers.yaml").read_text())["evidence"]["kernels"]["worst"] == "not finite"


@pytest.mark.parametrize("option", [["--robust"], ["--kernels", "worst"]])
def test_a_plan_for_worse_kernels_pins_what_they_get_wrong(option):
    path, x = mean_of_large()
    found = ok("locate", path, "--inputs", x, *option, "--json").json
    assert found["fp32_layers"] == ["mean"]
    assert set(found["kernels"]["verdicts"].values()) == {"pass"}
    assert found["kernels"]["pins"] == ({"typical": 0, "robust": 1} if option == ["--robust"] else None)


def test_a_robust_search_saves_no_plan_that_is_not_robust(monkeypatch):
    """Typical kernels need no pin here; Ctrl-C must not leave that as the best plan so far."""
    offered = []
    monkeypatch.setattr("trt_helper.search.saved.SavedSearch.offer", lambda _self, _graph, trial: offered.append(trial))
    path, x = mean_of_large()
    found = ok("locate", path, "--inputs", x, "--robust", "--json").json
    assert found["kernels"]["pins"] == {"typical": 0, "robust": 1}
    assert len(offered) == found["trials"]
    assert [trial.plan.fp32 for trial in offered if trial.verdict is Verdict.PASS][-1] == {"mean"}
    assert all(trial.plan.fp32 for trial in offered if trial.verdict is Verdict.PASS)


def test_what_a_plan_was_judged_with_is_what_gate_judges_it_with():
    path, x = mean_of_large()
    ok("locate", path, "--inputs", x, "--robust")
    config = yaml.safe_load(Path("fp32_layers.yaml").read_text())
    assert config["evidence"]["judged-with"] == "robust"
    ok("gate", "--config", "fp32_layers.yaml")
    config["FP32_LAYERS_FOR_FP16"] = []
    Path("fp32_layers.yaml").write_text(yaml.safe_dump(config))
    assert run("gate", "--config", "fp32_layers.yaml").status == 1
    del config["evidence"]["judged-with"]
    Path("fp32_layers.yaml").write_text(yaml.safe_dump(config))
    ok("gate", "--config", "fp32_layers.yaml")


@pytest.mark.parametrize(("kernels", "status"), [("typical", 0), ("exact", 0), ("worst", 1)])
def test_compare_takes_a_reading(kernels, status):
    path, x = mean_of_large()
    found = run("compare", path, "--inputs", x, "--kernels", kernels, "--json")
    assert found.status == status
    assert found.json["kernels"]["reading"] == kernels
    assert [one["layer"] for one in found.json["kernels"]["partial_sums"]] == ["mean"]
    assert "partial sums up to 9e+04" in run("compare", path, "--inputs", x).out


def test_a_margin_leaves_room_within_the_tolerance():
    """An error of 1 where 1.25 are allowed: near the edge, and more than half of it."""
    path, x = tight_sum()
    tolerance = ("--atol", "1.25", "--rtol", "0")
    said = ok("locate", path, "--inputs", x, *tolerance).out
    assert "near the edge" in said
    assert "no layer needs FP32" in said
    found = ok("locate", path, "--inputs", x, *tolerance, "--margin", "0.5", "--json").json
    assert found["fp32_layers"] == ["add"]
    assert found["tolerance"]["atol"] == 1.25
    assert found["excess"] == {"before": pytest.approx(0.8), "after": 0}
    assert found["kernels"]["margin"] == 0.5
    assert sorted(trial["excess"] for trial in found["search"]) == [0, pytest.approx(0.8)]
    config = yaml.safe_load(Path("fp32_layers.yaml").read_text())
    assert (config["atol"], config["evidence"]["margin"]) == (1.25, 0.5)


def test_a_journal_of_another_reading_is_not_gone_on_with(monkeypatch):
    """A verdict depends on what kernels are taken to compute."""
    path, x = mean_of_large()

    def interrupted(*_args):
        raise KeyboardInterrupt

    for kernels, known in (("typical", True), ("worst", False)):
        with monkeypatch.context() as patch:
            patch.setattr("trt_helper.search.saved.SavedSearch.finish", interrupted)
            assert run("locate", path, "--inputs", x).status == 130
        assert Path("fp32_layers.yaml.journal").exists()
        again = ok("locate", path, "--inputs", x, "--kernels", kernels)
        assert ("going on with an interrupted search" in again.err) == known


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--margin", "0"], "--margin 0: a part of the tolerance is above 0 and at most 1"),
        (["--margin", "1.5"], "--margin 1.5: a part of the tolerance"),
        (["--margin", "nan"], "--margin nan: a part of the tolerance"),
        (["--margin", "0.5", "--metric", "m.py:f", "--metric-threshold", "1"], "--margin is a part of the tolerance;"),
        (["--robust", "--kernels", "worst"], "--robust judges by all of --kernels"),
        (["--robust", "--runner", "cuda"], "--kernels and --robust are about emulated FP16"),
        (["--kernels", "best"], "'best' is not one of"),
    ],
)
def test_what_has_no_meaning_is_refused(options, why):
    path, x = mean_of_large()
    result = run("locate", path, "--inputs", x, *options)
    assert result.status == 2
    assert why in result.err
    assert not Path("fp32_layers.yaml").exists()


def test_no_time_is_no_reading_and_no_error():
    path, x = mean_of_large()
    found = ok("locate", path, "--inputs", x, "--time-limit", "0.001", "--json").json
    assert set(found["kernels"]["verdicts"]) <= {"typical"}
    assert json.loads(Path("fp32_layers.run.json").read_text())["kernels"] == found["kernels"]
