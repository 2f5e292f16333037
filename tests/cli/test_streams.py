"""What becomes of a command whose stdout is full, closed or read no further, and of Ctrl-C while it starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.command_line import clean, saved, two_lines

pytestmark = [
    pytest.mark.usefixtures("own_folder"),
    pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here"),
]
COMMAND = [sys.executable, "-m", "trt_helper"]
WORDS = [("inspect", "model.onnx"), ("inspect", "model.onnx", "--json"), ("--help",), ("--version",)]


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_a_full_stdout_is_two_lines_and_status_3(words):
    saved(clean())
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*COMMAND, *words], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert two_lines(done.stderr)[0] == "stdout cannot be written: No space left on device"


@pytest.mark.parametrize("words", WORDS[:2], ids=" ".join)
def test_a_reader_that_stops_reading_is_no_missed_tolerance(words):
    """As a process that SIGPIPE ended: `trt-helper inspect model.onnx | head -1`."""
    saved(clean())
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*COMMAND, *words], stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_closed_stdout_is_no_bug():
    saved(clean())
    command = ["sh", "-c", '"$@" >&-', "sh", *COMMAND, "inspect", "model.onnx"]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("seconds", [0.1, 0.3])
def test_ctrl_c_while_it_starts_is_two_lines_or_a_result(seconds):
    """Before Python has come to the first line of ours it says so itself; that is not waited for here."""
    saved(clean())
    process = subprocess.Popen(
        [*COMMAND, "inspect", "model.onnx"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and not _is_ours(process.pid):
        time.sleep(0.005)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode in (0, 130), said
    assert process.returncode == 0 or two_lines(said)[0] == "interrupted"


def _is_ours(pid: int) -> bool:
    """Whether typer's or onnx's libraries are being loaded: Python itself is up."""
    try:
        return "_json" in Path(f"/proc/{pid}/maps").read_text() or "_typing" in Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return True


def test_a_name_that_is_no_utf8_is_named_as_far_as_it_can_be():
    saved(clean())
    name = os.fsdecode(b"m\xff.onnx")
    Path("model.onnx").rename(name)
    done = subprocess.run([*COMMAND, "inspect", name], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert two_lines(done.stderr)[0] == "m?.onnx: the name of the file is no UTF-8"
