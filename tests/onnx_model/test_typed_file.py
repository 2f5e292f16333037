"""The typed model as a file: its weights, where they are stored, and what is refused."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper
from support.independent import run_with_pairs
from support.models import MODELS, f32, normal, parsed
from support.special_models import external_model, save_external

from trt_helper.emulator.emulator import Emulator
from trt_helper.errors import ModelError, OutputError
from trt_helper.onnx_model import typed as typed_module
from trt_helper.onnx_model.graph import read_graph
from trt_helper.onnx_model.load import load
from trt_helper.onnx_model.typed import check, render, round_to_half, write
from trt_helper.values import Plan

FEED = {"x": normal(2, 32, scale=1.0)}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def stored(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def test_half_weights_are_the_nearest_halves_and_single_ones_the_users_own(subject):
    given = stored(MODELS["opset8"]().model)
    for pins, kind in (((), np.float16), (("conv", "dense"), np.float32)):
        arrays = list(stored(subject("opset8").typed(*pins)).values())
        for name in "wvb":
            expected = given[name].astype(kind)
            assert any(array.dtype == kind and np.array_equal(array, expected) for array in arrays), name


def test_a_constant_beyond_half_becomes_infinite_and_is_named(subject):
    graph = subject("huge_constant").graph
    assert render(graph, Plan()).unrepresentable == ("million",)
    assert render(graph, graph.plan(["up"])).unrepresentable == ("million",)
    assert render(graph, graph.all_pinned()).unrepresentable == ()
    assert [np.isinf(array).all() for array in stored(subject("huge_constant").typed()).values()] == [True]


@pytest.mark.parametrize("finite", [65504.0, 65519.9, -65519.9, 0.0, 1e-10])
def test_what_rounds_to_a_finite_half_is_representable(finite):
    half, exact = round_to_half(f32(finite, np.inf, np.nan))
    assert exact
    assert np.isfinite(half[0])


@pytest.mark.parametrize("lost", [65520.0, -1e6, 3.4e38])
def test_what_rounds_to_infinity_is_not(lost):
    half, exact = round_to_half(f32(1, lost))
    assert not exact
    assert half[1] == np.copysign(np.inf, lost)


def test_a_constant_that_fills_a_tensor_is_rounded_in_its_attribute(subject):
    (node,) = (n for n in subject("made_of_shapes").typed().graph.node if n.op_type == "ConstantOfShape")
    np.testing.assert_array_equal(numpy_helper.to_array(node.attribute[0].t), np.array([2048], np.float16), strict=True)


# ------------------------------------------------------------------------------ weights in other files


@pytest.mark.parametrize("files", [("w.bin", "w.bin"), ("a.bin", "b.bin"), ("deep/a.bin", "b.bin")])
@pytest.mark.parametrize("pins", [(), ("one",), ("one", "two", "three")])
def test_a_model_with_external_weights_gives_a_file_that_stands_alone(tmp_path, files, pins):
    graph = read_graph(load(save_external(tmp_path / "given", files=files)))
    plan = graph.plan(pins)
    for folder in ("given", "elsewhere"):
        path = tmp_path / folder / "typed.onnx"
        write(render(graph, plan), path)
        found = run_with_pairs(path, FEED)["y"]
        np.testing.assert_array_equal(found, Emulator(graph).run(plan, FEED)["y"])
    assert names(tmp_path / "elsewhere") == ["typed.onnx"]


def test_external_and_internal_weights_are_judged_alike(tmp_path):
    inside = tmp_path / "inside.onnx"
    inside.write_bytes(external_model().SerializeToString())
    found = [Emulator(read_graph(load(p))).run(Plan(), FEED)["y"] for p in (inside, save_external(tmp_path))]
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("pins", [(), ("one",)])
def test_weights_too_large_for_one_file_go_beside_it(tmp_path, monkeypatch, pins):
    monkeypatch.setattr(typed_module, "PROTOBUF_LIMIT", 1000)
    graph = read_graph(load(save_external(tmp_path / "given")))
    path = tmp_path / "out" / "typed.onnx"
    for _ in range(2):
        write(render(graph, graph.plan(pins)), path)
        assert names(path.parent) == ["typed.onnx", "typed.onnx.data"]
        np.testing.assert_array_equal(run_with_pairs(path, FEED)["y"], Emulator(graph).run(graph.plan(pins), FEED)["y"])


# ---------------------------------------------------------------------------------------------- refusals


def test_a_folder_that_is_a_file_is_refused_with_the_path(tmp_path, subject):
    (tmp_path / "taken").write_text("")
    typed = render(subject("residual").graph, Plan())
    with pytest.raises(OutputError, match=r"taken/typed\.onnx cannot be written") as error:
        write(typed, tmp_path / "taken" / "typed.onnx")
    assert error.value.exit_status == 3


def test_a_typed_model_that_is_wrong_is_refused_and_leaves_nothing_behind(tmp_path, subject):
    """An addition of a half and a single: what a forgotten cast would give."""
    typed = render(subject("residual").graph, Plan())
    join = next(node for node in typed.model.graph if node.name == "join")
    join.inputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    with pytest.raises(ModelError, match="not valid"):
        write(typed, tmp_path / "typed.onnx")
    assert names(tmp_path) == []


def test_the_checker_refuses_mixed_types_that_its_plain_form_lets_pass(tmp_path):
    model = parsed("g (float[2] x, float16[2] h) => (float[2] y) { [sum] y = Add(x, h) }")
    path = tmp_path / "mixed.onnx"
    path.write_bytes(model.SerializeToString())
    onnx.checker.check_model(str(path))
    with pytest.raises(ModelError, match="not valid"):
        check(path)


def test_two_writers_of_one_file_leave_a_whole_one(tmp_path, subject):
    graph = subject("residual").graph
    path = tmp_path / "typed.onnx"
    plans = [Plan(), graph.all_pinned()] * 4
    threads = [threading.Thread(target=lambda plan=plan: write(render(graph, plan), path)) for plan in plans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    check(path)
    assert names(tmp_path) == ["typed.onnx"]
