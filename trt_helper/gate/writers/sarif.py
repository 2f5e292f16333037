"""Results as SARIF 2.1.0: every finding at its line of the config."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import trt_helper
from trt_helper.format.text import plain
from trt_helper.gate.findings import RULES, Finding
from trt_helper.gate.result import Gated

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
LONGEST = 2000  # characters of one message
# In a message, brackets would make a link and braces a placeholder (SARIF 2.1.0, 3.11.5 and 3.11.6).
LITERAL = str.maketrans({"[": "\\[", "]": "\\]", "\\": "\\\\", "{": "{{", "}": "}}"})


def sarif(results: Sequence[Gated]) -> bytes:
    """The SARIF file, all ASCII."""
    driver = {
        "name": "trt-helper",
        "version": trt_helper.__version__,
        "rules": [{"id": name, "shortDescription": {"text": f"{text}."}} for name, text in RULES.items()],
    }
    run = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "results": [_result(gated.config, finding) for gated in results for finding in gated.findings],
    }
    data = {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}
    return (json.dumps(data, allow_nan=False, indent=2) + "\n").encode()


def _result(config: Path, finding: Finding) -> dict[str, Any]:
    text = f"{finding.message}. Fix: {finding.fix}" if finding.fix else finding.message
    identity = repr((finding.rule, uri(config), finding.subject)).encode()
    location: dict[str, Any] = {
        "physicalLocation": {"artifactLocation": {"uri": uri(config)}, "region": {"startLine": finding.line or 1}}
    }
    if finding.subject:
        location["logicalLocations"] = [{"name": plain(finding.subject)}]
    return {
        "ruleId": finding.rule,
        "ruleIndex": list(RULES).index(finding.rule),
        "level": finding.level,
        "message": {"text": plain(text, LONGEST).translate(LITERAL)},
        "locations": [location],
        "partialFingerprints": {"finding/v1": hashlib.sha256(identity).hexdigest()},
    }


def uri(path: Path) -> str:
    """`path` as a reference relative to the working folder, which is the repository in CI; else absolute."""
    here = Path.cwd()
    whole = here / path
    inside = whole.is_relative_to(here) and ".." not in path.parts
    return quote(whole.relative_to(here).as_posix(), errors="replace") if inside else whole.resolve().as_uri()
