"""The baseline of `gate`: when worse results fail, and which baseline files are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.command_line import run, two_lines
from support.gate_models import BASELINE, CONFIG, SQUARE, edit, entry, gate, rules, subjects

pytestmark = pytest.mark.usefixtures("gate_project")


def test_a_baseline_has_the_same_bytes_each_time_and_reads_well(tmp_path):
    gate("--update-baseline")
    first = BASELINE.read_bytes()
    shutil.rmtree(tmp_path / "cache")
    gate("--update-baseline")
    assert BASELINE.read_bytes() == first
    data = json.loads(first)
    assert first.decode() == json.dumps(data, indent=2, sort_keys=True) + "\n"
    (key,) = data["baselines"]
    assert key.startswith("emulate, onnxruntime ")
    assert all(float(f"{figure:.3g}") == figure for figure in entry()["outputs"]["y"].values())
    assert b"/work" not in first
    assert str(tmp_path).encode() not in first


def test_worse_than_the_baseline_by_more_than_the_factor_fails():
    gate("--update-baseline")

    def better(data):
        for figures in data["baselines"].values():
            figures["outputs"]["y"] |= {name: figures["outputs"]["y"][name] / 3 for name in ("max", "max_rel")}

    edit(BASELINE, better)
    found = gate(status=1)
    assert rules(found, "error") == ["regression"]
    assert "is 3 times as far off" in found["findings"][0]["message"]
    gate("--max-regression", "3.1x")
    gate("--max-regression", "2.9", status=1)
    gate("--update-baseline")
    gate("--max-regression", "1x")


def test_errors_far_below_the_tolerance_are_no_regression():
    edit(CONFIG, lambda data: data.update(atol=10.0))  # 0.00136 is 0.01 % of it
    gate("--update-baseline")
    edit(BASELINE, lambda data: [e["outputs"]["y"].update(max=1e-9, max_rel=1e-9) for e in data["baselines"].values()])
    gate()


def test_overflow_where_there_was_none_fails_although_the_output_is_right():
    """The squares of `/norm/Pow` are finite FP32 values that its FP16 readers see as infinite."""
    edit(CONFIG, lambda data: data.update(atol=100))
    edit(CONFIG, lambda data: data["FP32_LAYERS_FOR_FP16"].clear())
    gate("--update-baseline")
    assert entry()["overflow"].keys() == {SQUARE}
    gate()
    edit(BASELINE, lambda data: [e.update(overflow={}) for e in data["baselines"].values()])
    found = gate(status=1)
    assert rules(found, "error") == ["overflow"]
    assert subjects(found, "overflow") == [SQUARE]


def test_a_plan_that_fails_becomes_no_baseline():
    edit(CONFIG, lambda data: data["FP32_LAYERS_FOR_FP16"].remove(SQUARE))
    gate("--update-baseline", status=1)
    assert not BASELINE.exists()


def test_another_version_is_compared_with_and_kept_beside_the_new_one():
    gate("--update-baseline")

    def older(data):
        data["baselines"] = {
            "emulate, onnxruntime 1.0": {**entry(), "versions": {"onnxruntime": "1.0"}, "overflow": {"x": 1}}
        }

    edit(BASELINE, older)
    found = gate()
    assert found["baseline"]["versions"] == {"onnxruntime": "1.0"}
    (note,) = [f["message"] for f in found["findings"] if f["rule"] == "baseline"]
    assert "the baseline is of emulate, onnxruntime 1.0" in note
    gate("--update-baseline")
    assert len(json.loads(BASELINE.read_text())["baselines"]) == 2
    assert subjects(gate(), "baseline") == []


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"schema": 2, "baselines": {}}', '{"schema": 1, "baselines": {"a": {"runner": "emulate"}}}'],
)
def test_a_baseline_that_is_none_is_an_error(text):
    BASELINE.write_text(text)
    result = run("gate", CONFIG)
    assert result.status == 3
    error, fix = two_lines(result.err)
    assert str(BASELINE) in error
    assert "--update-baseline" in fix
    gate("--update-baseline")
    gate()


def test_a_baseline_that_was_named_must_be_there():
    assert "other.json does not exist" in gate("--baseline", "other.json", status=3)["findings"][0]["message"]
    gate("--baseline", "other.json", "--update-baseline")
    assert Path("other.json").is_file()
    gate("--baseline", "other.json")


def test_the_run_record_of_locate_is_a_baseline():
    record = Path("configs/net.run.json")
    found = gate("--baseline", record)
    assert found["baseline"]["outputs"]["y"]["max"] == pytest.approx(found["outputs"]["y"]["max"])
    edit(record, lambda data: data["after"]["y"].update(max=1e-4, max_rel=1e-4))
    assert rules(gate("--baseline", record, status=1), "error") == ["regression"]
    edit(record, lambda data: data.update(after=[]))
    assert "is no baseline" in gate("--baseline", record, status=3)["findings"][0]["message"]
