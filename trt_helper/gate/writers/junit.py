"""Results as JUnit XML: a suite per config, a case per question.

The file is valid under the Apache Ant JUnit schema (windyroad/JUnit-Schema) and under the one of Jenkins' xUnit plugin
(junit-10.xsd), which between them say what other readers take.
"""

from __future__ import annotations

import os
import platform
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone

from trt_helper.format.text import plain
from trt_helper.gate.findings import RULES, Finding
from trt_helper.gate.result import Gated

LONGEST = 2000  # characters of one message
Case = tuple[str, Finding | None]
"""A question, and the finding that says what is wrong; None where nothing is."""


def junit(results: Sequence[Gated]) -> bytes:
    """The XML file, UTF-8. Its timestamp is `SOURCE_DATE_EPOCH` if that is set, else now."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    when = datetime.fromtimestamp(int(epoch), timezone.utc) if epoch.isdigit() else datetime.now(timezone.utc)
    root = ET.Element("testsuites")
    for index, gated in enumerate(results):
        cases = list(_cases(gated))
        wrong = [finding for _, finding in cases if finding]
        errors = sum(finding.rule in ("layer", "input") for finding in wrong)
        suite = ET.SubElement(
            root,
            "testsuite",
            {
                "name": plain(str(gated.config)) or "-",
                "package": "trt-helper gate",
                "id": str(index),
                "timestamp": when.strftime("%Y-%m-%dT%H:%M:%S"),
                "hostname": plain(platform.node()).strip() or "localhost",
                "tests": str(len(cases)),
                "failures": str(len(wrong) - errors),
                "errors": str(errors),
                "skipped": "0",
                "time": f"{gated.seconds:.3f}",
            },
        )
        ET.SubElement(suite, "properties")
        for question, finding in cases:
            _add_case(suite, str(gated.config), question, finding)
        said = [f"{finding.level}: {finding.message}" for finding in gated.findings if finding.level != "error"]
        ET.SubElement(suite, "system-out").text = "\n".join(plain(line, LONGEST) for line in said)
        ET.SubElement(suite, "system-err")
    data: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return data + b"\n"


def _add_case(suite: ET.Element, config: str, question: str, finding: Finding | None) -> None:
    names = {"name": plain(question, LONGEST), "classname": plain(config), "time": "0"}
    case = ET.SubElement(suite, "testcase", names)
    if finding:
        kind = "error" if finding.rule in ("layer", "input") else "failure"
        message = {"type": finding.rule, "message": plain(finding.message, LONGEST)}
        text = f"{finding.message}\n" + (f"fix: {finding.fix}\n" if finding.fix else "")
        ET.SubElement(case, kind, message).text = "\n".join(plain(line, LONGEST) for line in text.splitlines())


def _cases(gated: Gated) -> Iterator[Case]:
    """The questions about a plan, in the order in which they are asked, each with the finding that answers no."""
    wrong = [finding for finding in gated.findings if finding.level == "error"]
    if gated.now is None:
        yield from ((RULES[finding.rule] if not finding.subject else finding.message, finding) for finding in wrong)
        return
    yield "the plan fits the model", None
    if gated.metric:
        yield f"metric {gated.metric[0]}", _first(wrong, "metric")
    elif not gated.now.outputs:
        yield "the plan can be computed", _first(wrong, "tolerance")
    for error in gated.now.outputs:
        if not gated.metric:
            yield f"output {error.name}: within tolerance", _first(wrong, "tolerance", error.name)
        if gated.before:
            yield f"output {error.name}: as good as its baseline", _first(wrong, "regression", error.name)
    if gated.before and gated.now.overflow is not None:
        yield "no new FP16 overflow", _first(wrong, "overflow")


def _first(findings: Sequence[Finding], rule: str, subject: str | None = None) -> Finding | None:
    return next((f for f in findings if f.rule == rule and subject in (None, f.subject)), None)
