"""What can happen to a build, and where the engine goes."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.builder_models import (
    ROOT,
    built,
    children,
    convs,
    needs_rtx,
    refused,
    relu,
)

from trt_helper import errors
from trt_helper.builder import build as rtx
from trt_helper.builder.build import build
from trt_helper.builder.settings import BuildSettings
from trt_helper.system.child_process import Limits, run

# ------------------------------------------------------------------------- what can happen to a build


@needs_rtx
def test_a_time_limit_ends_the_build(tmp_path):
    error = refused(tmp_path, convs(), errors.BuildError, time_limit=0.01)
    assert "passed the time limit of 0.01 s" in error.message
    assert error.exit_status == 4
    assert not children()


@needs_rtx
def test_a_memory_limit_ends_the_build(tmp_path):
    error = refused(tmp_path, convs(), errors.BuildError, memory_limit=1 << 20)
    assert "MiB of memory, over the limit of 1 MiB" in error.message
    assert not children()


@needs_rtx
@pytest.mark.parametrize(
    ("number", "message", "fix"),
    [
        (signal.SIGKILL, "was killed from outside (SIGKILL)", "memory ran out"),
        (signal.SIGSEGV, "crashed TensorRT-RTX (SIGSEGV)", "optimization level"),
    ],
)
def test_a_builder_that_dies_is_a_build_error(tmp_path, number, message, fix):
    def kill(_phase, _fraction):
        for pid in children():
            os.kill(pid, number)

    slow = convs(channels=256, layers=tuple(f"c{index}" for index in range(16)))
    error = refused(tmp_path, slow, errors.BuildError, on_progress=kill)
    assert message in error.message
    assert re.search(r"model\.onnx \(phase '[A-Z][a-z ]+'\)", error.message)
    assert fix in error.fix
    assert error.exit_status == 4


@needs_rtx
def test_ctrl_c_ends_the_builder_and_leaves_no_file(tmp_path):
    seen = []

    def interrupt(_phase, _fraction):
        seen.extend(os.getsid(pid) for pid in children())
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        built(tmp_path, convs(), on_progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert len(seen) == 1
    assert seen != [os.getsid(0)]  # a session of its own: the terminal's Ctrl-C does not reach it
    assert not children()


@needs_rtx
def test_an_error_of_the_callers_own_comes_back_as_it_is(tmp_path):
    def fail(_phase, _fraction):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        built(tmp_path, convs(), on_progress=fail)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


BUSY_BUILDER = """
settings = BuildSettings()
build(Path("model.onnx"), Path("model.trt"), profiles=[], settings=settings, on_progress=hang)
"""
SILENT_CHILD = """
sys.path.append("modules")
leftover = Path("left.partial")
leftover.touch()
process.run("silent", {}, limits=process.Limits(), on_event=lambda event: hang("", 0.0), leftover=leftover)
"""


@pytest.mark.parametrize("waits", [pytest.param(BUSY_BUILDER, marks=needs_rtx), SILENT_CHILD])
def test_a_killed_parent_takes_the_child_and_its_file_with_it(tmp_path, waits):
    (tmp_path / "model.onnx").write_bytes(convs().SerializeToString())
    (tmp_path / "modules").mkdir()
    silent = "import time\ndef run(request, send):\n    send({'event': 'on'})\n    time.sleep(60)\n"
    (tmp_path / "modules" / "silent.py").write_text(silent)
    head = (
        "import sys, time\nfrom pathlib import Path\n"
        "from trt_helper.builder.build import build\nfrom trt_helper.builder.settings import BuildSettings\n"
        "from trt_helper.system import child_process as process\n"
        "def hang(phase, fraction):\n    print('waiting', flush=True)\n    time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", head + waits],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"waiting\n"
    started = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 10
    while any(tmp_path.glob("*.partial")) or any(tmp_path.glob(".*.partial")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert len(started) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "modules"]


def test_a_bug_in_the_child_comes_back_with_its_traceback(tmp_path):
    with pytest.raises(RuntimeError, match=r"(?s)Traceback.*has no attribute 'run'"):
        run("string", {}, limits=Limits(), on_event=print, leftover=tmp_path / "none")


# ------------------------------------------------------------------------------- where the engine goes


@needs_rtx
@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("nowhere/model.trt", "No such file or directory"),
        ("model.onnx/model.trt", "Not a directory"),
        ("/proc/model.trt", "cannot be written"),
    ],
)
def test_a_folder_that_cannot_be_written_is_refused_before_the_build(tmp_path, out, message):
    path = tmp_path / "model.onnx"
    path.write_bytes(relu().SerializeToString())
    told = []
    with pytest.raises(errors.OutputError, match=message) as caught:
        build(
            path,
            tmp_path / out,
            profiles=[],
            settings=BuildSettings(),
            on_progress=lambda phase, _fraction: told.append(phase),
        )
    assert told == []
    assert caught.value.exit_status == 3


@needs_rtx
def test_an_engine_never_replaces_a_folder_or_its_model(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(relu().SerializeToString())
    with pytest.raises(errors.OutputError, match="is a folder"):
        build(path, tmp_path, profiles=[], settings=BuildSettings())
    with pytest.raises(errors.OutputError, match="would overwrite the model"):
        build(path, path, profiles=[], settings=BuildSettings())


@needs_rtx
def test_a_file_that_cannot_be_finished_is_an_output_error(tmp_path):
    """A limit on file size stands for the full disk: the write fails half way."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    (tmp_path / "model.onnx").write_bytes(relu().SerializeToString())
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(errors.OutputError, match=r"model\.trt cannot be written: File too large"):
            built(tmp_path, relu())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_a_machine_without_tensorrt_rtx_is_told_the_pip_command(tmp_path, monkeypatch):
    monkeypatch.setattr(rtx, "find_spec", lambda _name: None)
    with pytest.raises(errors.MachineError) as caught:
        built(tmp_path, relu())
    assert caught.value.message == "TensorRT-RTX is not installed"
    assert caught.value.fix == "pip install 'trt-helper[rtx]'"


def test_a_tensorrt_rtx_that_cannot_be_loaded_is_a_machine_error(tmp_path, monkeypatch):
    broken = tmp_path / "packages" / "tensorrt_rtx"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('libcudart.so.13: no such file')\n")
    monkeypatch.syspath_prepend(str(broken.parent))
    with pytest.raises(errors.MachineError, match=r"cannot be loaded: ImportError: libcudart\.so\.13"):
        built(tmp_path, relu())
    assert not (tmp_path / "model.trt").exists()


def test_importing_the_builder_imports_nothing_heavy():
    code = "import sys, trt_helper.builder; print(*{'tensorrt_rtx', 'onnx', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
