"""Numbers and names as text: rates, and names of any length and content on a terminal."""

from __future__ import annotations

import pytest

from trt_helper.format.text import LONGEST_NAME, plain, rate


@pytest.mark.parametrize(
    ("number", "shown"),
    [(0.0, "0"), (0.01234, "0.0123"), (12.34, "12.3"), (123.4, "123"), (2396.0, "2,400"), (9.876e6, "9,880,000")],
)
def test_a_rate_is_written_out(number, shown):
    assert rate(number) == shown


@pytest.mark.parametrize(
    "name", ["", "plain", "é漢字🙂", "[bold]", "a" * 5000, "\x1b[2J", "\x9b2J", "a\tb", "\u200b", "\ud800"]
)
def test_a_shown_name_is_short_and_printable(name):
    shown = plain(name)
    assert len(shown) <= LONGEST_NAME + 1
    assert shown.isprintable()
    if name.isprintable() and len(name) <= LONGEST_NAME:
        assert shown == name
