"""A sigmoid whose logarithm is taken is right to its last digits, in the reference and in FP32 layers."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import helper
from support.independent import run_on_ort
from support.zoo import Net

from trt_helper.emulator.emulator import Emulator
from trt_helper.inputs.references import references
from trt_helper.inputs.sample import Sample
from trt_helper.onnx_model.graph import read_graph
from trt_helper.onnx_model.load import load
from trt_helper.onnx_model.sigmoids import with_exact_sigmoids

X = np.linspace(-80, 20, 101, dtype=np.float32)[None]


def graph_of(folder, reader: str):
    net = Net(0)
    s = net("Sigmoid", net.input("x", [1, 101]), name="s")
    y = net("Div", 1.0, s, name="y") if reader == "Div" else net(reader, s, name="y")
    path = folder / "model.onnx"
    onnx.save(net.model("model", [y], [1, 101]), path)
    return read_graph(load(path))


@pytest.mark.parametrize(
    ("reader", "exact"),
    [
        ("Log", lambda x: -np.logaddexp(0, -x)),
        ("Div", lambda x: 1 + np.exp(-x)),
        ("Reciprocal", lambda x: 1 + np.exp(-x)),
        ("Sqrt", lambda x: 1 / np.sqrt(1 + np.exp(-x))),
    ],
)
def test_what_reads_a_sigmoid_relatively_gets_the_truth(tmp_path, reader, exact):
    graph = graph_of(tmp_path, reader)
    truth = exact(X.astype(np.float64))
    (as_it_is,) = run_on_ort(graph.source.path, {"x": X}).values()
    assert not np.allclose(as_it_is, truth, rtol=1e-3), "if it were right, nothing of this would be needed"
    (reference,) = references(graph, [Sample("x", {"x": X})])[0].values()
    np.testing.assert_allclose(reference, truth, rtol=2e-6, atol=1e-7 if reader == "Log" else 0)
    (emulated,) = Emulator(graph).reference({"x": X}).values()
    np.testing.assert_allclose(emulated, truth, rtol=2e-6, atol=1e-7 if reader == "Log" else 0)


def test_any_other_sigmoid_is_the_one_of_the_file(tmp_path):
    graph = graph_of(tmp_path, "Neg")
    expected = run_on_ort(graph.source.path, {"x": X})
    assert references(graph, [Sample("x", {"x": X})])[0].keys() == expected.keys()
    for found in (references(graph, [Sample("x", {"x": X})])[0], Emulator(graph).reference({"x": X})):
        np.testing.assert_array_equal(*found.values(), *expected.values())


@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_a_sigmoid_in_another_type_has_its_reference_too(kind):
    """A constant of FP32 beside it would be refused."""
    element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    nodes = [helper.make_node("Sigmoid", ["x"], ["s"], name="s"), helper.make_node("Log", ["s"], ["y"], name="y")]
    infos = [helper.make_tensor_value_info(name, element, [1, 101]) for name in "xy"]
    model = helper.make_model(
        helper.make_graph(nodes, "g", infos[:1], infos[1:]), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    x = np.linspace(-8, 8, 101, dtype=kind)[None]
    data = with_exact_sigmoids(ir.from_proto(model))
    session = ort.InferenceSession(ir.to_proto(data).SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": x})
    exact = -np.logaddexp(0, -x.astype(np.float64))
    np.testing.assert_allclose(found, exact, rtol=0.01, atol=2e-3)
