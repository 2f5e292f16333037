"""The cache of references that `gate` keeps: used where it is right, made again where it is not, and bounded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.command_line import save_input
from support.gate_models import gate, write_model

pytestmark = pytest.mark.usefixtures("gate_project")


def test_references_come_from_the_cache(tmp_path):
    gate()
    (file,) = (tmp_path / "cache").glob("*.npz")
    with np.load(file) as archive:
        wrong = {name: array + 1 for name, array in archive.items()}
    np.savez(file, **wrong)
    assert gate(status=1)["outputs"]["y"]["max"] == pytest.approx(1, abs=0.01)


def test_other_inputs_and_other_models_have_other_references(tmp_path):
    gate()
    gate("--inputs", "samples/0.npz")
    write_model(retrained=0.01)
    gate("--no-check-pins")
    assert len(list((tmp_path / "cache").glob("*.npz"))) == 3


@pytest.mark.parametrize(
    "damage", [lambda _data: b"", lambda data: data[: len(data) // 2], lambda data: b"x" * len(data)]
)
def test_a_damaged_cache_is_made_again(tmp_path, damage):
    write_model(gain=3.0)
    first = gate()
    files = list((tmp_path / "cache").iterdir())
    assert {file.suffix for file in files} == {".npz", ".json"}
    for file in files:
        file.write_bytes(damage(file.read_bytes()))
    assert gate() == first


@pytest.mark.parametrize("inside", [True, False], ids=["in the checkout", "outside"])
def test_a_cache_that_a_commit_could_fill_is_not_used(tmp_path, inside):
    """A poisoned entry makes any plan look right: here it makes a right one look wrong."""
    first = gate()
    (file,) = (tmp_path / "cache").glob("*.npz")
    with np.load(file) as archive:
        np.savez(file, **{name: array + 1 for name, array in archive.items()})
    if inside:
        (tmp_path / ".git").mkdir()
        assert gate() == first
    else:
        assert gate(status=1)["outputs"]["y"]["max"] == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    "other",
    [
        lambda arrays: {name: array[..., :-1] for name, array in arrays.items()},
        lambda arrays: {name: array.astype(np.float64) for name, array in arrays.items()},
        lambda arrays: {**arrays, "9.9": np.zeros(1)},
        lambda arrays: {f"1{name}": array for name, array in arrays.items()},
    ],
    ids=["shape", "dtype", "one more", "names"],
)
def test_an_entry_that_cannot_be_the_outputs_is_computed_again(tmp_path, other):
    first = gate()
    (file,) = (tmp_path / "cache").glob("*.npz")
    with np.load(file) as archive:
        arrays = {name: archive[name] for name in archive.files}
    np.savez(file, **other(arrays))
    assert gate() == first


def test_a_user_without_a_home_has_no_cache_and_no_error(monkeypatch):
    monkeypatch.delenv("TRT_HELPER_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    gate()


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(tmp_path):
    (tmp_path / "cache").write_text("a file in its place")
    gate()


def test_the_cache_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("trt_helper.inputs.cache.LARGEST_CACHE", 600)
    for name in range(3):
        save_input("other.npz", x=np.full((1, 16), 1 + name, np.float32))
        gate("--inputs", "other.npz", "--no-check-pins")
    files = list((tmp_path / "cache").iterdir())
    assert 1 <= len(files) < 3
    assert sum(file.stat().st_size for file in files) <= 600
