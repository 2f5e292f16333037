"""The run record: what it holds, that it obeys its published schema, and what is refused in its place."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jsonschema
import pytest
from support.cli_helpers import (
    PINS,
    clean,
    everything,
    misused,
    ok,
    own_folder,
    refused,
    run,
    save_input,
    save_overflowing,
    saved,
)
from support.report_records import ARGV, clean_record, overflowing_record

from trt_helper.errors import InputError
from trt_helper.report import story
from trt_helper.report.read import errors_of, find_engine, read_engine, read_record, schema, tolerance_of

SQUARE = 330.0**2  # the largest value that `overflowing` makes of the samples


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """The record of a run with pins, and of one without."""
    folder = tmp_path_factory.mktemp("records")
    return {"pins": overflowing_record(folder / "pins"), "clean": clean_record(folder / "clean")}


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch):
    own_folder(tmp_path, monkeypatch)


# ----------------------------------------------------------------------------------------------- record


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


def test_the_record_goes_where_it_is_asked_for_and_nowhere_else():
    path, samples = save_overflowing()
    ok("locate", path, "-i", samples, "-o", "plan.yaml", "--record", "kept/run.json")
    assert sorted(everything()) == ["kept", "kept/run.json", "model.onnx", "plan.yaml", "x.npz"]
    misused("locate", path, "-o", "a.yaml", "--record", "a.yaml", says="Invalid value: -o and --record name the same")
    refused("locate", path, "--record", "model.onnx", says="model.onnx is what the result is made from")


@pytest.mark.parametrize("which", ["pins", "clean"])
def test_a_record_obeys_the_published_schema(kept, which):
    jsonschema.Draft7Validator.check_schema(schema())
    jsonschema.Draft7Validator(schema()).validate(json.loads(kept[which].read_text()))


def test_the_record_of_compare_obeys_it_too():
    path, samples = save_overflowing()
    assert run("compare", path, "-i", samples, "--record", "c.json").status == 1
    record = json.loads(Path("c.json").read_text())
    jsonschema.Draft7Validator(schema()).validate(record)
    assert record["command"] == "compare"
    assert read_record(Path("c.json")) == record


def test_the_trials_can_be_replayed_from_what_each_added_and_removed(kept):
    record = read_record(kept["pins"])
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


def test_the_worst_sample_is_what_the_outputs_say(kept):
    record = read_record(kept["pins"])
    assert [sample["held_out"] for sample in record["per_sample"]] == [False, False, False, True, False]
    errors = [sample["before"]["y"]["max"] for sample in record["per_sample"]]
    assert errors[:4] == [1, 1, 1, 1]  # the square is infinite, so the quotient is 0 in place of 1
    assert errors[4] < 1e-3
    assert max(errors) == record["before"]["y"]["max"]
    assert max(sample["after"]["y"]["max"] for sample in record["per_sample"]) == record["after"]["y"]["max"]


def test_the_estimate_says_that_a_product_is_slower_in_fp32(kept):
    estimate = read_record(kept["clean"])["share"]["estimate"]
    assert 0 < estimate["fp16"] < estimate["fp32"]
    assert estimate["plan"] == estimate["fp16"]  # nothing is pinned


def test_errors_and_tolerance_come_back_as_they_were(kept):
    record = read_record(kept["pins"])
    (before,) = errors_of(record["before"])
    assert (before.name, before.max, before.total) == ("y", 1.0, 8)
    assert not before.passes(tolerance_of(record))
    assert before.error_ratio(tolerance_of(record)) == record["excess"]["before"] == 1000  # 1 over 0.001


# ------------------------------------------------------------------------------------------------ story


def test_the_story_tells_what_broke_why_what_was_done_and_how_sure_that_is(kept):
    record = read_record(kept["pins"])
    assert story.headline(record) == "4 of 5 layers stay in FP32; the outputs are then within tolerance"
    found = {card.title: " ".join(card.lines) for card in story.cards(record)}
    assert list(found) == ["What broke", "Why", "What was done", "How sure that is"]
    assert (
        "the output y is off by 1 (1,000 times too much); allowed is max ≤ 0.001 or 0.001 relative."
        in found["What broke"]
    )
    assert "4 of 5 samples fail" in found["What broke"]
    assert "Overflow: values pass 65504" in found["Why"]
    assert f"here up to {SQUARE:.3g}" in found["Why"]
    assert all(f"/norm/{name}" in found["Why"] for name in ("Pow", "ReduceMean", "Add"))
    assert "and 1 more" in found["Why"]
    assert "the other 20 % compute in FP16" in found["What was done"]
    assert "Each pin was taken out once more and the result did not pass" in found["How sure that is"]
    assert "5 samples, 1 of which the search did not see" in found["How sure that is"]
    assert "emulated on a CPU" in found["How sure that is"]
    assert story.warnings(record) == []


def test_the_story_of_a_model_that_fp16_computes_well(kept):
    record = read_record(kept["clean"])
    assert story.headline(record) == "FP16 is accurate as it is"
    found = {card.title: " ".join(card.lines) for card in story.cards(record)}
    assert found["What broke"].startswith("Nothing")
    assert "Why" not in found
    (warning,) = story.warnings(record)
    assert "random inputs" in warning


def test_a_plan_that_is_not_proven_to_be_smallest_is_a_warning():
    path, samples = save_overflowing()
    assert run("locate", path, "-i", samples, "--max-pins", "2").status == 1
    record = read_record(Path("fp32_layers.run.json"))
    assert story.headline(record) == "FP16 misses the tolerance; no layer is pinned"  # 2 pins are no better than 0
    (warning,) = story.warnings(record)
    assert warning.startswith("The plan may not be the smallest: the best of those tried with at most 2 pins")


def test_short_names_drop_what_they_share():
    assert story.short(["a/b/c/x", "a/b/d/y"]) == ["…/c/x", "…/d/y"]
    assert story.short(["x", "y"]) == ["x", "y"]
    assert story.short(["a/b/c/x"]) == ["…/c/x"]
    assert story.short([]) == []


# ------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda _: "not json", "is not JSON"),
        (lambda _: '{"schema": NaN}', "NaN is no number"),
        (lambda _: "[" * 100_000, "is not JSON"),
        (lambda _: "[]", "holds no JSON object"),
        (lambda _: "{}", "is no run record"),
        (lambda r: json.dumps(r | {"schema": 2}), "has schema 2, this trt-helper knows 1"),
        (lambda _: json.dumps({"schema": 1, "command": "gate"}), "is what gate said"),
        (lambda r: json.dumps(r | {"verdict": "maybe"}), "data.verdict must be one of"),
        (lambda r: json.dumps(r | {"layers": [{}]}), "data.layers[0] must contain"),
        (lambda r: json.dumps(r | {"fp32_layers": [1]}), "data.fp32_layers[0] must be string"),
        (lambda r: json.dumps(r).replace('"seconds":', '"seconds": 1e999, "s":'), "data.seconds must be"),
        (lambda r: json.dumps(r | {"trials": 10**400}), "data.trials must be"),
    ],
)
def test_what_is_no_run_record_is_refused_in_one_sentence(kept, change, says):
    Path("bad.json").write_text(change(json.loads(kept["pins"].read_text())))
    refused("report", "bad.json", says=says)
    refused("compare", "bad.json", "bad.json", says=says)


def test_a_record_that_is_not_there_is_refused():
    refused("report", "none.json", says="none.json cannot be read: No such file")
    Path("folder").mkdir()
    refused("report", "folder", "-o", "x.html", says="folder cannot be read: Is a directory")


# --------------------------------------------------------------------------------------------- command


def test_report_writes_one_file_and_says_the_same_in_short(kept):
    Path("run.json").write_bytes(kept["pins"].read_bytes())
    shown = ok("report", "run.json")
    assert sorted(everything()) == ["run.html", "run.json"]
    assert "4 of 5 layers stay in FP32" in shown.out
    assert all(pin in shown.out for pin in PINS)
    assert "Report written to run.html." in shown.out
    assert shown.err == ""
    ok("report", "run.json", "-o", "deep/er/report.html")
    assert Path("deep/er/report.html").read_bytes() == Path("run.html").read_bytes()
    refused("report", "run.json", "-o", "run.json", says="run.json is what the result is made from")


def test_without_its_libraries_the_report_says_what_to_install(kept, monkeypatch):
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    monkeypatch.delitem(sys.modules, "trt_helper.report.page", raising=False)
    refused(
        "report", kept["pins"], "-o", "r.html", says="needs the Python package vl_convert", fix="trt-helper[report]"
    )


# ---------------------------------------------------------------------------------------------- engine


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A record and the engine that the real builder made of its plan, in one folder."""
    pytest.importorskip("tensorrt_rtx")
    folder = tmp_path_factory.mktemp("converted")
    record = overflowing_record(folder)
    model = folder / "model.onnx"
    (folder / "plan.yaml").write_text(f"model: model.onnx\nFP32_LAYERS_FOR_FP16: {json.dumps(PINS)}\n")
    assert run("convert", model, "-c", folder / "plan.yaml", "-o", folder / "model.trt").status in (0, 1)
    return record


