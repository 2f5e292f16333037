"""Reading a run record and the engine beside it: what comes back, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.command_line import PINS, ok, refused, run
from support.report_records import overflowing_record

from trt_helper.errors import InputError
from trt_helper.report import story
from trt_helper.report.read import errors_of, find_engine, read_engine, read_record, tolerance_of

pytestmark = pytest.mark.usefixtures("own_folder")


def test_errors_and_tolerance_come_back_as_they_were(run_records):
    record = read_record(run_records["pins"])
    (before,) = errors_of(record["before"])
    assert (before.name, before.max, before.total) == ("y", 1.0, 8)
    assert not before.passes(tolerance_of(record))
    assert before.error_ratio(tolerance_of(record)) == record["excess"]["before"] == 1000  # 1 over 0.001


# ------------------------------------------------------------------------------------------------------------- refusals


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
def test_what_is_no_run_record_is_refused_in_one_sentence(run_records, change, says):
    Path("bad.json").write_text(change(json.loads(run_records["pins"].read_text())))
    refused("report", "bad.json", says=says)
    refused("compare", "bad.json", "bad.json", says=says)


def test_a_record_that_is_not_there_is_refused():
    refused("report", "none.json", says="none.json cannot be read: No such file")
    Path("folder").mkdir()
    refused("report", "folder", "-o", "x.html", says="folder cannot be read: Is a directory")


def test_reading_refuses_with_an_input_error(tmp_path):
    with pytest.raises(InputError) as caught:
        read_record(tmp_path / "none.json")
    assert caught.value.exit_status == 3


# --------------------------------------------------------------------------------------------------------------- engine


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
