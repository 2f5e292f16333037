"""What keeps the house small: sizes, layers, and what a file may import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from trt_helper.config.plan_file import read_config

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "trt_helper"
MODULES = sorted(PACKAGE.rglob("*.py"))

# From low to high: a module may import its own row and lower ones.
ROWS = (
    {"", "errors", "values"},
    {"format", "system"},
    {"config"},
    {"onnx_model"},
    {"inputs"},
    {"emulator"},
    {"search", "builder"},
    {"runners"},
    {"gate", "export", "report"},
    {"bench"},
    {"cli", "__main__"},
)
HEAVY = {
    "onnxruntime": {
        "emulator.kernels",
        "inputs.references",
        "onnx_model.ort_session",
        "runners.ort_child",
        "bench.ort_child",
        "system.versions",
    },
    "tensorrt_rtx": {"builder.bindings"},
    "torch": {
        "bench.torch_child",
        "cli.export",
        *(f"export.{m}" for m in ("checkpoint", "exporters", "run", "target", "weights")),
    },
    "tensorrt": {"builder.bindings"},
    "vl_convert": {"report.page"},
    "jinja2": {"report.page"},
    "ray": {"runners.ray_cluster"},
}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


def row_of(name: str) -> int:
    for row, names in enumerate(ROWS):
        if name in names or name.split(".", maxsplit=1)[0] in names - {""}:
            return row
    raise AssertionError(f"trt_helper.{name} is in no row: say where it belongs")


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


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_module_imports_a_higher_row(path):
    here = name_of(path)
    for imported in imports(path):
        if imported.startswith("trt_helper."):
            other = imported.removeprefix("trt_helper.")
            if (PACKAGE / (other.replace(".", "/") + ".py")).is_file() or (PACKAGE / other.replace(".", "/")).is_dir():
                assert row_of(other) <= row_of(here), f"{here} imports {other}"


@pytest.mark.parametrize("library", HEAVY)
def test_a_heavy_library_lives_in_its_own_modules(library):
    users = {name_of(path) for path in MODULES if any(i.split(".")[0] == library for i in imports(path))}
    assert users <= HEAVY[library]


def test_the_search_has_never_seen_a_model():
    for path in (PACKAGE / "search" / f"{name}.py" for name in ("strategy", "error_model")):
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
