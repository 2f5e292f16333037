"""Everything but export works where PyTorch is not installed, and export says how to install it."""

from __future__ import annotations

import numpy as np
import pytest
from support.cli_helpers import Result, clean, in_process, own_folder, save_input, saved, two_lines

WITHOUT = "import sys; sys.modules['torch'] = None; from trt_helper.cli.main import main; main()"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    own_folder(tmp_path, monkeypatch)


def run_without_torch(*words):
    process = in_process(WITHOUT, *words)
    out, err = process.communicate(timeout=60)
    return Result(process.returncode, out, err)


def test_export_says_how_to_install_it():
    save_input("model.pt.npz", x=np.zeros(1, np.float32)).rename("model.pt")
    result = run_without_torch("export", "model.pt", "--model", "net.py:Net", "--input", "x:1x3")
    assert result.status == 3
    assert "PyTorch" in two_lines(result.err)[0]
    assert "pip install 'trt-helper[export]'" in two_lines(result.err)[1]
    assert result.out == ""


def test_help_and_the_other_commands_do_not_need_it():
    assert run_without_torch("export", "--help").status == 0
    assert run_without_torch("inspect", saved(clean())).status == 0
    save_input("x.npz", x=np.ones((1, 4), np.float32))
    assert run_without_torch("locate", "model.onnx", "--inputs", "x.npz").status == 0
