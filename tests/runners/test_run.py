"""Running a model in a child process, with ONNX Runtime's CPU provider in the place of CUDA, and what goes wrong."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support.overflowing_models import CPU, overflowing_products, samples_of_products

from trt_helper.errors import MachineError, RunError
from trt_helper.inputs.sample import Sample
from trt_helper.onnx_model.typed import render, write
from trt_helper.runners.run import RUNNERS, execute, runner_here
from trt_helper.system.machine import find_gpu
from trt_helper.values import Plan


@pytest.fixture
def graph(tmp_path):
    return overflowing_products(tmp_path)


def typed(graph, plan, folder):
    write(render(graph, plan), folder / "typed.onnx")
    return folder / "typed.onnx"


def test_outputs_come_back_by_repeat_and_sample(graph, tmp_path):
    given = samples_of_products(2, 3)
    found = execute(CPU, typed(graph, graph.all_pinned(), tmp_path), given, graph.outputs, repeats=3)
    assert [len(repeat) for repeat in found] == [2, 2, 2]
    for repeat in found:
        for sample, outputs in zip(given, repeat, strict=True):
            assert list(outputs) == ["[red]c"]
            np.testing.assert_allclose(outputs["[red]c"], sample.feed["x/1"], rtol=1e-6)


def test_an_input_in_half_is_fed_in_half(tmp_path):
    """ONNX Runtime refuses FP32 where the model reads FP16; outputs come back as FP32."""
    half = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT16, [4])  # noqa: E731
    nodes = [helper.make_node("Relu", ["x"], ["y"], "act")]
    path = tmp_path / "half.onnx"
    onnx.save(
        helper.make_model(
            helper.make_graph(nodes, "g", [half("x")], [half("y")]),
            opset_imports=[helper.make_opsetid("", 17)],
            ir_version=9,
        ),
        path,
    )
    ((outputs,),) = execute(CPU, path, [Sample("s", {"x": np.float32([1, -2, 0.1, 4])})], ["y"])
    assert outputs["y"].dtype == np.float32
    np.testing.assert_array_equal(outputs["y"], np.float32([1, 0, np.float16(0.1), 4]))


def test_a_sample_that_does_not_fit_is_an_error_and_no_traceback(graph, tmp_path):
    wrong = [Sample("wrong", {"x/1": np.zeros([2, 9], np.float32)})]
    with pytest.raises(RunError, match="sample 0 cannot be run") as caught:
        execute(CPU, typed(graph, Plan(), tmp_path), wrong, graph.outputs)
    assert "Traceback" not in caught.value.message


def test_a_run_beyond_its_time_is_an_error(graph, tmp_path):
    with pytest.raises(RunError, match=r"cpu passed the time limit of 0\.01 s"):
        execute(CPU, typed(graph, Plan(), tmp_path), samples_of_products(1), graph.outputs, seconds=0.01)


def test_a_file_that_is_no_model_is_an_error(tmp_path):
    (tmp_path / "typed.onnx").write_bytes(b"garbage")
    with pytest.raises(RunError, match="cannot load the model"):
        execute(CPU, tmp_path / "typed.onnx", samples_of_products(1), ["y"])


@pytest.mark.skipif(find_gpu().missing == "", reason="this machine has a GPU")
@pytest.mark.parametrize("name", RUNNERS)
def test_a_runner_that_cannot_run_here_says_what_is_missing(name):
    with pytest.raises(MachineError) as caught:
        runner_here(name)
    assert name in caught.value.message
    assert "Python package" in caught.value.message or "GPU" in caught.value.message
    assert caught.value.exit_status == 3


@pytest.mark.skipif(find_gpu().missing == "", reason="this machine has a GPU")
def test_a_provider_that_is_not_there_is_said_to_be_missing(graph, tmp_path):
    """ONNX Runtime itself would go on with the CPU, whose FP16 is not FP16."""
    with pytest.raises(MachineError, match="has no CUDAExecutionProvider that works here"):
        execute(RUNNERS["cuda"], typed(graph, Plan(), tmp_path), samples_of_products(1), graph.outputs)
