"""The files of `gate` for CI systems, and that hostile names in them stay text."""

from __future__ import annotations

import json
import re
import unicodedata
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import yaml
from markdown_it import MarkdownIt
from support.command_line import ok, own_folder, run, save_input, saved
from support.gate_models import SQUARE, write_model, write_project
from support.onnx_parts import model, node, value
from support.schemas import require_valid

HOSTILE = {
    "html": "<script>alert(1)</script><b>&amp;\"'",
    "ansi": "\x1b[2J\x1b]0;owned\x07\x1b[31mred",
    "newline": "a\r\nb\n::error file=x::forged\n##[add-mask]y\u2028z",
    "bidi": "\u202egnp.exe\u2066\u200b\ufeff\u0085",
    "markdown": "`` ` [x](http://a) **b** | c ~~d~~ @someone #1 <img src=x>",
    "xml": "]]>\x00\x08\uffff<!--&#0;",
    "sarif": "{0} [a](http://b) \\[",
    "workflow": "::warning::forged ##[error]forged",
    "long": "n" * 10_000,
}


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    own_folder(tmp_path, monkeypatch)
    monkeypatch.setenv("TRT_HELPER_CACHE", str(tmp_path / "cache"))
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", "SOURCE_DATE_EPOCH"):
        monkeypatch.delenv(name, raising=False)


def files(*words, status):
    """Run the gate for all its files; returns JUnit's root, the Markdown text, SARIF and the result."""
    result = run("gate", *words, "--junit", "gate.xml", "--summary", "gate.md", "--sarif", "gate.sarif")
    assert result.status == status, result.err
    root = ET.parse("gate.xml").getroot()  # noqa: S314 - written by the gate
    sarif = json.loads(Path("gate.sarif").read_text(encoding="ascii"))
    require_junit(root)
    require_valid(sarif, "sarif-2.1.0")
    return root, Path("gate.md").read_text(), sarif, result


def require_junit(root):
    """The rules of the Apache Ant JUnit schema (github.com/windyroad/JUnit-Schema), which is the strict one."""
    assert root.tag == "testsuites"
    for suite in root:
        assert suite.tag == "testsuite"
        attributes = {
            "name",
            "package",
            "id",
            "timestamp",
            "hostname",
            "tests",
            "failures",
            "errors",
            "time",
            "skipped",
        }
        assert suite.attrib.keys() == attributes
        assert suite.attrib["name"].strip()
        assert suite.attrib["hostname"].strip()
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", suite.attrib["timestamp"])
        assert re.fullmatch(r"\d+\.\d{3}", suite.attrib["time"])
        cases = suite.findall("testcase")
        assert [child.tag for child in suite] == ["properties", *["testcase"] * len(cases), "system-out", "system-err"]
        for case in cases:
            assert case.attrib.keys() == {"name", "classname", "time"}
            assert [child.tag for child in case] in ([], ["failure"], ["error"])
            assert all(child.attrib.keys() == {"type", "message"} for child in case)
        for kind in ("tests", "failures", "errors"):
            tag = {"tests": "testcase", "failures": "testcase/failure", "errors": "testcase/error"}[kind]
            assert int(suite.attrib[kind]) == len(suite.findall(tag))


def rendered(markdown):
    """What a reader of CommonMark with tables makes of the text."""
    return MarkdownIt("commonmark").enable("table").render(markdown)


# -------------------------------------------------------------------------------------------- what they say


def test_a_plan_that_passes():
    write_project()
    ok("gate", "configs/net.yaml", "--update-baseline")
    root, markdown, sarif, _ = files("configs/net.yaml", status=0)
    assert [case.attrib["name"] for case in root.iter("testcase")] == [
        "the plan fits the model",
        "output y: within tolerance",
        "output y: as good as its baseline",
        "no new FP16 overflow",
    ]
    assert markdown.startswith("## trt-helper gate: the plan is accurate\n")
    assert "<td><code>y</code></td>" in rendered(markdown)
    assert sarif["runs"][0]["results"] == []


def test_a_plan_that_fails():
    write_project()
    text = Path("configs/net.yaml").read_text()
    Path("configs/net.yaml").write_text(text.replace(f"- {SQUARE}\n", "", 1))
    root, markdown, sarif, result = files("configs/net.yaml", status=1)
    (failure,) = root.iter("failure")
    assert failure.attrib["type"] == "tolerance"
    assert "max error 2.2" in failure.attrib["message"]
    assert "trt-helper locate" in failure.text
    assert "**FAIL**" in markdown
    (found,) = [r for r in sarif["runs"][0]["results"] if r["level"] == "error"]
    assert found["ruleId"] == "tolerance"
    location = found["locations"][0]["physicalLocation"]["artifactLocation"]
    assert location["uri"] == "configs/net.yaml"
    assert result.out.count("FAIL") == 1


def test_a_plan_that_no_longer_fits_points_at_its_line():
    write_project()
    write_model(square="/norm/Power")
    root, markdown, sarif, _ = files("configs/net.yaml", status=3)
    (error,) = root.iter("error")
    assert error.attrib == {"type": "layer", "message": f"the model has no layer named '{SQUARE}'"}
    assert "**ERROR**" in markdown
    (found,) = sarif["runs"][0]["results"]
    line = found["locations"][0]["physicalLocation"]["region"]["startLine"]
    assert Path("configs/net.yaml").read_text().splitlines()[line - 1] == f"- {SQUARE}"


