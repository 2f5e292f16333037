"""Results as a Markdown summary. Text that comes from a model stands in code spans, so that it is shown as it is."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from trt_helper.format.text import plain
from trt_helper.gate.findings import LEVELS
from trt_helper.gate.result import Gated
from trt_helper.gate.writers import table

LONGEST = 2000  # characters of one message


def markdown(results: Sequence[Gated]) -> str:
    """The summary: a headline, one table, and the findings by level."""
    return "\n".join(_lines(results)) + "\n"


def _lines(results: Sequence[Gated]) -> Iterator[str]:
    yield f"## trt-helper gate: {table.headline(results)}"
    yield ""
    yield f"| {' | '.join(table.COLUMNS)} |"
    yield f"|{'---|' * len(table.COLUMNS)}"
    for config, output, verdict, *figures in table.rows(results):
        shown = [_in_cell(code(config)), _in_cell(code(output)), f"**{verdict}**" if verdict != "pass" else verdict]
        yield f"| {' | '.join([*shown, *figures])} |"
    for level in LEVELS:
        found = [(gated.config, finding) for gated in results for finding in gated.findings if finding.level == level]
        if not found:
            continue
        yield ""
        yield f"### {level.capitalize()}s"
        yield ""
        for path, finding in found:
            yield f"- {code(str(path))}: {code(finding.message, LONGEST)}"
            if finding.fix:
                yield f"  - fix: {code(finding.fix, LONGEST)}"


def code(text: str, longest: int = 200) -> str:
    """`text` as a code span; its fence is longer than any run of backticks in the text."""
    content = plain(text, longest) or " "
    fence = "`" * (max((len(run) for run in re.findall("`+", content)), default=0) + 1)
    pad = " " if content[0] in "` " or content[-1] in "` " else ""
    return f"{fence}{pad}{content}{pad}{fence}"


def _in_cell(span: str) -> str:
    """A code span in a table, where a bar needs a backslash; GitHub and GitLab do not show it."""
    return span.replace("|", "\\|")
