"""The run record: what `locate` and `compare` write into it, and that it obeys its published schema."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from support.command_line import (
    PINS,
    clean,
    everything,
    misused,
    ok,
    refused,
    run,
    save_input,
    save_overflowing,
    saved,
)
from support.report_records import ARGV

from trt_helper.report.read import read_record, schema

pytestmark = pytest.mark.usefixtures("own_folder")


def test_locate_leaves_a_record_beside_the_plan():
    path, samples = save_overflowing()
    said = ok("locate", path, "-i", samples, "--json").json
    record = json.loads(Path("fp32_layers.run.json").read_text())
    assert {key: record[key] for key in said} == said
    assert set(record) - set(said) == {"command", "argv", "reproduce", "date"}
    assert record["command"] == "locate"
    assert record["argv"] == ["trt-helper", "locate", "model.onnx", "-i", "x.npz", "--json"]
    assert {"python", "numpy", "onnx", "onnxruntime", "trt-helper"} <= {*record["versions"], "python"}
    assert record["platform"].startswith("Python 3.")


def test_the_record_goes_where_it_is_requested_and_nowhere_else():
    path, samples = save_overflowing()
    ok("locate", path, "-i", samples, "-o", "plan.yaml", "--record", "kept/run.json")
    assert sorted(everything()) == ["kept", "kept/run.json", "model.onnx", "plan.yaml", "x.npz"]
    misused("locate", path, "-o", "a.yaml", "--record", "a.yaml", says="Invalid value: -o and --record name the same")
    refused("locate", path, "--record", "model.onnx", says="model.onnx is what the result is made from")


@pytest.mark.parametrize("which", ["pins", "clean"])
def test_a_record_obeys_the_published_schema(run_records, which):
    jsonschema.Draft7Validator.check_schema(schema())
    jsonschema.Draft7Validator(schema()).validate(json.loads(run_records[which].read_text()))


def test_the_record_of_compare_obeys_it_too():
    path, samples = save_overflowing()
    assert run("compare", path, "-i", samples, "--record", "c.json").status == 1
    record = json.loads(Path("c.json").read_text())
    jsonschema.Draft7Validator(schema()).validate(record)
    assert record["command"] == "compare"
    assert read_record(Path("c.json")) == record


def test_the_plans_follow_from_what_each_trial_added_and_removed(run_records):
    record = read_record(run_records["pins"])
    assert len(record["search"]) == record["trials"]
    assert record["search"][0]["every_layer"]
    pins: set[str] = set()
    plans = []
    for trial in record["search"]:
        if not trial["every_layer"]:
            pins = (pins | set(trial["added"])) - set(trial["removed"])
            assert len(pins) == trial["pins"]
            plans.append((frozenset(pins), trial["verdict"]))
    assert (frozenset(), "fail") in plans
    assert (frozenset(PINS), "pass") in plans
    for pin in PINS:
        assert (frozenset(PINS) - {pin}, "fail") in plans


def test_the_worst_sample_is_what_the_outputs_say(run_records):
    record = read_record(run_records["pins"])
    assert [sample["held_out"] for sample in record["per_sample"]] == [False, False, False, True, False]
    errors = [sample["before"]["y"]["max"] for sample in record["per_sample"]]
    assert errors[:4] == [1, 1, 1, 1]  # the square is infinite, so the quotient is 0 in place of 1
    assert errors[4] < 1e-3
    assert max(errors) == record["before"]["y"]["max"]
    assert max(sample["after"]["y"]["max"] for sample in record["per_sample"]) == record["after"]["y"]["max"]


def test_the_estimate_says_that_a_product_is_slower_in_fp32(run_records):
    estimate = read_record(run_records["clean"])["share"]["estimate"]
    assert 0 < estimate["fp16"] < estimate["fp32"]
    assert estimate["plan"] == estimate["fp16"]  # nothing is pinned


def test_a_clean_model_has_a_record_without_layers_unless_it_is_requested():
    """Looking at every layer takes three passes a sample: not where nothing needs FP32."""
    saved(clean())
    save_input("x.npz", x=[[1.0, -2.0, 3.0, 4.0]])
    ok("locate", "model.onnx", "-i", "x.npz")
    assert read_record(Path("fp32_layers.run.json"))["layers"] == []
    ok("report", "fp32_layers.run.json")
    ok("locate", "model.onnx", "-i", "x.npz", "--record", "run.json")
    assert [layer["name"] for layer in read_record(Path("run.json"))["layers"]] == ["dense", "act"]


def test_argv_can_be_given_to_a_shell(run_records):
    record = read_record(run_records["pins"])
    assert record["argv"] == ARGV
    assert record["reproduce"] == "trt-helper locate model.onnx -i 'a b.npz'"
