"""References: the outputs of the user's own file, run by ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from support.independent import run_on_ort
from support.model_cases import MODELS, save_case
from support.models import Case, f32, normal, parsed
from support.special_models import save_external

from trt_helper.errors import InputError, ModelError
from trt_helper.inputs.references import references
from trt_helper.inputs.sample import Sample
from trt_helper.onnx_model.graph import read_graph
from trt_helper.onnx_model.load import load


@pytest.mark.parametrize("name", sorted(MODELS.keys() - {"unnamed_and_doubly_named"}))
def test_the_reference_is_what_onnx_runtime_says_of_the_users_file(model_case, name):
    """Halves come back as FP32, in the order of the graph's outputs."""
    case = model_case(name)
    (found,) = references(case.graph, [Sample("", case.feed)])
    assert tuple(found) == case.graph.outputs
    for output, expected in run_on_ort(case.path, case.feed).items():
        np.testing.assert_array_equal(found[output], expected, strict=True)


def test_two_nodes_of_one_name_are_no_hindrance(model_case):
    """ONNX Runtime 1.32 refuses such a file."""
    case = model_case("unnamed_and_doubly_named")
    (found,) = references(case.graph, [Sample("", case.feed)])
    np.testing.assert_allclose(found["y"], np.sin(-np.tanh(np.exp(case.feed["x"]))), rtol=1e-6)


def test_two_nodes_of_one_name_may_have_external_weights(tmp_path):
    path = save_external(tmp_path, files=("a.bin", "b.bin"))
    feed = {"x": normal(2, 32)}
    expected = run_on_ort(path, feed)["y"]
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        node.name = "same"
    path.write_bytes(model.SerializeToString())
    (found,) = references(read_graph(load(path)), [Sample("", feed)])
    np.testing.assert_array_equal(found["y"], expected)


def test_each_sample_has_its_own_reference_whatever_its_shape(tmp_path):
    model = parsed("g (float[N] x) => (float[N] y) { [exp] y = Exp(x) }")
    graph = save_case(Case("dynamic", model, {}), tmp_path).graph
    found = references(graph, [Sample("a", {"x": f32(0)}), Sample("b", {"x": f32(0, 0)})])
    assert [outputs["y"].tolist() for outputs in found] == [[1], [1, 1]]


def test_what_onnx_runtime_cannot_load_or_run_is_named(tmp_path):
    """The CPU provider has no Softplus for FP64."""
    text = "[down] a = Cast <to=11> (x) [soft] b = Softplus(a) [up] y = Cast <to=1> (b)"
    model = parsed(f"g (float[2] x) => (float[2] y) {{ {text} }}")
    graph = save_case(Case("double", model, {}), tmp_path).graph
    with pytest.raises(ModelError, match="cannot load") as error:
        references(graph, [])
    assert error.value.exit_status == 3


def test_a_sample_that_the_model_does_not_run_on_is_named(model_case):
    with pytest.raises(InputError, match="does not run on holiday"):
        references(model_case("residual").graph, [Sample("holiday", {"x": f32(1)})])
