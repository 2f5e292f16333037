"""Results go in, a Markdown summary comes out. What comes from a model stands in code spans, where nothing acts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from trt_helper.format.text import plain
from trt_helper.gate.findings import LEVELS
from trt_helper.gate.result import Gated
from trt_helper.gate.writers import table

LONGEST = 2000  # characters of one message


def markdown(results: Sequence[Gated]) -> str:
    """Headline, one table, and what was found."""
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
    """`text` as a code span, which no text can leave: its fence is longer than any run of backticks inside."""
    inside = plain(text, longest) or " "
    fence = "`" * (max((len(run) for run in re.findall("`+", inside)), default=0) + 1)
    pad = " " if inside[0] in "` " or inside[-1] in "` " else ""
    return f"{fence}{pad}{inside}{pad}{fence}"


def _in_cell(span: str) -> str:
    """A code span in a table: GitHub and GitLab take the backslash before a bar away again."""
    return span.replace("|", "\\|")
