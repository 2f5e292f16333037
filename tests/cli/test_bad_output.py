"""Places that cannot be written, or must not be: two lines, status 3, and what was there is still there."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from support.command_line import (
    clean,
    everything,
    full_disk,
    refused,
    run,
    save_input,
    save_overflowing,
    saved,
    two_lines,
)

pytestmark = pytest.mark.usefixtures("own_folder")


PLAN = ("locate", "model.onnx", "-o")
TYPED = ("convert", "model.onnx", "--no-engine", "--typed-onnx")
ENGINE = ("convert", "model.onnx", "-o")


@pytest.mark.parametrize("command", [PLAN, TYPED, ENGINE])
def test_an_output_that_cannot_be_is_refused_before_the_work(command):
    saved(clean())
    Path("file").write_text("")
    Path("folder").mkdir()
    refused(*command, "file/out", says="file/out cannot be written: Not a directory", fix="choose another place")
    refused(*command, "folder", says="folder is a folder", fix="the name of a file")
    Path("folder/out").mkdir()
    refused(*command, "folder/out", says="folder/out is a folder")
    refused(*command, "n" * 300, says="cannot be written: File name too long")


@pytest.mark.parametrize("command", [PLAN, TYPED, ENGINE])
def test_a_device_or_pipe_is_not_replaced_by_a_file(command):
    saved(clean())
    os.mkfifo("../pipe")
    refused(*command, "../pipe", says="../pipe is not a regular file")
    assert Path("../pipe").is_fifo()


@pytest.mark.parametrize("command", [PLAN, TYPED, ENGINE])
def test_the_users_model_is_never_overwritten(command):
    saved(clean())
    Path("link.onnx").symlink_to("model.onnx")
    for name in ("model.onnx", "./model.onnx", "link.onnx"):
        refused(*command, name, says=f"{Path(name)} is what the result is made from", fix="the name of another file")


def test_samples_and_configs_are_never_overwritten():
    saved(clean())
    save_input("s.npz", x=np.ones((2, 4), np.float32))
    Path("plan.yaml").write_text("model: model.onnx")
    refused("locate", "model.onnx", "-i", "s.npz", "-o", "s.npz", says="s.npz is what the result is made from")
    refused("convert", "-c", "plan.yaml", "-o", "plan.yaml", says="plan.yaml is what the result is made from")


def test_a_missing_model_leaves_no_folder_for_the_output():
    refused("locate", "missing.onnx", "-o", "new/folder/plan.yaml", says="missing.onnx does not exist")
    refused("convert", "missing.onnx", "-o", "new/folder/m.trt", says="missing.onnx does not exist")


@pytest.mark.parametrize(
    ("command", "limit"), [((*PLAN, "out"), 200), ((*TYPED, "out"), 200)], ids=["plan", "typed model"]
)
def test_a_full_disk_leaves_the_old_output_as_it_was(command, limit):
    save_overflowing()
    Path("out").write_text("old")
    before = everything()
    with full_disk(limit):
        result = run(*command, *(("-i", "x.npz") if command[0] == "locate" else ()))
    assert result.status == 3
    error, remedy = two_lines(result.err)
    assert error in ("out cannot be written: File too large", "out.journal cannot be written: File too large")
    assert "make room" in remedy
    assert everything() == before


@pytest.mark.parametrize("command", [(*PLAN, "out", "-i", "x.npz"), (*TYPED, "out")], ids=["plan", "typed model"])
def test_an_output_appears_whole_under_its_name_or_not_at_all(monkeypatch, command):
    """Everything is written elsewhere first: when the last step fails, the old file is still there."""

    def full(_path, target):
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    save_overflowing()
    Path("out").write_text("old")
    before = everything()
    monkeypatch.setattr(Path, "replace", full)
    result = run(*command)
    assert result.status == 3
    assert two_lines(result.err)[0] == "out cannot be written: No space left on device"
    assert {name: data for name, data in everything().items() if name != "out.journal"} == before


def test_an_engine_whose_proof_cannot_be_written_is_not_begun():
    saved(clean())
    Path("m.trt.json").mkdir()
    refused("convert", "model.onnx", "-o", "m.trt", says="m.trt.json is a folder")
