"""The report's page as a file: its parts, what it may load, and its numbers; parsed, not rendered."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from html.parser import HTMLParser

import pytest
import vl_convert
from support.command_line import PINS, run, save_overflowing
from support.report_records import clean_record, long_record, overflowing_record

from trt_helper.report import figures
from trt_helper.report.page import page
from trt_helper.report.read import read_record

VOID = {"meta", "link", "br", "input"}


class Parsed(HTMLParser):
    """Elements with their attributes, the rows of each table, and the text of each script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.open: list[str] = []
        self._table = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self._table = dict(attrs).get("id") or ""
            self.tables[self._table] = []
        if tag == "tr":
            self.tables[self._table].append([])
        if tag in ("td", "th"):
            self.tables[self._table][-1].append("")
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, "elements are closed in the order in which they were opened"

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            attributes, text = self.scripts[-1]
            self.scripts[-1] = attributes, text + data
        elif "td" in self.open or "th" in self.open:
            self.tables[self._table][-1][-1] += data


@pytest.fixture(scope="module")
def record_path(tmp_path_factory):
    return overflowing_record(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def text(record_path):
    return page(read_record(record_path))


@pytest.fixture(scope="module")
def parsed(text):
    return Parsed(text)


def test_the_page_is_well_formed_and_has_each_id_once(parsed):
    assert parsed.open == []
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_the_page_loads_nothing(text, parsed):
    for tag, attributes in parsed.elements:
        for name in ("src", "srcset", "href", "action", "data", "poster"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes)
        assert not [name for name in attributes if name.startswith("on")]
    style = text.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style


def test_the_policy_allows_the_two_scripts_and_nothing_else(parsed):
    (policy,) = [a["content"] for _, a in parsed.elements if a.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    scripts = [text for attributes, text in parsed.scripts if attributes.get("type") != "application/json"]
    hashes = {f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts}
    assert len(scripts) == 2
    assert set(rules["script-src"].split()) == {"'unsafe-eval'", *hashes}


def test_the_same_record_gives_the_same_bytes_in_another_process(record_path, text):
    code = (
        "import sys; from pathlib import Path; from trt_helper.report.page import page;"
        "from trt_helper.report.read import read_record;"
        "sys.stdout.buffer.write(page(read_record(Path(sys.argv[1]))).encode())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "1", "TZ": "Asia/Tokyo", "LC_ALL": "C"}
    other = subprocess.run([sys.executable, "-c", code, record_path], capture_output=True, check=True, env=environment)
    assert other.stdout.decode() == text


def test_each_pin_is_named_with_its_cause_its_evidence_and_the_error_without_it(parsed):
    _, *rows = parsed.tables["pins"]
    assert [row[0] for row in rows] == PINS
    for _, _, cause, shown, without, times in rows:
        assert cause == "overflow"
        assert re.fullmatch(r"values up to 1.09e\+05, FP16 ends at 65504", shown)  # 330 squared
        assert (without, times) == ("1", "1,000 x")  # the quotient is 0 in place of 1; 0.001 is allowed


def test_outputs_samples_and_trials_are_in_tables(parsed):
    _, (output, before, after, *_, allowed, verdict) = parsed.tables["outputs-table"]
    assert (output, before, after) == ("y", "1", "0")
    assert allowed == "max ≤ 0.001 or 0.001 relative"
    assert verdict == "pass"
    samples = parsed.tables["samples"][1:]
    assert ["held out" in row[0] for row in samples] == [False, False, False, True, False]
    assert [row[2] for row in samples[:4]] == ["1"] * 4
    trials = parsed.tables["trials"][1:]
    assert [row[0] for row in trials] == [str(index + 1) for index in range(len(trials))]
    assert trials[0][1] == "control: every layer pinned"
    assert trials[1][2:] == ["0", "1,000", "fail"]


def test_the_page_says_how_to_make_it_again(parsed, record_path, text):
    record = read_record(record_path)
    setting = {row[0]: row[1] for row in parsed.tables["setting"]}
    assert setting["sha256"] == record["model"]["sha256"]
    assert setting["input"] == "x: float b x 8"
    assert setting["onnxruntime"] == record["versions"]["onnxruntime"]
    assert '<pre id="reproduce">trt-helper locate model.onnx -i &#39;a b.npz&#39;</pre>' in text


def test_every_figure_says_how_to_read_it_and_is_one_that_vega_lite_takes(record_path, parsed):
    record = read_record(record_path)
    made = [*figures.figures(record), figures.outputs_figure(record)]
    assert [f.key for f in made] == ["network", "ranges", "trials-pins", "trials-error", "curve", "outputs"]
    (data,) = [json.loads(text) for attributes, text in parsed.scripts if attributes.get("type")]
    assert set(data["figures"]) == {f.key for f in made}
    for f in made:
        assert len(f.reading.split()) > 8
        rows = figures.layer_rows(record) if isinstance(f.rows, str) else f.rows
        compiled = vl_convert.vegalite_to_vega({**f.spec, "width": 600, "data": {"values": rows}})
        assert compiled["marks"]


def test_the_figures_hold_the_numbers_of_the_record(record_path):
    record = read_record(record_path)
    rows = {row["name"]: row for row in figures.layer_rows(record)}
    assert list(rows) == [*PINS, "/norm/Div"]
    assert rows["/norm/Pow"]["written"] == 330.0**2
    assert rows["/norm/Pow"]["adds_bad"] == 8  # all of the eight squares
    assert rows["/norm/Div"]["adds"] == 0
    assert rows["/norm/Div"]["arrives"] == 1
    assert [row["kind"] for row in rows.values()] == ["pinned"] * 4 + ["compute"]
    trials = next(f for f in figures.figures(record) if f.key == "trials-pins").rows
    assert [row["pins"] for row in trials] == [trial["pins"] for trial in record["search"]]


def test_what_is_not_finite_or_zero_breaks_no_figure(record_path):
    record = json.loads(record_path.read_text())
    nothing = dict.fromkeys(("max", "mean", "median", "max_rel", "mean_rel", "median_rel")) | {"non_finite": 8}
    for error in (record["before"]["y"], *(layer["accumulated"] for layer in record["layers"])):
        error.update(nothing)
    record["excess"]["before"] = None
    for trial in record["search"]:
        trial["excess"] = None
    parsed = Parsed(page(record))
    assert parsed.tables["outputs-table"][1][1] == "8 of 8 not finite"
    assert {row[3] for row in parsed.tables["trials"][1:]} == {"not finite"}


def test_a_record_of_compare_makes_a_page_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, samples = save_overflowing()
    run("compare", path, "-i", samples, "--record", "c.json")
    parsed = Parsed(page(read_record(tmp_path / "c.json")))
    assert parsed.tables["outputs-table"][1][:3] == ["y", "1", "1"]
    assert parsed.tables["samples"][1][:4] == ["x.npz", "y", "1", "1"]
    assert "trials" not in parsed.tables


def test_a_clean_model_makes_a_page_too(tmp_path):
    parsed = Parsed(page(read_record(clean_record(tmp_path))))
    assert "pins" not in parsed.tables
    assert parsed.open == []


def test_five_thousand_layers_make_a_page_that_can_be_sent(record_path):
    record = long_record(record_path, 5000)
    started = time.monotonic()
    size = len(page(record).encode())
    assert size < 5 << 20  # bytes
    assert time.monotonic() - started < 20
