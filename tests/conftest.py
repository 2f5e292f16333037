"""Small models, records and projects that many tests share, made once per session."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from support.command_line import own_folder as enter_own_folder
from support.gate_models import write_project
from support.model_cases import MODELS, ModelCase, save_case
from support.report_records import clean_record, overflowing_record


def pytest_configure() -> None:
    """Let Ctrl-C reach what the tests start: a shell lets its background jobs, and all that they start, ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def model_case(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ModelCase]:
    """The model of that name out of `MODELS`, written when first requested."""
    made: dict[str, ModelCase] = {}

    def of(name: str) -> ModelCase:
        if name not in made:
            made[name] = save_case(MODELS[name](), tmp_path_factory.mktemp(name))
        return made[name]

    return of


@pytest.fixture(scope="session")
def located_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project of `gate_models` as `locate` leaves it, made once."""
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_project()
    return folder


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder."""
    enter_own_folder(tmp_path, monkeypatch)


@pytest.fixture
def gate_project(located_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a copy of that project, with a cache of its own and on no CI machine."""
    enter_own_folder(tmp_path, monkeypatch)
    shutil.copytree(located_project, ".", dirs_exist_ok=True)
    monkeypatch.setenv("TRT_HELPER_CACHE", str(tmp_path / "cache"))
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def run_records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The record of a run with pins, and of one without; made once, to be read only."""
    folder = tmp_path_factory.mktemp("records")
    return {"pins": overflowing_record(folder / "pins"), "clean": clean_record(folder / "clean")}


@pytest.fixture
def export_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder with the network of `export_cases`, which needs PyTorch, and leave no bytecode in it."""
    from support.export_cases import source  # noqa: PLC0415 - optional

    enter_own_folder(tmp_path, monkeypatch)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    source()
