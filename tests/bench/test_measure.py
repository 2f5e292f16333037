"""Measuring in child processes: streams, batches, and children that die."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.command_line import clean, save_input, saved
from support.onnx_parts import constant, model, node, value

from trt_helper.bench import backends, measure
from trt_helper.bench.measure import Timing, batches
from trt_helper.errors import InputError, RunError
from trt_helper.inputs.samples import load_samples
from trt_helper.onnx_model.graph import read_graph
from trt_helper.onnx_model.load import load
from trt_helper.values import Plan

pytestmark = pytest.mark.usefixtures("own_folder")


def graph_of(path):
    return read_graph(load(path))


def test_streams_of_onnx_runtime_run_at_the_same_time():
    """A product of some ten milliseconds: the second thread begins long before the first is done."""
    saved(
        model(
            [node("MatMul", ["x", "w"], ["h"], "a"), node("MatMul", ["h", "w"], ["y"], "b")],
            [value("x", [900, 900])],
            [value("y", [900, 900])],
            [constant("w", np.eye(900, dtype=np.float32))],
        )
    )
    graph = graph_of(Path("model.onnx"))
    samples = batches(graph, load_samples(graph, [])[0])
    found = measure.measure(graph, Plan(), samples, Timing(repeats=6, warm_up=1, streams=2)).measured[0]
    assert (found.runner, found.streams, found.at_once) == ("onnxruntime", 2, 2)


def test_a_process_that_dies_is_an_error_with_the_way_it_died(monkeypatch, tmp_path):
    (tmp_path / "dying.py").write_text(
        "import os, signal\ndef run(request, send):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    graph = graph_of(saved(clean()))
    backend = backends.Backend(
        "a backend", "onnxruntime", "fp32", "dying", lambda _folder, _building: {}, requested=True
    )
    monkeypatch.setattr(measure, "backends", lambda *_: ([backend], []))
    samples = batches(graph, load_samples(graph, [])[0], [8])
    with pytest.raises(RunError, match=r"a backend, batch 8 ended its process \(SIGKILL\)"):
        measure.measure(graph, Plan(), samples, Timing(repeats=1))
    monkeypatch.setattr(measure, "backends", lambda *_: ([replace(backend, requested=False)], []))
    (lost,) = measure.measure(graph, Plan(), samples, Timing(repeats=1)).not_run
    assert lost.what == "a backend"


# -------------------------------------------------------------------------------------------------------------- batches


def test_every_batch_is_really_fed(monkeypatch):
    """`clean` answers with as many rows as it was given."""
    graph, rows = graph_of(saved(clean())), []
    started = measure.run

    def watched(module, request, **how):
        found = started(module, request, **how)
        with np.load(Path(request["folder"]) / "out.npz") as out:
            rows.append((module.rpartition(".")[2], out["arr_0"].shape))
        return found

    monkeypatch.setattr(measure, "run", watched)
    samples = batches(graph, load_samples(graph, [])[0], [3, 1, 32])
    found = measure.measure(graph, Plan(), samples, Timing(repeats=2, warm_up=0))
    assert rows == [(child, (size, 4)) for child in ("ort_child", "emulate_child") for size in (3, 1, 32)]
    assert [one.batch for one in found.measured] == [3, 1, 32, 3, 1, 32]
    for one in found.measured:
        assert one.samples_per_second == pytest.approx(one.throughput * one.batch)


def test_the_batch_is_followed_by_its_name_and_keeps_the_values():
    path = saved(
        model(
            [node("Add", ["x", "s"], ["y"], "add")],
            [value("x", ["n", 2]), value("s", [1, "n", 2]), value("fixed", [5])],
            [value("y", [1, "n", 2])],
        )
    )
    graph = graph_of(path)
    real = save_input("x.npz", x=np.float32([[1, 2], [3, 4]]), s=np.zeros([1, 2, 2], np.float32), fixed=np.ones(5, "f"))
    (sample,) = load_samples(graph, [real])
    assert list(batches(graph, sample)) == [2]
    found = batches(graph, sample, [1, 5])
    assert [one.shapes for one in found.values()] == [
        {"x": (size, 2), "s": (1, size, 2), "fixed": (5,)} for size in (1, 5)
    ]
    np.testing.assert_array_equal(found[5].feed["x"], np.float32([[1, 2], [3, 4], [1, 2], [3, 4], [1, 2]]))


def test_a_batch_that_the_model_cannot_take_is_named():
    """The first dimension is dynamic by its name; a constant of three rows inside fixes it all the same."""
    saved(
        model(
            [node("Add", ["x", "c"], ["y"], "add")],
            [value("x", ["b", 4])],
            [value("y", ["b", 4])],
            [constant("c", np.ones([3, 4], np.float32))],
        )
    )
    graph = graph_of(Path("model.onnx"))
    samples = batches(graph, load_samples(graph, [])[0], [3, 2])
    with pytest.raises(InputError, match=r"does not run on random \(seed 0\) at batch 2"):
        measure.measure(graph, Plan(), samples, Timing(repeats=1))
