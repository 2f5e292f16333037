"""`benchmarks/gpu.py` on a CPU, and its interpreter against ONNX Runtime.

A wrong interpreter would be blamed on the emulator. `gpu.py` itself says of every model how far the two are apart.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'trt-helper[export]'")
pytestmark = pytest.mark.export

import onnx_ir as ir  # noqa: E402
from gpu import largest_difference, main  # noqa: E402
from gpu_models import CASES, ROOT, SHARED, AbsentError, Loaded, subjects  # noqa: E402
from torch_layers import NotCoveredError  # noqa: E402
from torch_onnx import Interpreter  # noqa: E402

from trt_helper.emulator.emulator import Emulator  # noqa: E402
from trt_helper.inputs.references import references  # noqa: E402
from trt_helper.onnx_model.typed import render  # noqa: E402
from trt_helper.values import Plan  # noqa: E402

MODELS = {subject.name: subject for subject in subjects(ROOT.parent / "shared" / "models", small=False)}
SLOW = ("ppocrv3_det", "resnet20_cifar10")  # seconds each: large images, an export
NAMES = [*list(CASES)[::9], *(name for name in SHARED if name not in SLOW)]
FP32_NOISE = 1e-3  # of the range; hazards subtract large numbers from each other


def loaded(name: str, folder: Path) -> Loaded:
    try:
        return MODELS[name].load(folder)
    except AbsentError as error:
        pytest.skip(str(error))


def run(interpreter: Interpreter, model: Loaded) -> dict[str, np.ndarray]:
    outputs = interpreter.run(interpreter.inputs(model.samples[0].feed))
    return {name: tensor.numpy() for name, tensor in outputs.items()}


@pytest.mark.parametrize("name", NAMES)
def test_in_fp32_the_interpreter_says_what_onnx_runtime_says(tmp_path: Path, name: str):
    model = loaded(name, tmp_path)
    graph = model.graph
    (expected,) = references(graph, model.samples[:1])
    found = run(Interpreter(render(graph, graph.all_pinned()).model, "cpu"), model)
    for output, array in expected.items():
        assert found[output].dtype == array.dtype
        largest = max(np.abs(array).max(initial=0), model.atol)
        np.testing.assert_allclose(found[output], array, rtol=0, atol=FP32_NOISE * largest, err_msg=output)


@pytest.mark.parametrize("name", ["clean_attention", "mnist", "silero_vad_16k_op15"])
def test_in_half_it_is_close_to_the_emulator(tmp_path: Path, name: str):
    model = loaded(name, tmp_path)
    expected = Emulator(model.graph).run(Plan(), model.samples[0].feed)
    for attention in (False, True):
        found = run(Interpreter(render(model.graph, Plan()).model, "cpu", attention=attention), model)
        for output, array in expected.items():
            np.testing.assert_allclose(found[output], array, rtol=0, atol=0.01 * np.abs(array).max())


def test_an_operator_that_is_not_in_the_table_is_named():
    node = helper.make_node("Celu", ["x"], ["y"])
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy")
    model: onnx.ModelProto = helper.make_model(helper.make_graph([node], "g", [x], [y]))
    with pytest.raises(NotCoveredError, match="operator Celu"):
        Interpreter(ir.from_proto(model), "cpu")


def test_a_difference_of_what_is_not_finite_is_infinite_unless_both_are_the_same():
    inf, nan = float("inf"), float("nan")
    pairs = [(inf, inf, 0), (inf, 1, inf), (-inf, inf, inf), (nan, nan, 0), (nan, 1, inf), (3, 1, 2)]
    for found, reference, difference in pairs:
        assert float(largest_difference(torch.tensor([found]), torch.tensor([reference]))) == difference


def test_the_small_set_runs_to_its_end_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["--device", "cpu", "--small", "-o", str(tmp_path / "gpu")]) == 0
    assert capsys.readouterr().out.startswith("# The emulator against a device")
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert {"clean_attention", "bert_base"} <= {model["name"] for model in found["models"]}
    assert set(found["not_run"]) <= {"mnist"}, "the shared models may be elsewhere"
    assert found["left_out"] == []
    shares = found["summary"]["shares"]["full, typical"]
    assert shares["equal"] == shares["verdicts"] == 2 * len(found["models"])
    assert shares["within_2"] > 0.9 * shares["compared"] > 0


def test_what_does_not_fit_the_budget_is_left_out_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["--device", "cpu", "--small", "--budget", "0", "-o", str(tmp_path / "gpu")]) == 0
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["models"] == []
    assert "bert_base" in found["left_out"]
    assert "left out, no time: bert_base" in capsys.readouterr().out


def test_a_machine_without_a_gpu_is_told_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert main(["-o", str(tmp_path / "gpu")]) == 3
    assert "--device cpu" in capsys.readouterr().out
