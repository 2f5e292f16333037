"""The sample models, exported from PyTorch: `locate` finds the plan that is known to be right."""

from __future__ import annotations

import subprocess
import sys
import warnings
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest

from trt_helper.config.plan_file import read_config
from trt_helper.emulator.emulator import Emulator
from trt_helper.inputs.sample import Sample
from trt_helper.onnx_model.graph import read_graph
from trt_helper.onnx_model.load import load
from trt_helper.search.locate import locate
from trt_helper.values import Plan, Tolerance, Verdict

FOLDER = Path(__file__).resolve().parents[1] / "sample_models"
NAMES = (
    *("square_overflow", "split_square_overflow", "mask_times_infinity", "empty_mask_row", "vanishing_epsilon"),
    *("vanishing_floor", "coordinate_grid", "two_culprits", "clean_cnn"),
)


torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'trt-helper[export]'")
pytestmark = pytest.mark.export


@pytest.fixture(scope="module")
def zoo():
    spec = spec_from_file_location("sample_models_zoo", FOLDER / "zoo.py")
    assert spec is not None
    assert spec.loader is not None
    found = module_from_spec(spec)
    sys.modules[spec.name] = found  # where its dataclasses look for their module
    spec.loader.exec_module(found)
    return found.MODELS


def test_every_sample_model_is_tested(zoo):
    assert set(zoo) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_known_answer_is_found(zoo, name, tmp_path):
    sample = zoo[name]
    inputs = sample.examples()
    path = tmp_path / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            sample.model(),
            tuple(inputs.values()),
            path,
            input_names=list(inputs),
            dynamo=True,
            optimize=False,
            verbose=False,
        )
    graph = read_graph(load(path))
    samples = [
        Sample(f"seed {seed}", {key: value.numpy() for key, value in sample.examples(seed=seed).items()})
        for seed in range(3)
    ]
    located = locate(graph, samples, Tolerance(0.01, 0.0))
    assert located.after.verdict is Verdict.PASS
    layers = {layer.name: layer for layer in graph.layers}
    found = {(layers[pin].module, layers[pin].op) for pin in located.pins}
    assert found == {(layer.module, layer.op) for layer in sample.cure}
    assert len(located.pins) == len(sample.cure)


def test_fp16_destroys_the_digits_model_and_the_plan_restores_it(tmp_path):
    """The demo, up to its table; the test images were neither trained on nor searched with."""
    model, plan = tmp_path / "digits.onnx", tmp_path / "plan.yaml"
    program = [sys.executable, "-m", "trt_helper"]
    export = [*program, "export", FOLDER / "digits.pt", "--model", f"{FOLDER / 'digits.py'}:digits"]
    sizes = ["--input", "image:4x1x8x8", "--dynamic", "image:0=1..64"]
    subprocess.run([*export, *sizes, "-o", model], check=True, capture_output=True)
    command = [*program, "locate", model, "--inputs", FOLDER / "digits_inputs"]
    subprocess.run([*command, "--atol", "0.01", "--rtol", "0", "-o", plan], check=True, capture_output=True)
    graph = read_graph(load(model))
    emulator = Emulator(graph)
    pins = graph.plan(read_config(plan).fp32_layers)
    with np.load(FOLDER / "digits_test.npz") as test:
        feed, labels = {"image": test["image"]}, test["label"]

    def accuracy(values) -> float:
        return float((values["output"].argmax(axis=1) == labels).mean())

    assert accuracy(emulator.reference(feed)) > 0.95
    assert accuracy(emulator.run(Plan(), feed)) < 0.4
    assert accuracy(emulator.run(pins, feed)) == accuracy(emulator.reference(feed))
    assert len(pins) == 8
