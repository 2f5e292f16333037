"""Names, figures and tables as text for a terminal. Names come from models, so they are not trusted."""

from __future__ import annotations

import re

from rich.table import Table
from rich.text import Text

LONGEST_NAME = 200  # characters


def plain(name: str, longest: int = LONGEST_NAME) -> str:
    """`name` without control characters, escapes and bidirectional marks, and with the middle cut out if it is long.

    Args:
        name: From a model or a file.
        longest: The length, in characters, from which the middle is replaced by an ellipsis.
    """
    visible = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
    if len(visible) <= longest:
        return visible
    half = longest // 2
    return f"{visible[:half]}…{visible[-half:]}"


def cell(name: str, style: str = "", *, longest: int = LONGEST_NAME) -> Text:
    """`plain(name)` as a text that rich shows unchanged, even if it contains rich's markup."""
    return Text(plain(name, longest), style=style)


def no_commands(text: str) -> str:
    """`text` without what CI runners take for a command: `::name::` (GitHub), `##[name]` and `##vso[name]` (Azure)."""
    return re.sub(r"##(?=(vso)?\[)", "# #", re.sub(":(?=:)", ": ", text))


def figure(number: float) -> str:
    """A number with three significant digits."""
    return "0" if number == 0 else f"{number:.3g}"


def rate(number: float) -> str:
    """A number per second with three significant digits, written out: 2,400 rather than 2.4e+03."""
    return f"{float(f'{number:.3g}'):,.0f}" if number >= 100 else figure(number)  # noqa: PLR2004


def batch_text(batch: int | None) -> str:
    """The batch size in a row of `bench`; a dash if the model has no batch dimension."""
    return "-" if batch is None else str(batch)


def table(title: str, *columns: str, names: int = 1) -> Table:
    """An empty rich table.

    Args:
        title: Above the table.
        columns: Their headers.
        names: The number of columns, from the left, that contain text and fold. The others contain figures.
    """
    made = Table(title=title, title_justify="left", box=None, header_style="bold", padding=(0, 2, 0, 0))
    for index, column in enumerate(columns):
        if index < names:
            made.add_column(column, overflow="fold")
        else:
            made.add_column(column, justify="right", no_wrap=True)
    return made
