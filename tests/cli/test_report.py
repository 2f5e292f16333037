"""`trt-helper report`: the file that it writes, its summary, and the figures of `bench` beside the run record."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from support.command_line import PINS, everything, ok, refused, save_overflowing

from trt_helper.format.text import rate

pytestmark = pytest.mark.usefixtures("own_folder")


def test_report_writes_one_file_and_says_the_same_in_short(run_records):
    Path("run.json").write_bytes(run_records["pins"].read_bytes())
    shown = ok("report", "run.json")
    assert sorted(everything()) == ["run.html", "run.json"]
    assert "4 of 5 layers stay in FP32" in shown.out
    assert all(pin in shown.out for pin in PINS)
    assert "Report written to run.html." in shown.out
    assert shown.err == ""
    ok("report", "run.json", "-o", "deep/er/report.html")
    assert Path("deep/er/report.html").read_bytes() == Path("run.html").read_bytes()
    refused("report", "run.json", "-o", "run.json", says="run.json is what the result is made from")


def test_without_its_libraries_the_report_says_what_to_install(run_records, monkeypatch):
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    monkeypatch.delitem(sys.modules, "trt_helper.report.page", raising=False)
    refused(
        "report",
        run_records["pins"],
        "-o",
        "r.html",
        says="needs the Python package vl_convert",
        fix="trt-helper[report]",
    )


# ---------------------------------------------------------------------------------------------------------------- bench


@pytest.fixture(scope="module")
def located(tmp_path_factory):
    """A plan, its record, and what bench said of it, in one folder."""
    folder = tmp_path_factory.mktemp("located")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        path, samples = save_overflowing()
        ok("locate", path, "-i", samples)
        Path("said.json").write_text(ok("bench", "-c", "fp32_layers.yaml", "--repeats", "2", "--json").out)
    return folder


@pytest.fixture
def beside(located):
    """The same, with the bench file under the name that report looks for."""
    for file in ("fp32_layers.run.json", "said.json"):
        shutil.copy(located / file, file)
    Path("said.json").rename("fp32_layers.bench.json")
    return json.loads(Path("fp32_layers.bench.json").read_text())


def test_the_report_shows_what_bench_said_beside_the_record(beside):
    result = ok("report", "fp32_layers.run.json")
    page = Path("fp32_layers.run.html").read_text()
    assert "Speed, measured by bench" in result.out
    assert "ONNX Runtime, CPU, FP32" in result.out
    assert (
        page.count('<table id="speed">')
        == page.count('<table id="not-run">')
        == page.count('<table id="estimated">')
        == 1
    )
    table = page[page.index('<table id="speed">') : page.index('<table id="not-run">')]
    for row in beside["measured"]:
        assert row["what"] in table
        assert f"{1000 * row['median']:.3g}" in table
        assert rate(row["samples_per_second"]) in table
    Path("fp32_layers.bench.json").unlink()
    assert "Speed" not in ok("report", "fp32_layers.run.json").out
    assert '<table id="speed">' not in Path("fp32_layers.run.html").read_text()


def test_a_bench_file_can_be_named_and_must_belong_to_the_record(beside):
    Path("fp32_layers.bench.json").rename("kept.json")
    assert "Speed, measured" in ok("report", "fp32_layers.run.json", "--bench", "kept.json").out
    for change, says in (
        ({"fp32_layers": PINS[:2]}, "kept.json belongs to another model or plan"),
        ({"model": {"sha256": "0" * 64}}, "kept.json belongs to another model or plan"),
        ({"measured": [{}]}, "kept.json is not what bench says"),
        ({"measured": [{**beside["measured"][0], "median": "fast"}]}, "kept.json is not what bench says"),
    ):
        Path("kept.json").write_text(json.dumps({**beside, **change}))
        refused("report", "fp32_layers.run.json", "--bench", "kept.json", says=says)
    refused(
        "report", "fp32_layers.run.json", "--bench", "kept.json", "-o", "kept.json", says="is what the result is made"
    )
    Path("kept.json").rename("broken.bench.json")
    assert "Speed" not in ok("report", "fp32_layers.run.json").out


def test_pins_that_convert_added_are_no_other_plan(beside):
    more = {**beside, "fp32_layers": [*PINS, "/norm/Div"], "added": ["/norm/Div"]}
    Path("fp32_layers.bench.json").write_text(json.dumps(more))
    assert "Speed, measured" in ok("report", "fp32_layers.run.json").out


def test_names_in_a_bench_file_are_text(beside):
    hostile = "<script>alert(1)</script>\x1b[31m[bold]"
    beside["measured"][0]["what"] = beside["not_run"][0]["why"] = beside["platform"] = hostile
    beside["estimated"][0]["gpu"] = hostile
    Path("fp32_layers.bench.json").write_text(json.dumps(beside))
    out = ok("report", "fp32_layers.run.json").out
    page = Path("fp32_layers.run.html").read_text()
    assert "<script>alert" not in page
    assert "\x1b" not in out + page
    assert "[bold]" in out
