"""The array store: arrays beyond its limit go into a file, stay what they were, and a search finds the same."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from support.command_line import run
from support.overflowing_models import overflowing_norm

from trt_helper.emulator.emulator import Emulator
from trt_helper.inputs.sample import Sample
from trt_helper.onnx_model.graph import read_graph
from trt_helper.onnx_model.load import load
from trt_helper.search.locate import locate
from trt_helper.system import array_store
from trt_helper.system.array_store import ArrayStore, available, resident
from trt_helper.values import Plan, Tolerance

MIB = 1 << 20
kinds = st.sampled_from([np.float32, np.float16, np.float64, np.int64, np.int8, np.bool_, np.uint16])
arrays = hnp.arrays(kinds, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))


@settings(max_examples=60, deadline=None)
@given(st.lists(arrays, max_size=12), st.integers(0, 400), st.booleans())
def test_what_is_held_is_what_was_given_in_memory_and_in_the_file(given_arrays, room, turned):
    store = ArrayStore(room)
    sources = [array.T if turned else array for array in given_arrays]
    held = [store.keep(array) for array in sources]
    for array, kept in zip(sources, held, strict=True):
        assert (kept.dtype, kept.shape) == (array.dtype, array.shape)
        assert kept.tobytes() == array.tobytes()
        assert kept is array or kept.ctypes.data % 64 == 0


def test_beyond_the_room_memory_does_not_grow(tmp_path):
    warned = []
    store = ArrayStore(8 * MIB, tmp_path, warned.append)
    before = resident()
    held = [store.keep(np.full((256, 1024), index, np.float32)) for index in range(200)]  # 200 MiB
    assert resident() - before < 40 * MIB
    assert [int(array[7, 7]) for array in held] == list(range(200))
    assert warned == [f"more than fits into memory is kept in a file in {tmp_path}"]
    assert list(tmp_path.iterdir()) == []


def opened(folder: Path) -> list[int]:
    """The size of the file in that folder, once for each descriptor that this process holds of it."""
    sizes = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # that of the listing itself is gone
            if str(folder) in str(link.readlink()):
                sizes.append(link.stat().st_size)
    return sizes


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc here")
@pytest.mark.parametrize("sizes", [(1,), (3, 1), (60, 5), (70,), (700, 2, 9)])
def test_the_file_is_little_larger_than_what_it_holds_and_open_a_few_times(sizes, tmp_path, monkeypatch):
    monkeypatch.setattr(array_store, "BLOCK", 64 << 10)
    store = ArrayStore(0, tmp_path)
    held = [store.keep(np.full(size << 10, index, np.uint8)) for index in range(200) for size in sizes]
    of_all = sum(array.nbytes for array in held)
    assert all(array[0] == array[-1] for array in held)
    assert len(opened(tmp_path)) < 80  # 200 for those of 70 KiB if each had its own
    assert of_all <= max(opened(tmp_path)) < 1.2 * of_all + 2 * array_store.BLOCK


def test_what_has_no_bytes_of_its_own_stays_where_it_is(tmp_path):
    store = ArrayStore(0, tmp_path)
    for array in (np.array(["text", "longer"], dtype=object), np.empty((0, 3), np.float32)):
        assert store.keep(array) is array
    assert opened(tmp_path) == []


def test_what_is_in_the_file_cannot_be_written_over(tmp_path):
    kept = ArrayStore(0, tmp_path).keep(np.ones(3))
    with pytest.raises(ValueError, match="read-only"):
        kept[0] = 2.0


def test_a_part_leaves_the_room_as_it_was_and_warns_of_nothing_twice(tmp_path):
    warned = []
    store = ArrayStore(MIB, tmp_path, warned.append)
    array = np.zeros(MIB, np.uint8)
    for _ in range(3):
        assert store.part().keep(array) is array
    assert store.keep(array) is array
    assert store.part().keep(array) is not array
    assert store.keep(array) is not array
    assert len(warned) == 1


def test_what_is_reserved_is_no_room_for_others():
    store = ArrayStore(100)
    assert store.reserve(30) == 30
    assert store.reserve(300) == 35
    small = np.zeros(35, np.uint8)
    assert store.keep(small) is small
    assert store.keep(small) is not small


def test_a_limit_counts_what_the_process_has_already():
    array = np.zeros(MIB, np.uint8)
    assert ArrayStore.within(resident() + 64 * MIB).keep(array) is array
    assert ArrayStore.within(1).keep(array) is not array


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="no /proc here")
def test_what_is_free_is_no_more_than_the_machine_has():
    assert 0 < resident() < available() < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    path = tmp_path_factory.mktemp("memory") / "model.onnx"
    overflowing_norm(path, width=32, depth=6)
    rng = np.random.default_rng(1)
    feeds = [{"x": rng.standard_normal((64, 32)).astype(np.float32)} for _ in range(5)]
    return path, [Sample(str(index), feed) for index, feed in enumerate(feeds)]


def test_a_search_without_any_room_finds_the_same(task, tmp_path):
    path, samples = task
    warned = []
    found = [
        locate(read_graph(load(path)), samples, Tolerance(0.05, 0.0), store=store)
        for store in (ArrayStore(1 << 40), ArrayStore(0, tmp_path, warned.append))
    ]
    assert len(warned) == 1
    assert found[0].pins == found[1].pins == ("square", "mean", "root")
    assert [(trial.plan, trial.error_ratio) for trial in found[0].trials] == [
        (trial.plan, trial.error_ratio) for trial in found[1].trials
    ]
    assert list(tmp_path.iterdir()) == []


def test_rounded_weights_go_into_the_file_too(task, tmp_path):
    path, samples = task
    warned = []
    plain, small = (
        Emulator(read_graph(load(path))),
        Emulator(read_graph(load(path)), ArrayStore(0, tmp_path, warned.append)),
    )
    (expected,), (found,) = (emulator.run(Plan(), samples[0].feed).values() for emulator in (plain, small))
    assert len(warned) == 1
    assert np.array_equal(expected, found, equal_nan=True)


def command(path: Path, inputs: Path, *more: str, limits: dict[int, int]) -> subprocess.CompletedProcess[str]:
    def limit() -> None:
        for kind, size in limits.items():
            resource.setrlimit(kind, (size, size))

    words = ["locate", str(path), "--inputs", str(inputs), "--atol", "0.05", "--rtol", "0", *more]
    return subprocess.run(
        [sys.executable, "-m", "trt_helper", *words],
        capture_output=True,
        text=True,
        cwd=inputs.parent,
        preexec_fn=limit,
        check=False,
    )


def test_the_command_keeps_everything_in_one_store_of_the_limit_that_was_given(task, tmp_path, monkeypatch):
    path, samples = task
    np.savez(tmp_path / "x.npz", **samples[0].feed)
    limits = []
    whole = ArrayStore.within.__func__

    def within(limit=None, folder=None, **how):
        limits.append(limit)
        return whole(ArrayStore, limit, folder, **how)

    monkeypatch.setattr(ArrayStore, "within", within)
    words = ("--atol", "0.05", "--rtol", "0", "-o", tmp_path / "plan.yaml", "--memory-limit", "300")
    assert run("locate", path, "--inputs", tmp_path / "x.npz", *words).status == 0
    assert limits == [300 * MIB]


def test_a_full_disk_is_said_and_leaves_nothing(task, tmp_path):
    path, samples = task
    np.savez(tmp_path / "x.npz", **samples[0].feed)
    done = command(path, tmp_path / "x.npz", "--memory-limit", "1", limits={resource.RLIMIT_FSIZE: MIB})
    assert done.returncode == 3
    lines = done.stderr.splitlines()
    assert lines[-2].startswith(f"error: no room in {tmp_path} for what does not fit into memory: ")
    assert "--memory-limit" in lines[-1]
    assert [file.name for file in tmp_path.iterdir()] == ["x.npz"]
