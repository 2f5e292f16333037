"""A representative part of `benchmarks/engines.py`: in real engines no pin is demoted, and doubts have reasons."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import zoo_cases  # noqa: F401 - registers the cases
from support.builder_models import needs_rtx
from support.zoo import CASES

from trt_helper.builder.convert import Converted, convert
from trt_helper.builder.settings import BuildSettings
from trt_helper.inputs.sample import Sample
from trt_helper.inputs.samples import load_samples
from trt_helper.inputs.shapes import profile, ranges_of
from trt_helper.onnx_model.graph import Graph, read_graph
from trt_helper.onnx_model.load import load

REAL = Path(__file__).resolve().parents[3] / "shared" / "models"

pytestmark = needs_rtx


def built(folder, graph: Graph, pins, samples) -> Converted:
    ranges, _ = profile(graph, ranges_of(graph, samples))
    return convert(
        graph, graph.plan(pins), engine=folder / "m.trt", typed_onnx=None, profile=ranges, settings=BuildSettings()
    )


@pytest.mark.parametrize(
    "name",
    [
        "layernorm_square",  # the middle of a fused kernel
        "epsilon_added",
        "softmax_raw",
        "log_of_tiny",  # a kernel whose border is FP16 alone
        "residual_stream",  # after a product, in its epilogue
        "mask_on_every_key",
        "tiny_weights",  # a product alone
        "rotary_angles",
        "ten_in_a_row",  # a kernel whose name ends in "Etc"
        "five_readers",
        "longer_sample",  # dynamic
        "running_sum",
    ],
)
def test_every_pin_of_the_smallest_cure_is_honoured(tmp_path, name):
    case = CASES[name]
    path = tmp_path / "m.onnx"
    path.write_bytes(case.make().SerializeToString())
    samples = [Sample(str(index), feed) for index, feed in enumerate(case.samples(0))]
    done = built(tmp_path, read_graph(load(path)), case.culprits[0], samples)
    assert {proof.layer: proof.state for proof in done.proofs} == dict.fromkeys(case.culprits[0], "honoured")
    assert 0 < done.half_share < 1
    assert len(done.builds) == (2 if name == "tiny_weights" else 1)


def real(name: str) -> tuple[Graph, list[Sample]]:
    path = REAL / name / "model.onnx"
    if not path.is_file():
        pytest.skip(f"the real models are not here: {path} does not exist")
    graph = read_graph(load(path))
    inputs = path.parent / "inputs"
    return graph, load_samples(graph, [inputs] if inputs.is_dir() else [], script=None, shapes={})


@pytest.mark.parametrize("name", ["magika_standard_v3_3", "mnist", "silero_vad_16k_op15", "ultraface_rfb_320"])
def test_every_third_layer_of_a_real_model_is_proved_or_has_a_reason(tmp_path, name):
    graph, samples = real(name)
    done = built(tmp_path, graph, graph.candidates[::3], samples)
    states = [proof.state for proof in done.proofs]
    assert len(states) == len(graph.candidates[::3]) + len(done.retention.added)
    assert set(states) <= {"honoured", "fused", "gone"}
    assert states.count("honoured") >= 0.7 * len(states)
    assert all(proof.because for proof in done.unproven)
    assert 0 < done.half_share < 1


def test_the_smallest_plan_of_magika_is_proved_inside_its_kernel(tmp_path):
    graph, samples = real("magika_standard_v3_3")
    pins = [
        name
        for name in graph.candidates
        if name.endswith(tuple(f"LayerNorm_1/{n}" for n in ("Square", "Sum_1", "truediv_1")))
    ]
    done = built(tmp_path, graph, pins, samples)
    assert [proof.state for proof in done.proofs] == ["honoured"] * 3
    assert all("FP16" in proof.inputs for proof in done.proofs)  # the border shows nothing
    assert len(done.builds) == 1


def test_a_real_model_with_every_layer_pinned_has_no_fp16(tmp_path):
    graph, samples = real("silero_vad_16k_op15")
    done = built(tmp_path, graph, graph.candidates, samples)
    assert {proof.state for proof in done.proofs} == {"honoured"}
    assert done.half_share == 0
    assert done.engine is not None
    assert set(done.engine.weight_bytes) == {"FP32"}
