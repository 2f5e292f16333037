"""Names, figures and tables for a terminal. Names come from models, and models come from anybody."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

LONGEST_NAME = 200


def plain(name: str, longest: int = LONGEST_NAME) -> str:
    """`name` without control characters, escapes and bidirectional marks, cut in the middle when long."""
    visible = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
    if len(visible) <= longest:
        return visible
    half = longest // 2
    return f"{visible[:half]}…{visible[-half:]}"


def cell(name: str, style: str = "", *, longest: int = LONGEST_NAME) -> Text:
    """Text that rich shows as it is, whatever brackets it holds."""
    return Text(plain(name, longest), style=style)


def figure(number: float) -> str:
    """Three digits are what an error is worth."""
    return "0" if number == 0 else f"{number:.3g}"


def rate(number: float) -> str:
    """Three digits of so many a second, written out: 2,400 rather than 2.4e+03."""
    return f"{float(f'{number:.3g}'):,.0f}" if number >= 100 else figure(number)  # noqa: PLR2004


def batch_text(batch: int | None) -> str:
    """The batch of a row of `bench`; a dash where the model has none."""
    return "-" if batch is None else str(batch)


def table(title: str, *columns: str, names: int = 1) -> Table:
    """A table whose first `names` columns are text and fold; the others are figures."""
    made = Table(title=title, title_justify="left", box=None, header_style="bold", padding=(0, 2, 0, 0))
    for index, column in enumerate(columns):
        if index < names:
            made.add_column(column, overflow="fold")
        else:
            made.add_column(column, justify="right", no_wrap=True)
    return made