def test_the_same_finding_has_the_same_fingerprint():
    write_project()
    write_model(square="/norm/Power")
    first, second = (files("configs/net.yaml", status=3)[2]["runs"][0]["results"] for _ in range(2))
    assert first == second


def test_junit_has_the_time_of_the_source_where_one_is_given(monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    root, *_ = files("gone.yaml", status=3)
    assert root[0].attrib["timestamp"] == "1970-01-01T00:00:00"


def test_a_config_outside_the_working_folder_has_an_absolute_uri(tmp_path):
    _, _, sarif, _ = files("../gone 1.yaml", status=3)
    found = sarif["runs"][0]["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert found == (tmp_path / "gone 1.yaml").as_uri()


# -------------------------------------------------------------------------------------------------- GitHub


def test_github_gets_annotations_and_a_summary(monkeypatch):
    write_project()
    write_model(square="/norm/Power")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "step.md")
    Path("step.md").write_text("what stood there\n")
    _, markdown, _, result = files("configs/net.yaml", status=3)
    (line,) = result.err.splitlines()
    command, message = re.fullmatch(r"::error (.*?)::(.*)", line).groups()
    number = Path("configs/net.yaml").read_text().splitlines().index(f"- {SQUARE}") + 1
    assert command.startswith(f"file=configs/net.yaml,line={number},title=trt-helper%3A ")
    assert message.startswith(f"the model has no layer named '{SQUARE}'%0Afix: did you mean")
    assert Path("step.md").read_text() == f"what stood there\n{markdown}"


def test_a_summary_that_cannot_be_written_is_an_error(monkeypatch):
    write_project()
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "gone/step.md")
    result = run("gate", "configs/net.yaml")
    assert result.status == 3
    assert "error: gone/step.md cannot be written" in result.err


# ------------------------------------------------------------------------------------------- hostile names


def hostile_project(name):
    """A model whose output, its layers and a pin that is gone are called `name`."""
    nodes = [node("Mul", ["x", "x"], [f"{name}0"], f"{name}1"), node("Sqrt", [f"{name}0"], [name], f"{name}2")]
    saved(model(nodes, [value("x", [1, 4])], [value(name, [1, 4])]))
    save_input("x.npz", x=np.full((1, 4), 300, np.float32))
    return name


def write_config(file, pins):
    config = {"model": "model.onnx", "FP32_LAYERS_FOR_FP16": pins, "evidence": {"inputs": ["x.npz"]}}
    Path(file).write_text(yaml.safe_dump(config, allow_unicode=False))


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("github", [False, True])
@pytest.mark.parametrize("gone", [False, True])
def test_a_hostile_name_acts_nowhere(monkeypatch, kind, github, gone):
    name = hostile_project(HOSTILE[kind].replace("\x00", "\x01"))  # ONNX Runtime ends a name at a NUL
    if github:
        monkeypatch.setenv("GITHUB_ACTIONS", "true")
    write_config("plan.yaml", [f"{name}3"] if gone else [])
    root, markdown, sarif, result = files("plan.yaml", status=3 if gone else 1)
    findings = len(sarif["runs"][0]["results"])
    assert findings
    require_harmless_terminal(result, findings if github else None)
    require_harmless_markdown(markdown)
    messages = [found["message"]["text"] for found in sarif["runs"][0]["results"]]
    assert all(len(text) < 5000 for text in messages)
    assert not any(re.search(r"(?<!\\)\[[^]]*(?<!\\)\]\(", text) for text in messages), "a link"
    shown = ET.tostring(root, encoding="unicode")
    assert len(shown) < 50_000
    assert all(c == "\n" or unicodedata.category(c)[0] != "C" for c in shown)


def require_harmless_terminal(result, annotations):
    for text in (result.out, result.err):
        assert all(c == "\n" or unicodedata.category(c) not in ("Cc", "Cf", "Cs") for c in text)
    lines = [*result.out.splitlines(), *result.err.splitlines()]
    assert all(len(line) < 12_000 for line in lines)
    if annotations is None:
        assert all(line.startswith(("error: ", "  fix: ", "warning: ", "note: ")) for line in result.err.splitlines())
    else:
        commands = [line for line in lines if line.lstrip().startswith("::") or "##[" in line]
        assert len(commands) == annotations
        assert all(re.match(r"::(error|warning|notice) file=plan.yaml,line=\d+,title=", line) for line in commands)


def require_harmless_markdown(markdown):
    html = rendered(markdown)
    tags = set(re.findall(r"</?([a-z0-9]+)", html))
    assert tags <= {"h2", "h3", "table", "thead", "tbody", "tr", "th", "td", "code", "strong", "ul", "li", "p"}
    assert html.count("<tr>") == 2, "one row"
    outside = re.sub(r"<code>.*?</code>", "", html)
    assert "someone" not in outside
    assert all(c == "\n" or unicodedata.category(c)[0] != "C" for c in markdown)


@pytest.mark.parametrize("kind", ["html", "ansi", "newline", "bidi", "markdown", "sarif", "workflow"])
def test_a_hostile_file_name_acts_nowhere(kind):
    """Of a config that is not there, and so comes back in an error."""
    file = HOSTILE[kind].replace("/", "_") + ".yaml"
    _, markdown, _, result = files(file, status=3)
    require_harmless_terminal(result, None)
    require_harmless_markdown(markdown)
