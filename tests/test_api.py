"""The public Python API: what `from trt_helper import ...` gives, and what the README promises of it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import onnx
import pytest
from support import zoo_cases  # noqa: F401 - registers the cases
from support.zoo import CASES

import trt_helper

ROOT = Path(__file__).resolve().parents[1]
CASE = CASES["layernorm_square"]  # the squares pass FP16's largest number, whatever the tolerance


def example() -> str:
    """The Python example of the README."""
    section = (ROOT / "README.md").read_text().split("## From Python\n")[1]
    block = re.match(r"\s*((?:    .*\n|\n)+)", section)
    assert block
    return textwrap.dedent(block[1])


@pytest.mark.parametrize("name", trt_helper.__all__)
def test_every_public_name_can_be_imported_and_is_listed(name):
    assert getattr(trt_helper, name) is not None
    assert name in dir(trt_helper)


def test_an_unknown_name_is_an_attribute_error_that_names_it():
    with pytest.raises(AttributeError, match="lokate"):
        _ = trt_helper.lokate


def test_type_checkers_see_the_same_names():
    stub = ast.parse((ROOT / "trt_helper" / "__init__.pyi").read_text())
    imported = {a.asname or a.name for node in stub.body if isinstance(node, ast.ImportFrom) for a in node.names}
    listed = next(n.value for n in stub.body if isinstance(n, ast.Assign) and n.targets[0].id == "__all__")
    assert set(ast.literal_eval(listed)) == set(trt_helper.__all__)
    assert imported == set(trt_helper.__all__)


def test_nothing_heavy_is_imported_before_it_is_used():
    code = "import sys, trt_helper; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    heavy = {"numpy", "onnx", "onnx_ir", "onnxruntime", "rich", "typer", "yaml"}
    assert not heavy & set(modules)


def test_the_example_of_the_readme_runs_and_needs_one_import_line(tmp_path):
    onnx.save(CASE.make(), tmp_path / "model.onnx")
    (tmp_path / "samples").mkdir()
    for index, feed in enumerate(CASE.samples(0)):
        np.savez(tmp_path / "samples" / f"{index}.npz", **feed)
    assert len(re.findall(r"^(?:from|import) ", example(), re.MULTILINE)) == 1
    run = subprocess.run([sys.executable, "-c", example()], cwd=tmp_path, check=True, capture_output=True, text=True)
    pins = ast.literal_eval(run.stdout[: run.stdout.index(")") + 1])
    assert frozenset(pins) in CASE.culprits
