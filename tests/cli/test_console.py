"""The terminal: the progress of a search, and names that reach the terminal as text and not as commands."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from support.command_line import MAIN, ok, overflowing, run, run_in_process, save_overflowing, saved

from trt_helper.cli import console
from trt_helper.config.plan_file import read_config

pytestmark = pytest.mark.usefixtures("own_folder")


# ------------------------------------------------------------------------------------------------------------- progress


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


# ---------------------------------------------------------------------------------------------------------------- names


NAMES = ("[bold]pow[/bold]", "\x1b[31mred\x07", "two\nlines", "\u202eevil\u2066", "n" * 10_000)


@pytest.mark.parametrize("terminal", [False, True])
def test_names_reach_the_terminal_as_text_and_not_as_commands(monkeypatch, terminal):
    """On a terminal the progress bar shows names as well; rich then writes escapes of its own, but none of these."""
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm")
    path, samples = save_overflowing(names=NAMES)
    commands = [
        ("locate", path, "-i", samples),
        ("compare", path, "-i", samples),
        ("inspect", path, "--layers"),
        ("convert", path, "-c", "fp32_layers.yaml", "--no-engine", "--typed-onnx", "typed.onnx"),
    ]
    for words in commands:
        result = run(*words)
        shown = result.out + result.err
        assert result.status == (1 if words[0] == "compare" else 0), result.err
        assert "\x1b[31mred" not in shown
        assert not {"\x07", "\u202e", "\u2066"} & set(shown)
        assert "n" * 1000 not in shown
        assert "two\nlines" not in shown
        if words[0] != "convert":
            assert "[bold]pow[/bold]" in result.out
    assert ok("inspect", path, "--json").json["layers"][3]["name"] == NAMES[3]
    assert ok("inspect", path, "--json").out.isascii()
    assert read_config(Path("fp32_layers.yaml")).fp32_layers == NAMES[:4]


def test_a_terminal_without_unicode_gets_the_result_all_the_same():
    path, samples = save_overflowing(names=("漢字", "é", "a", "s", "d"))
    result = run_in_process("locate", path, "-i", samples, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert result.status == 0, result.err
    assert "4 of 5 layers stay in FP32" in result.out


# ------------------------------------------------------------------------------------------ names that are CI commands

COMMANDS = ["::stop-commands::tok", "##[add-mask]norm", "##vso[task.complete]", "a" * 90 + "::error::b"]


@pytest.mark.parametrize("variable", ["GITHUB_ACTIONS", "TF_BUILD"])
@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("form", [(), ("--json",)], ids=["table", "json"])
def test_a_layer_whose_name_is_a_command_of_a_ci_runner_starts_none(monkeypatch, variable, name, form):
    monkeypatch.setenv(variable, "true")
    names = (name, *(f"/norm/{op}" for op in ("ReduceMean", "Add", "Sqrt", "Div")))
    path = saved(overflowing(names))
    for words in (
        ("inspect", path),
        ("compare", path),
        ("locate", path, "-o", "plan.yaml"),
        ("convert", "--config", "plan.yaml", "--no-engine", "--typed-onnx", "typed.onnx"),
        ("gate", "--config", "plan.yaml"),
    ):
        found = run(*words, *form)
        commands = [line for line in (found.out + found.err).splitlines() if re.search(r"^\s*::|##(vso)?\[", line)]
        ours = [
            line for line in commands if re.match(r"::(error|warning|notice) file=plan\.yaml,line=\d+,title=", line)
        ]
        assert commands == (ours if words[0] == "gate" and variable == "GITHUB_ACTIONS" else []), words
        if form and words[0] in ("inspect", "locate"):
            assert name in json.dumps(found.json, ensure_ascii=False), "JSON keeps every name as it is"
