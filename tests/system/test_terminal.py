"""On a terminal a search shows how far it is; what it showed is gone at its end."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

import pytest
from rich.console import Console
from support.cli_helpers import MAIN, own_folder, save_overflowing

from trt_helper.cli import console


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch):
    own_folder(tmp_path, monkeypatch)


def on_a_terminal(*words):
    """What a command writes to a terminal that is its stderr, and what to its stdout."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", MAIN, *map(str, words)]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                shown += os.read(ours, 1 << 16)
            except OSError:  # the other end is closed
                break
        out = process.stdout.read()
    os.close(ours)
    assert process.returncode == 0, shown
    return shown.decode(), out.decode()


def test_a_search_tells_what_it_tries_and_leaves_a_clean_terminal():
    model, x = save_overflowing()
    shown, out = on_a_terminal("locate", model, "--inputs", x, "--rtol", "0")
    assert "search: " in shown
    assert re.search(r"\d+/\d+", shown)
    assert "search: " not in out
    assert shown.rstrip().endswith("\x1b[2K") or "\x1b[?25h" in shown  # the bar was erased, the cursor is back


def test_only_the_bar_of_what_is_done_now_is_shown(monkeypatch):
    terminal = Console(force_terminal=True, width=100, record=True, stderr=True)
    monkeypatch.setattr(console, "stderr", lambda: terminal)
    bars = []
    init = console.Progress.__init__
    monkeypatch.setattr(console.Progress, "__init__", lambda self, *a, **k: bars.append(self) or init(self, *a, **k))
    with console.progress() as report:
        report("search", 0, None, "control: [red]all")
        report("evidence", 3, 9)
        report("search", 2, 7, "without conv")
        tasks = [(task.description, task.visible, task.completed, task.total) for task in bars[0].tasks]
    assert tasks == [("search: without conv", True, 2, 7), ("evidence", False, 3, 9)]
