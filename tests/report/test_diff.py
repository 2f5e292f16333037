"""`trt-helper compare A.json B.json`: what changed between two run records that the commands wrote."""

from __future__ import annotations

import hashlib
import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from jsonschema import Draft7Validator
from support.command_line import (
    PINS,
    misused,
    ok,
    overflowing,
    refused,
    run,
    save_input,
    save_overflowing,
    saved,
)

pytestmark = pytest.mark.usefixtures("own_folder")


def locate(name, *words):
    """The run record of a search on the model in the folder."""
    ok("locate", "model.onnx", "-o", f"{name}.yaml", *words)
    return Path(f"{name}.run.json")


def compared(a, b, status=0):
    return ok("compare", a, b, "--json", status=status).json


@pytest.fixture
def large():
    """At |x| = 300 the square overflows, and four layers are pinned."""
    save_overflowing()
    return locate("large", "--inputs", "x.npz")


@pytest.fixture
def small(large):  # noqa: ARG001 - the model that it wrote
    """The same model at |x| = 1, where FP16 is exact."""
    save_input("one.npz", x=np.float32([[1, -1] * 4]))
    return locate(
        "small", "--inputs", "one.npz", "--record", "small.run.json"
    )  # with every layer, though none is pinned


def edited(path, name, **changes):
    """A copy of a record with other values."""
    Path(name).write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return Path(name)


def named(found, change):
    return {pin["name"] for pin in found["pins"] if pin["change"] == change}


def test_the_same_search_twice_differs_in_nothing(large):
    again = locate("again", "--inputs", "x.npz")
    found = compared(large, again)
    assert found["same"] is True
    assert (found["changes"], found["causes"]) == ({}, {})
    assert named(found, "kept") == set(PINS)
    assert ok("compare", large, again).out == "Nothing differs but the date and the seconds.\n"


def test_pins_that_came_and_went_are_named(large, small):
    found = compared(large, small)
    assert named(found, "removed") == set(PINS)
    assert {(pin["a"]["precision"], pin["b"]["precision"]) for pin in found["pins"]} == {("fp32", "fp16")}
    assert named(compared(small, large), "added") == set(PINS)
    shown = ok("compare", small, large).out
    assert "0 pins in A, 4 in B: 4 added, 0 removed." in shown
    assert all(name in shown for name in PINS)


def test_a_run_that_looked_at_no_layer_says_nothing_of_them(large, small):
    bare = edited(small, "bare.json", layers=[])
    found = compared(large, bare)
    assert {(pin["a"]["precision"], pin["b"]["precision"]) for pin in found["pins"]} == {("fp32", "fp16")}
    assert (found["causes"], found["layers"]) == ({}, {"gone": [], "new": []})


def test_layers_that_no_longer_overflow_are_named(large, small):
    """The square of 300 passes 65504, and each of the four layers reads or writes it; the square of 1 does not."""
    found = compared(large, small)
    assert {name for name, cause in found["causes"].items() if cause["a"] == "overflow"} == set(PINS)
    assert "overflow" not in {cause["b"] for cause in found["causes"].values()}
    assert "overflow" in ok("compare", large, small).out


def test_what_a_run_depends_on_is_held_side_by_side(large, small):
    changes = compared(large, small)["changes"]
    assert changes.pop("trials")
    assert changes == {
        "sample x.npz": {"a": "used", "b": None},
        "sample one.npz": {"a": None, "b": "used"},
    }


def test_another_tolerance_is_a_change(large):
    other = locate("other", "--inputs", "x.npz", "--atol", "0.25", "--rtol", "0", "--check-error-stat", "mean")
    changes = compared(large, other)["changes"]
    assert changes["atol"] == {"a": 0.001, "b": 0.25}
    assert changes["rtol"] == {"a": 0.001, "b": 0}
    assert changes["check-error-stat"] == {"a": "max", "b": "mean"}


def test_another_model_is_known_by_its_hash_and_its_layers(large):
    first = hashlib.sha256(Path("model.onnx").read_bytes()).hexdigest()
    saved(overflowing(["/norm/Pow", "/norm/ReduceMean", "/norm/Add", "/norm/Root", "/norm/Div"]))
    second = hashlib.sha256(Path("model.onnx").read_bytes()).hexdigest()
    found = compared(large, locate("renamed", "--inputs", "x.npz"))
    assert found["changes"]["model sha256"] == {"a": first, "b": second}
    assert found["layers"] == {"gone": ["/norm/Sqrt"], "new": ["/norm/Root"]}
    precisions = {pin["name"]: (pin["a"]["precision"], pin["b"]["precision"]) for pin in found["pins"]}
    assert precisions["/norm/Sqrt"] == ("fp32", "")
    assert precisions["/norm/Root"] == ("", "fp32")
    assert precisions["/norm/Pow"] == ("fp32", "fp32")


def test_another_version_is_a_change(large):
    versions = json.loads(large.read_text())["versions"]
    newer = edited(large, "newer.json", versions={**versions, "onnxruntime": "99.0", "extra": "1"})
    assert compared(large, newer)["changes"] == {
        "version of onnxruntime": {"a": versions["onnxruntime"], "b": "99.0"},
        "version of extra": {"a": None, "b": "1"},
    }


