"""What all commands share: help, the version, bugs, too little memory, pipes, and what is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from support.command_line import (
    MAIN,
    clean,
    in_process,
    misused,
    ok,
    refused,
    run,
    run_in_process,
    save_input,
    saved,
    two_lines,
)

import trt_helper
from trt_helper.cli.main import app
from trt_helper.system import machine

COMMANDS = sorted(typer.main.get_command(app).commands)


HEAVY = ["onnxruntime", "onnx", "onnx_ir", "onnxscript", "torch", "tensorrt", "tensorrt_rtx", "polygraphy", "numpy"]


pytestmark = pytest.mark.usefixtures("own_folder")


# ----------------------------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("words", [(), *[(name,) for name in COMMANDS]], ids=lambda words: " ".join(words) or "app")
def test_help_fits_a_screen(monkeypatch, words):
    monkeypatch.setenv("COLUMNS", "80")
    for option in ("--help", "-h"):
        lines = ok(*words, option).out.splitlines()
        assert 5 < len(lines) <= 40
        assert max(map(len, lines)) <= 80
    assert lines[0].startswith("Usage: trt-helper " + " ".join(words))


def test_help_lists_every_command_and_the_exit_statuses():
    shown = ok("--help").out
    assert all(f"\n  {name} " in shown for name in COMMANDS)
    assert all(f"{status} " in shown for status in (0, 1, 2, 3, 4, 5, 70, 130))


def test_version_is_one_line():
    assert ok("--version").out == f"trt-helper {trt_helper.__version__}\n"


def test_a_command_that_is_misspelt_is_a_usage_error():
    misused("locte", "model.onnx", says="No such command 'locte'. Did you mean 'locate'?")
    assert run().status == 2


@pytest.mark.parametrize("words", [("--help",), ("--version",), ("doctor", "--help"), ("locate", "--help")])
def test_help_imports_nothing_heavy(words):
    """Half a second is what a user notices; each of these libraries alone takes a good part of it."""
    code = (
        "import sys\nfrom trt_helper.cli.main import main\ntry:\n    main()\nexcept SystemExit as end:\n"
        f"    sys.stderr.write(' '.join(name for name in {HEAVY} if name in sys.modules))\n    raise\n"
    )
    process = in_process(code, *words)
    _, imported = process.communicate(timeout=30)
    assert process.returncode == 0
    assert imported == ""


def test_the_module_runs_as_the_command_does():
    words = [sys.executable, "-m", "trt_helper", "--version"]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout == ok("--version").out


# --------------------------------------------------------------------------------------------------------------- errors


def test_an_error_of_ten_thousand_characters_is_cut():
    saved(clean())
    Path("plan.yaml").write_text(f"FP32_LAYERS_FOR_FP16: [{'n' * 10_000}]")
    result = refused("compare", "model.onnx", "-c", "plan.yaml", says="the model has no layer named 'nnn")
    assert len(result.err) < 1500


def test_a_bug_shows_its_traceback_and_ends_with_70(monkeypatch):
    def broken():
        raise RuntimeError("not meant to be")

    monkeypatch.setattr(machine, "abilities", broken)
    result = run("doctor")
    assert (result.status, result.out) == (70, "")
    assert "RuntimeError: not meant to be" in result.err
    assert result.err.endswith("error: this is a bug in trt-helper\n  fix: please report it with the lines above\n")


def test_too_little_memory_is_no_bug(monkeypatch):
    def greedy():
        raise MemoryError

    monkeypatch.setattr(machine, "abilities", greedy)
    refused("doctor", says="out of memory", fix="fewer or smaller samples")


def test_a_data_loader_that_is_interrupted_is_told_in_two_lines():
    saved(clean())
    Path("feed.py").write_text("def load_data():\n    raise KeyboardInterrupt\n")
    result = run("compare", "model.onnx", "--data-loader-script", "feed.py")
    assert result.status == 130
    assert two_lines(result.err) == ("interrupted", "run the same command again")


# ---------------------------------------------------------------------------------------------------------- the process


def test_a_reader_that_leaves_early_gets_no_traceback():
    saved(clean())
    reading, writing = os.pipe()
    os.close(reading)
    words = [sys.executable, "-c", MAIN, "inspect", "model.onnx", "--json"]
    result = subprocess.run(words, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert result.returncode != 70
    assert "Traceback" not in result.stderr
    assert "bug" not in result.stderr


def test_nothing_is_sent_away_and_no_temporary_file_stays(tmp_path):
    """ONNX Runtime 1.29 and later report the model's name and hashes, and keep a session file, unless told not to."""
    saved(clean(batch=1))
    save_input("x.npz", x=np.ones((1, 4), np.float32))
    result = run_in_process("locate", "model.onnx", "-i", "x.npz")
    assert result.status == 0, result.err
    assert list((tmp_path / "temporary").iterdir()) == []
