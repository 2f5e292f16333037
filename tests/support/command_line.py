"""What the command-line tests share: small models, a way to run a command, and what an error must look like."""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
import pytest

from support.onnx_parts import constant, model, node, value
from trt_helper.cli.main import main

needs_rtx = pytest.mark.skipif(
    find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed: pip install 'trt-helper[rtx]'"
)
PINS = ["/norm/Pow", "/norm/ReduceMean", "/norm/Add", "/norm/Sqrt"]  # what `overflowing` must keep in FP32


# ---------------------------------------------------------------------------------------------- models


def saved(proto, name="model.onnx"):
    """Write the model into the working folder; returns its path."""
    Path(name).write_bytes(proto.SerializeToString())
    return Path(name)


def clean(batch="b"):
    """Two layers that FP16 computes well: `dense` and `act`."""
    return model(
        [node("MatMul", ["x", "w"], ["h"], "dense"), node("Relu", ["h"], ["y"], "act")],
        [value("x", [batch, 4])],
        [value("y", [batch, 4])],
        [constant("w", np.eye(4, dtype=np.float32))],
    )


def overflowing(names=("/norm/Pow", "/norm/ReduceMean", "/norm/Add", "/norm/Sqrt", "/norm/Div")):
    """x / sqrt(mean(x^2) + eps). At |x| = 300 the square is 90000, which no half holds.

    The square is written or read by every layer but the last, so these four must be FP32. The root,
    300 again, and the quotient, 1, are halves: with the four pins FP16 is exact.
    """
    square, mean, add, root, div = names
    return model(
        [
            node("Pow", ["x", "two"], ["square"], square),
            node("ReduceMean", ["square"], ["mean"], mean, axes=[-1], keepdims=1),
            node("Add", ["mean", "eps"], ["shifted"], add),
            node("Sqrt", ["shifted"], ["root"], root),
            node("Div", ["x", "root"], ["y"], div),
        ],
        [value("x", ["b", 8])],
        [value("y", ["b", 8])],
        [constant("two", np.float32(2)), constant("eps", np.float32(1e-5))],
    )


def save_overflowing(*, batch=1, names=None):
    """Write `overflowing` and an input that makes it overflow; returns both paths."""
    save_input("x.npz", x=np.tile(np.float32([300, -300] * 4), (batch, 1)))
    return saved(overflowing(names) if names else overflowing()), Path("x.npz")


def save_input(name, **arrays):
    """Write an .npz with these arrays; returns its path."""
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    np.savez(name, **arrays)
    return Path(name)


# ------------------------------------------------------------------------------------------------- runs


@dataclass(frozen=True)
class Result:
    status: int
    out: str
    err: str

    @property
    def json(self):
        """stdout, which must be one strict JSON object and nothing else."""
        found = json.loads(self.out, parse_constant=_not_json)
        assert isinstance(found, dict)
        return found

    @property
    def warnings(self):
        return [line for line in self.err.splitlines() if line.startswith("warning: ")]


def _not_json(word):
    raise AssertionError(f"{word} is not strict JSON")


def run(*words):
    """Run `trt-helper WORDS` in this process."""
    out, err = io.StringIO(), io.StringIO()
    argv = ["trt-helper", *map(str, words)]
    with mock.patch.object(sys, "argv", argv), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
            status = 0
        except SystemExit as end:
            status = end.code
    return Result(status, out.getvalue(), err.getvalue())


def in_process(code, *words, **environment):
    """Start `python -c CODE WORDS` as a process of its own, in the working folder."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": tempfile.gettempdir(), **environment},
    )


MAIN = "from trt_helper.cli.main import main; main()"


def run_in_process(*words, **environment):
    """Run `trt-helper WORDS` as a process of its own."""
    process = in_process(MAIN, *words, **environment)
    out, err = process.communicate(timeout=60)
    return Result(process.returncode, out, err)


def ok(*words, status=0):
    """Run a command that must end with `status`."""
    result = run(*words)
    assert result.status == status, result.err
    return result


def own_folder(tmp_path, monkeypatch):
    """Work in a folder of its own, with a folder of its own for temporary files: both can be looked through."""
    (tmp_path / "work").mkdir()
    (tmp_path / "temporary").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))


# ----------------------------------------------------------------------------------------------- errors


def everything(folder="."):
    """Every file under `folder` with its content, hidden ones and folders included."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(Path(folder).rglob("*"))}


@contextlib.contextmanager
def nothing_written() -> Iterator[None]:
    """The working folder and the temporary files are the same before and after."""
    before = everything(), everything(tempfile.gettempdir())
    yield
    assert (everything(), everything(tempfile.gettempdir())) == before


@contextlib.contextmanager
def full_disk(limit):
    """No file can grow beyond `limit` bytes, in this process and in its children: writing fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with mock.patch.object(sys, "dont_write_bytecode", True):  # Python would keep a module that was cut off
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def two_lines(err):
    """The two lines of an error, warnings before it left out."""
    lines = [line for line in err.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == 2, err
    assert lines[0].startswith("error: "), err
    assert lines[1].startswith("  fix: "), err
    assert all(len(line) > len("error: ") and line.isprintable() for line in lines), err
    return lines[0].removeprefix("error: "), lines[1].removeprefix("  fix: ")


def refused(*words, says, fix="", status=3):
    """Run a command that must end in two lines that say this, and must leave nothing behind."""
    with nothing_written():
        result = run(*words)
    assert result.status == status, result
    error, remedy = two_lines(result.err)
    assert says in error
    assert fix in remedy
    assert result.out == ""
    return result


def misused(*words, says):
    """Run a command that must be a usage error."""
    with nothing_written():
        result = run(*words)
    assert result.status == 2, result
    assert result.err.startswith("Usage: trt-helper ")
    assert f"Error: {says}" in result.err
    assert "Traceback" not in result.err
    assert result.out == ""


def checked(path):
    """Read a model that must be sound to the last type."""
    onnx.checker.check_model(str(path), full_check=True)
    return onnx.load(path)