def test_what_the_engine_says_of_each_pin_is_found_beside_the_record(converted):
    record = read_record(converted)
    found = find_engine(record, converted)
    assert found == converted.with_name("model.trt.json")
    proof = read_engine(found, record)
    assert {pin["layer"] for pin in proof["pins"]} == set(PINS)
    sure = " ".join(story.cards(record, proof)[-1].lines)
    honoured = sum(pin["state"] == "honoured" for pin in proof["pins"])
    assert f"{honoured} of 4 pins are honoured" in sure
    ok("report", converted, "-o", "r.html")
    page = Path("r.html").read_text()
    assert '<table id="engine">' in page
    assert "model.trt, built by" not in page.split("<main>")[0]


def test_an_engine_of_another_plan_is_refused(converted):
    record = json.loads(converted.read_text())
    record["fp32_layers"] = PINS[:2]
    Path("run.json").write_text(json.dumps(record))
    other = converted.with_name("model.trt.json")
    refused("report", "run.json", "--engine", other, says="belongs to another model or plan")
    Path("m.trt.json").write_bytes(other.read_bytes())
    assert find_engine(record, Path("run.json")) is None
    Path("bad.json").write_text('{"pins": 3}')
    refused("report", "run.json", "--engine", "bad.json", says="is no proof of an engine")


def test_a_clean_model_has_a_record_without_layers_unless_it_is_asked_for():
    """Looking at every layer takes three passes a sample: not where nothing needs FP32."""
    saved(clean())
    save_input("x.npz", x=[[1.0, -2.0, 3.0, 4.0]])
    ok("locate", "model.onnx", "-i", "x.npz")
    assert read_record(Path("fp32_layers.run.json"))["layers"] == []
    ok("report", "fp32_layers.run.json")
    ok("locate", "model.onnx", "-i", "x.npz", "--record", "run.json")
    assert [layer["name"] for layer in read_record(Path("run.json"))["layers"]] == ["dense", "act"]


def test_argv_can_be_given_to_a_shell(kept):
    record = read_record(kept["pins"])
    assert record["argv"] == ARGV
    assert record["reproduce"] == "trt-helper locate model.onnx -i 'a b.npz'"


def test_reading_refuses_with_an_input_error(tmp_path):
    with pytest.raises(InputError) as caught:
        read_record(tmp_path / "none.json")
    assert caught.value.exit_status == 3
