"""Runners: what lies around a GPU, with ONNX Runtime's CPU provider in the place of CUDA; GPUs where there are some."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support.multiplied import CPU, overflowing, samples

from trt_helper.builder.settings import BuildSettings
from trt_helper.errors import MachineError, RunError
from trt_helper.inputs.references import references
from trt_helper.inputs.samples import Sample
from trt_helper.onnx_model.typed import render, write
from trt_helper.report.record import located_json
from trt_helper.runners import ort_child
from trt_helper.runners.oracle import RunnerOracle, agreed
from trt_helper.runners.run import RUNNERS, execute, runner_here
from trt_helper.search.locate import locate
from trt_helper.search.located import evidence
from trt_helper.search.oracle import Criteria, control_error
from trt_helper.search.strategy import no_plans
from trt_helper.system.machine import find_gpu
from trt_helper.values import DISAGREE, Plan, Tolerance, Trial, Verdict


@pytest.fixture
def graph(tmp_path):
    return overflowing(tmp_path)


def typed(graph, plan, folder):
    write(render(graph, plan), folder / "typed.onnx")
    return folder / "typed.onnx"


def oracle(graph, given, **how):
    return RunnerOracle(
        graph, CPU, Criteria(given, references(graph, given), Tolerance(1e-2, 0)), {}, BuildSettings(), **how
    )


def test_outputs_come_back_by_repeat_and_sample(graph, tmp_path):
    given = samples(2, 3)
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


def test_on_cuda_fp32_is_fp32_and_each_run_takes_the_same_way(monkeypatch):
    """TF32 is on by default there and rounds to 10 bits. What the session is asked for; nothing runs."""
    asked = {}

    class Session:
        def __init__(self, _file, _options, providers):
            asked.update(dict(one for one in providers if isinstance(one, tuple)))

        def get_providers(self):
            return ["CUDAExecutionProvider", "CPUExecutionProvider"]

        def get_inputs(self):
            return []

    monkeypatch.setattr(ort_child.ort, "InferenceSession", Session)
    monkeypatch.setattr(ort_child.ort, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    ort_child.open_session("m.onnx", None, "CUDAExecutionProvider")
    assert asked["CUDAExecutionProvider"] == {"use_tf32": "0"}
    ort_child.open_session("m.onnx", None, "CUDAExecutionProvider", ort_child.SAME_EACH_TIME)
    assert asked["CUDAExecutionProvider"] == {"use_tf32": "0", "cudnn_conv_algo_search": "DEFAULT"}


def test_a_sample_that_does_not_fit_is_an_error_and_no_traceback(graph, tmp_path):
    wrong = [Sample("wrong", {"x/1": np.zeros([2, 9], np.float32)})]
    with pytest.raises(RunError, match="sample 0 cannot be run") as caught:
        execute(CPU, typed(graph, Plan(), tmp_path), wrong, graph.outputs)
    assert "Traceback" not in caught.value.message


def test_a_run_beyond_its_time_is_an_error(graph, tmp_path):
    with pytest.raises(RunError, match=r"cpu passed the time limit of 0\.01 s"):
        execute(CPU, typed(graph, Plan(), tmp_path), samples(1), graph.outputs, seconds=0.01)


def test_a_file_that_is_no_model_is_an_error(tmp_path):
    (tmp_path / "typed.onnx").write_bytes(b"garbage")
    with pytest.raises(RunError, match="cannot load the model"):
        execute(CPU, tmp_path / "typed.onnx", samples(1), ["y"])


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
        execute(RUNNERS["cuda"], typed(graph, Plan(), tmp_path), samples(1), graph.outputs)


def test_the_oracle_judges_a_plan_by_what_was_run(graph):
    """The all-FP32 plan is the model itself; its FP16 sibling is beyond 65504 on any machine that computes FP16."""
    real = oracle(graph, samples(2, 3))
    judgement = real.judge(graph.all_pinned(), [0, 1])
    assert (judgement.trial.verdict, judgement.inferences) == (Verdict.PASS, 4)
    assert [len(errors) for errors in judgement.per_sample] == [1, 1]
    assert len(real.judge(graph.all_pinned(), [1]).per_sample) == 1


def test_a_plan_that_cannot_be_run_is_unresolved_with_the_reason(graph):
    good = oracle(graph, samples(2))
    wrong = [Sample("wrong", {"x/1": np.zeros([2, 9], np.float32)})]
    broken = replace(good, criteria=replace(good.criteria, samples=wrong))
    trial = broken.judge(Plan(), [0]).trial
    assert trial.verdict is Verdict.UNRESOLVED
    assert "sample 0 cannot be run" in trial.why


def test_a_search_asks_the_runner_and_says_so(graph):
    given, judged = samples(2, 3), []

    class Counting(RunnerOracle):
        def judge(self, plan, which, speculative=no_plans):
            judged.append(plan)
            return super().judge(plan, which, speculative)

    def counting(graph, criteria):
        return Counting(graph, CPU, criteria, {}, BuildSettings())

    located = locate(graph, given, Tolerance(1e-2, 0), oracle=counting, runner="cpu")
    assert {trial.plan for trial in located.trials} <= set(judged)
    assert located.after.verdict is Verdict.PASS
    assert [len(errors) for errors in located.per_sample["after"]] == [1, 1]
    assert located_json(located)["runner"] == evidence(located)["runner"] == "cpu"


PASSED, FAILED = (
    Trial(Plan(), verdict, (), error_ratio) for verdict, error_ratio in ((Verdict.PASS, 0.5), (Verdict.FAIL, 3.0))
)


def test_repeats_that_agree_are_as_bad_as_the_worst():
    worse = replace(PASSED, error_ratio=0.9)
    assert agreed([PASSED, worse, PASSED]) == worse
    assert agreed([FAILED]) == FAILED


def test_repeats_that_disagree_are_unresolved_with_the_range():
    trial = agreed([PASSED, FAILED, PASSED])
    assert trial.verdict is Verdict.UNRESOLVED
    assert trial.why == f"{DISAGREE}: 0.5 to 3 times the tolerance in 3 runs"


@pytest.mark.gpu
@pytest.mark.parametrize("name", RUNNERS)
def test_on_a_gpu_half_overflows_and_the_pinned_plan_passes(graph, name):
    try:
        runner = runner_here(name)
    except MachineError as error:
        pytest.skip(error.message)
    given = samples(2, 3)
    real = replace(oracle(graph, given), runner=runner, settings=BuildSettings(tensorrt=name == "tensorrt"))
    assert real.judge(graph.all_pinned(), [0, 1]).trial.verdict is Verdict.PASS
    assert real.judge(Plan(), [0, 1]).trial.verdict is Verdict.FAIL


def test_a_control_whose_repeats_disagree_is_not_called_inaccurate():
    """Exit 5, not 1: nothing is known of the tolerance."""
    control = agreed([PASSED, FAILED])
    error = control_error(control, [], Tolerance())
    assert error.exit_status == 5
    assert "repeats disagree: 0.5 to 3 times the tolerance in 2 runs" in error.message
    assert control_error(replace(FAILED, why="a layer cannot be computed"), [], Tolerance()).exit_status == 1
