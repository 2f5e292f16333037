"""The rooms of the package: which imports are allowed, and what stays light."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

from trt_helper.config.plan_file import read_config

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "trt_helper"
MODULES = sorted(PACKAGE.rglob("*.py"))

# Only these modules import a heavy library.
HEAVY = {
    "onnxruntime": {
        "emulator.kernels",
        "inputs.references",
        "onnx_model.ort_session",
        "runners.ort_child",
        "bench.ort_child",
    },
    "tensorrt_rtx": {"builder.bindings"},
    "torch": {
        "bench.torch_child",
        "cli.export",
        *(f"export.{m}" for m in ("checkpoint", "exporters", "run", "target", "untrusted", "weights")),
    },
    "tensorrt": {"builder.bindings"},
    "vl_convert": {"report.page"},
    "jinja2": {"report.page"},
    "ray": {"runners.ray_cluster"},
}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append(node.module)
            if node.module == "trt_helper":
                found += [f"trt_helper.{alias.name}" for alias in node.names]
    return found


def test_rooms_import_only_rooms_on_lower_floors_and_there_is_no_circle(monkeypatch):
    """The contracts stand in pyproject.toml; `lint-imports` shows what breaks them."""
    monkeypatch.chdir(ROOT)
    assert lint_imports(no_logo=True, no_cache=True) == 0


LIGHT_ROOMS = ("report", "gate/writers", "config", "format", "system")
LIGHT = [path for room in LIGHT_ROOMS for path in sorted((PACKAGE / room).glob("*.py")) if path.stem != "__init__"]
NOT_LIGHT = ("onnx", "onnx_ir", "onnxruntime", "torch", "trt_helper.search.locate")


@pytest.mark.parametrize("path", LIGHT, ids=name_of)
def test_reports_and_ci_writers_import_neither_onnx_nor_the_search(path):
    code = f"import sys, trt_helper.{name_of(path)}; print([name for name in {NOT_LIGHT} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("library", HEAVY)
def test_a_heavy_library_lives_in_its_own_modules(library):
    users = {name_of(path) for path in MODULES if any(i.split(".")[0] == library for i in imports(path))}
    assert users <= HEAVY[library]


def test_the_search_has_never_seen_a_model():
    for path in (PACKAGE / "search" / f"{name}.py" for name in ("strategy", "error_model", "tuning", "budget")):
        outside = {i.split(".")[0] for i in imports(path)} - set(sys.stdlib_module_names)
        assert outside <= {"numpy", "trt_helper"}, path


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, trt_helper; "
        "print(sorted({'onnx', 'onnxruntime', 'torch', 'tensorrt_rtx', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_preset_is_a_config(path):
    config = read_config(path)
    assert path.read_text().startswith("#"), "a preset says what it is for"
    assert config.tolerance.atol >= 0
    assert (path.stem == "example") == bool(config.fp32_layers)


def test_the_readme_begins_with_the_two_commands():
    readme = (ROOT / "README.md").read_text()
    commands = [line.split("#")[0].strip() for line in readme.splitlines() if line.startswith("    ")]
    assert commands[:2] == ["make demo", "make test"]
    targets = subprocess.run(
        ["/usr/bin/env", "make", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for target in ("setup", "demo", "lint", "type", "test", "check", "bench"):
        assert f"make {target} " in targets


TEXTS = sorted([*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "sample_models").glob("*.py"), *ROOT.glob("*.md")])


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_what_benchmarks_and_documents_import_is_there(path):
    """Also in the programs that benchmarks write as text: no type checker reads those."""
    for module, names in re.findall(r"^ *from (trt_helper[\w.]*) import (\w+(?:, \w+)*)", path.read_text(), re.M):
        found = importlib.import_module(module)
        assert not [name for name in names.split(", ") if not hasattr(found, name)]