def test_a_bf16_pin_and_a_rewrite_are_changes(large):
    """With BF16 allowed the same four layers keep their range at half the width."""
    found = compared(large, locate("rewritten", "--inputs", "x.npz", "--atol", "0.01", "--cures", "pins,bf16"))
    wide = {pin["name"] for pin in found["pins"] if pin["b"]["precision"] == "bf16"}
    assert wide
    assert named(found, "changed") == wide
    rewritten = [{"norms": "/norm/Div", "as": "LayerNormalization", "without": {}}]
    changes = compared(large, edited(large, "norm.json", cures=rewritten))["changes"]
    assert changes == {"cure of norms /norm/Div, as LayerNormalization": {"a": None, "b": "yes"}}


def test_errors_are_those_of_the_records(large, small):
    found = compared(large, small)["outputs"]["y"]
    for side, path in (("a", large), ("b", small)):
        record = json.loads(path.read_text())
        for ours, theirs in (("fp16", "before"), ("plan", "after")):
            for key in ("max", "mean", "median", "non_finite"):
                assert found[side][ours][key] == record[theirs]["y"][key]
    assert found["a"]["fp16"]["max"] == pytest.approx(1)  # x / inf is 0 where it should be ±1
    assert found["a"]["fp16"]["excess"] == pytest.approx(1000)  # at 0.001 allowed
    assert (found["a"]["fp16"]["passes"], found["a"]["plan"]["passes"]) == (False, True)


def test_errors_without_a_pin_are_those_of_the_records(large, small):
    wanted = {pin["name"]: pin["without_excess"] for pin in json.loads(large.read_text())["pins"]}
    assert set(wanted) == set(PINS)
    found = compared(large, small)["pins"]
    assert {pin["name"]: pin["a"]["without_excess"] for pin in found} == wanted
    assert {pin["b"]["without_excess"] for pin in found} == {None}


def test_the_later_run_decides_the_exit_status(large):
    """All in FP16 the model overflows: the record of `compare` says fail. It knows nothing of causes in FP16."""
    ok("compare", "model.onnx", "--inputs", "x.npz", "--record", "bare.json", status=1)
    found = compared(large, "bare.json", status=1)
    assert found["b"]["verdict"] == "fail"
    assert named(found, "removed") == set(PINS)
    assert found["causes"] == {}
    assert {pin["b"]["cause"] for pin in found["pins"]} == {None}
    assert found["outputs"]["y"]["b"]["plan"]["max"] == pytest.approx(1)
    assert "B misses the tolerance." in ok("compare", large, "bare.json", status=1).out
    assert compared("bare.json", large, status=0)["b"]["verdict"] == "pass"


def test_compare_writes_a_record_that_fits_the_published_schema():
    save_overflowing()
    shown = ok("compare", "model.onnx", "--inputs", "x.npz", "--record", "new/bare.json", "--json", status=1).json
    record = json.loads(Path("new/bare.json").read_text())
    schema = json.loads(files("trt_helper").joinpath("schemas/run-1.schema.json").read_text())
    Draft7Validator.check_schema(schema)
    assert [error.message for error in Draft7Validator(schema).iter_errors(record)] == []
    assert {key: record[key] for key in shown} == shown
    assert record["command"] == "compare"
    assert record["reproduce"].startswith("trt-helper compare model.onnx --inputs x.npz")


def test_a_record_never_takes_the_place_of_the_model():
    save_overflowing()
    refused("compare", "model.onnx", "--record", "model.onnx", says="model.onnx is what the result is made from")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not JSON"),
        ("[1]", "holds no JSON object"),
        ('{"schema": NaN}', "is not JSON"),
        ("{}", "is no run record"),
        ('{"schema": 2}', "has schema 2, this trt-helper knows 1"),
        ('{"schema": 1, "command": "gate"}', "is what gate said"),
        ("[" * 100_000, "is not JSON"),
        ("\0\xff", "is not JSON"),
    ],
)
def test_what_is_no_run_record_is_refused(large, text, says):
    Path("other.json").write_bytes(text.encode("latin-1"))
    refused("compare", large, "other.json", says=f"other.json {says}")
    refused("compare", "other.json", large, says=f"other.json {says}")


def test_a_record_that_is_not_there_is_refused(large):
    refused("compare", large, "absent.json", says="absent.json cannot be read")


def test_a_record_of_nonsense_is_refused(large):
    """Whatever key of a true record is spoilt, nothing behind the reader meets it."""
    record = json.loads(large.read_text())
    spoilt = [key for key in record if key not in ("inferences", "trials", "seconds")]
    for key in spoilt:
        edited(large, "spoilt.json", **{key: {"x": [None, "y", -1]}})
        result = run("compare", large, "spoilt.json")
        assert result.status in (0, 1, 3), (key, result.err)
        assert "Traceback" not in result.err
    assert len(spoilt) > 20


def test_one_record_alone_or_with_options_is_misuse(large):
    misused("compare", large, says="Invalid value: two run records are compared")
    misused("compare", large, large, "--atol", "1", says="Invalid value: run records are compared as they are")
