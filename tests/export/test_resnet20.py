"""A checkpoint trained and published by somebody else, from its file to an engine."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from support.command_line import ok, run

from trt_helper.onnx_model.graph import read_graph
from trt_helper.onnx_model.load import load
from trt_helper.system.files import sha256_of

pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'trt-helper[export]'")
pytestmark = pytest.mark.export

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = ROOT.parent / "shared" / "models" / "resnet20_cifar10" / "resnet20-12fca82f.th"
DEFINITION = f"{ROOT / 'sample_models' / 'resnet20.py'}:resnet20"
BLOCKS = [f"layer{stage}.{block}.conv{conv}" for stage in (1, 2, 3) for block in (0, 1, 2) for conv in (1, 2)]


@pytest.fixture(scope="module", params=["dynamo", "torchscript"])
def exported(request, tmp_path_factory):
    """The ONNX file and what `export --json` said, for each exporter."""
    if not CHECKPOINT.is_file():
        pytest.skip(f"the real models are not here: {CHECKPOINT} does not exist")
    path = tmp_path_factory.mktemp(request.param) / "resnet20.onnx"
    words = ["--model", DEFINITION, "--input", "image:1x3x32x32", "--dynamic", "image:0=1..8"]
    return path, ok("export", CHECKPOINT, *words, "--exporter", request.param, "-o", path, "--json").json


def test_parity_is_below_1e_5_of_the_output_range(exported):
    _, said = exported
    found = [e["of_range"] for s in said["parity"]["samples"] for e in s["outputs"].values()]
    assert len(found) >= 4
    assert max(found) < 1e-5
    batches = {tuple(sample["shapes"]["image"]) for sample in said["parity"]["samples"]}
    assert {(1, 3, 32, 32), (8, 3, 32, 32)} <= batches


def test_the_model_says_where_it_comes_from(exported):
    path, said = exported
    (props,) = [json.loads(p.value) for p in onnx.load(path).metadata_props if p.key == "trt_helper.export"]
    assert props["checkpoint"]["sha256"] == sha256_of(CHECKPOINT)
    assert props["checkpoint"]["entry"] == "state_dict"
    assert props["exporter"] == said["exporter"]
    assert props["torch"].startswith("2.")
    assert props["parity"]["of_range"] < 1e-5
    assert str(ROOT) not in path.read_bytes().decode("latin-1"), "nothing of this machine's folders is in the file"


def test_layers_answer_to_their_modules_also_after_batchnorm_is_folded(exported):
    graph = read_graph(load(exported[0]))
    convolutions = [layer.module for layer in graph.layers if layer.op == "Conv"]
    assert convolutions == ["conv1", *BLOCKS]
    assert [layer.module for layer in graph.layers if layer.op == "Gemm"] == ["linear"]
    assert not [layer for layer in graph.layers if layer.op == "BatchNormalization"]


def test_it_goes_on_through_locate_and_convert(exported, tmp_path):
    path, _ = exported
    generator = np.random.default_rng(0)
    for index in range(4):
        np.savez(tmp_path / f"{index}.npz", image=generator.standard_normal((2, 3, 32, 32), np.float32))
    plan, engine = tmp_path / "plan.yaml", tmp_path / "model.trt"
    located = ok("locate", path, "--inputs", tmp_path, "--atol", "0.05", "-o", plan, "--json").json
    assert located["verdict"] == "pass"
    ok("convert", "--config", plan, "--shapes", "image:1x3x32x32,2x3x32x32,8x3x32x32", "-o", engine)
    assert engine.read_bytes()[:4] == b"vtrt"


def test_a_checkpoint_given_to_locate_is_told_of_export(tmp_path):
    if not CHECKPOINT.is_file():
        pytest.skip(f"the real models are not here: {CHECKPOINT} does not exist")
    result = run("locate", CHECKPOINT, "-o", tmp_path / "plan.yaml")
    assert result.status == 3
    assert "trt-helper export" in result.err
