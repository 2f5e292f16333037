"""Work in a child process: it ends with its parent, and its bugs come back with their traceback."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.builder_models import ROOT, convs, needs_rtx

from trt_helper.system.child_process import Limits, run

BUSY_BUILDER = """
settings = BuildSettings()
build(Path("model.onnx"), Path("model.trt"), profiles=[], settings=settings, on_progress=hang)
"""


SILENT_CHILD = """
sys.path.append("modules")
leftover = Path("left.partial")
leftover.touch()
child_process.run("silent", {}, limits=child_process.Limits(), on_event=lambda event: hang("", 0.0), leftover=leftover)
"""


@pytest.mark.parametrize(
    "waits", [pytest.param(BUSY_BUILDER, marks=needs_rtx), SILENT_CHILD], ids=["building", "silent"]
)
def test_a_killed_parent_takes_the_child_and_its_file_with_it(tmp_path, waits):
    (tmp_path / "model.onnx").write_bytes(convs().SerializeToString())
    (tmp_path / "modules").mkdir()
    silent = "import time\ndef run(request, send):\n    send({'event': 'on'})\n    time.sleep(60)\n"
    (tmp_path / "modules" / "silent.py").write_text(silent)
    head = (
        "import sys, time\nfrom pathlib import Path\n"
        "from trt_helper.builder.build import build\nfrom trt_helper.builder.settings import BuildSettings\n"
        "from trt_helper.system import child_process\n"
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
