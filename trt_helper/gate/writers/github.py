"""Results for GitHub Actions: annotations as workflow commands, and the step's summary."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from trt_helper.format.text import plain
from trt_helper.gate.findings import RULES
from trt_helper.gate.result import Gated
from trt_helper.system.files import cannot_write

COMMANDS = {"error": "error", "warning": "warning", "note": "notice"}
LONGEST = 2000  # characters of one message


def is_here() -> bool:
    """Whether this runs in GitHub Actions."""
    return os.environ.get("GITHUB_ACTIONS") == "true"


def commands(results: Sequence[Gated]) -> list[str]:
    """One workflow command (`::error file=...::message`) per finding."""
    return [
        f"::{COMMANDS[finding.level]} file={_property(str(gated.config))},line={finding.line or 1},"
        f"title={_property(f'trt-helper: {RULES[finding.rule]}')}::"
        + _data(plain(finding.message, LONGEST), *([f"fix: {plain(finding.fix, LONGEST)}"] if finding.fix else []))
        for gated in results
        for finding in gated.findings
    ]


def append_summary(text: str) -> None:
    """Append Markdown to the step's summary, if GITHUB_STEP_SUMMARY names a file.

    Raises:
        OutputError: the file cannot be written.
    """
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if path:
        try:
            with Path(path).open("a", encoding="utf-8") as stream:
                stream.write(text)
        except OSError as error:
            raise cannot_write(Path(path), error) from error


def _data(*lines: str) -> str:
    return "%0A".join(line.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A") for line in lines)


def _property(text: str) -> str:
    return _data(plain(text)).replace(":", "%3A").replace(",", "%2C")
