"""Operators of com.microsoft are written as standard ones. ONNX Runtime's own kernels of them are the judge."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from support.model_cases import save_case
from support.models import Case, normal

from trt_helper.emulator.emulator import Emulator
from trt_helper.errors import ModelError
from trt_helper.onnx_model.expanded import EXPANDED

WIDTH, HEADS, LENGTH = 8, 2, 5
X = normal(2, LENGTH, WIDTH, seed=1, scale=1)
Y = normal(2, LENGTH, WIDTH, seed=2, scale=1)
BIAS, SCALE = normal(WIDTH, seed=3), normal(WIDTH, seed=4, scale=1)
WEIGHTS, THREE = normal(WIDTH, 3 * WIDTH, seed=5), normal(3 * WIDTH, seed=6)
MASK = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], np.int32)
MASK_3D = np.tril(np.ones((2, LENGTH, LENGTH), np.int32))
PAST = normal(2, 2, HEADS, 3, WIDTH // HEADS, seed=7, scale=1)
KEYS, VALUES = normal(2, HEADS, 3, WIDTH // HEADS, seed=8, scale=1), normal(2, HEADS, 3, WIDTH // HEADS, seed=9)
ON_SCORES = normal(2, HEADS, LENGTH, LENGTH, seed=10, scale=1)
IMAGE, KERNEL = normal(1, 3, 6, 6, scale=1), normal(4, 3, 3, 3)
IDS = np.array([[0, 2, 1, 3, 3]], np.int32)
TABLE, PLACES = normal(4, WIDTH, scale=1), normal(LENGTH, WIDTH, seed=11, scale=1)

FORMS = {  # operator, inputs (None: left out), attributes, number of outputs; where there are several forms, a word
    "FusedMatMul": ([X, normal(2, 7, WIDTH)], {"transB": 1, "alpha": 0.125}),
    "FusedMatMul plain": ([X, normal(WIDTH, 3)], {}),
    "FusedMatMul both": ([normal(3, 4), normal(5, 3)], {"transA": 1, "transB": 1}),
    "TransposeMatMul": ([normal(3, 4), normal(3, 5)], {"transA": 1}),
    "Gelu": ([X], {}),
    "BiasGelu": ([X, BIAS], {}),
    "FastGelu": ([X], {}),
    "FastGelu bias": ([X, BIAS], {}),
    "QuickGelu": ([X], {"alpha": 1.5}),
    "SkipLayerNormalization": ([X, Y, SCALE], {"epsilon": 1e-5}),
    "SkipLayerNormalization whole": ([X, Y, SCALE, BIAS, BIAS], {"epsilon": 1e-5}, (0, 3)),
    "SkipSimplifiedLayerNormalization": ([X, Y, SCALE], {"epsilon": 1e-5}),
    "SkipSimplifiedLayerNormalization whole": ([X, Y, SCALE, BIAS], {"epsilon": 1e-5}, (0, 3)),
    "SimplifiedLayerNormalization": ([X, SCALE], {"epsilon": 1e-5}),
    "MeanVarianceNormalization": ([IMAGE], {"axes": [0, 2, 3]}),
    "MeanVarianceNormalization default": ([IMAGE], {}),
    "EmbedLayerNormalization": ([IDS, None, TABLE, PLACES, None, SCALE, BIAS], {}),
    "EmbedLayerNormalization two": ([IDS, 0 * IDS, TABLE, PLACES, TABLE, SCALE, BIAS], {}),
    "FusedConv": ([IMAGE, KERNEL], {"activation": "Relu", "pads": [1, 1, 1, 1]}),
    "FusedConv leaky": ([IMAGE, KERNEL, BIAS[:4]], {"activation": "LeakyRelu", "activation_params": [0.1]}),
    "FusedConv sum": ([IMAGE, KERNEL, BIAS[:4], normal(1, 4, 4, 4)], {"activation": "Relu"}),
    "FusedConv clip": ([IMAGE, KERNEL], {"activation": "Clip", "activation_params": [-0.2, 0.3]}),
    "FusedGemm": ([normal(3, 4), normal(4, 5), normal(5)], {"activation": "Tanh", "alpha": 0.5}),
    "Attention": ([X, WEIGHTS, THREE], {"num_heads": HEADS}),
    "Attention mask": ([X, WEIGHTS, THREE, MASK], {"num_heads": HEADS}),
    "Attention mask 3d": ([X, WEIGHTS, THREE, MASK_3D], {"num_heads": HEADS}),
    "Attention causal": ([X, WEIGHTS, THREE], {"num_heads": HEADS, "unidirectional": 1}),
    "Attention scale": ([X, WEIGHTS, None], {"num_heads": HEADS, "scale": 0.3}),
    "Attention past": ([X, WEIGHTS, THREE, None, PAST], {"num_heads": HEADS, "unidirectional": 1}, (0, 1)),
    "Attention bias": ([X, WEIGHTS, THREE, None, None, ON_SCORES], {"num_heads": HEADS}),
    "MultiHeadAttention": ([X, Y, Y], {"num_heads": HEADS}),
    "MultiHeadAttention bias": ([X, Y, Y, THREE], {"num_heads": HEADS}),
    "MultiHeadAttention mask": ([X, Y, Y, None, MASK], {"num_heads": HEADS}),
    "MultiHeadAttention scores": ([X, Y, Y, None, None, ON_SCORES], {"num_heads": HEADS}),
    "MultiHeadAttention past": ([X, Y, Y, None, None, None, KEYS, VALUES], {"num_heads": HEADS}, (0, 1, 2)),
    "Trilu": ([X], {"upper": 0}),
    "ExpandDims": ([X, np.array(1, np.int32)], {}),
    "GatherND": ([TABLE, np.array([[1], [2]])], {}),
}  # fmt: skip


def model_of(form: str, opset: int = 17) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """The first input is fed, all others are weights."""
    arrays, attributes, *rest = FORMS[form]
    wanted = rest[0] if rest else (0,)
    op = form.split(maxsplit=1)[0]
    names = [f"w{index}" if array is not None else "" for index, array in enumerate(arrays)]
    outputs = [f"y{index}" if index in wanted else "" for index in range(max(wanted) + 1)]
    outputs += ["unread"] if op == "EmbedLayerNormalization" else []
    domain = "" if ("", op) in EXPANDED else "com.microsoft"
    node = onnx.helper.make_node(op, ["x", *names[1:]], outputs, name="fused", domain=domain, **attributes)
    kind = onnx.helper.np_dtype_to_tensor_dtype(arrays[0].dtype)
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [onnx.helper.make_tensor_value_info("x", kind, arrays[0].shape)],
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs if name[:1] == "y"],
        [onnx.numpy_helper.from_array(a, n) for a, n in zip(arrays[1:], names[1:], strict=True) if a is not None],
    )
    opsets = [onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid("com.microsoft", 1)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), {"x": arrays[0]}


OPSETS = [(form, 17) for form in FORMS] + [(form, opset) for form in FORMS for opset in (12, 23) if " " not in form]


@pytest.mark.parametrize(("form", "opset"), OPSETS)
def test_the_expansion_computes_what_onnx_runtime_computes(tmp_path, form, opset):
    model, feed = model_of(form, opset)
    if opset < 14 and any(word in form for word in ("causal", "past", "Trilu", "ExpandDims")):
        pytest.skip("needs Trilu of opset 14, or axes as inputs")
    expected = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feed)
    graph = save_case(Case("fused", model, {}), tmp_path).graph
    assert {node.domain for node in graph.nodes.values()} == {""}
    found = Emulator(graph).reference(feed)
    for array, name in zip(expected, graph.outputs, strict=True):
        np.testing.assert_allclose(found[name], array, rtol=2e-5, atol=2e-6)


def test_every_operator_that_is_expanded_has_a_form_here():
    assert {op for _, op in EXPANDED} == {form.split()[0] for form in FORMS}


def test_layers_of_an_expansion_are_called_after_the_node(tmp_path):
    graph = save_case(Case("fused", model_of("BiasGelu")[0], {}), tmp_path).graph
    assert all(name.startswith("fused/") for name in graph.candidates), graph.candidates
    assert len(graph.candidates) == 6  # bias; division, erf, half, sum and product of a GELU


def test_a_form_without_an_equivalent_is_refused_by_name(tmp_path):
    FORMS["FusedMatMul batches"] = ([X, Y], {"transBatchA": 1})
    try:
        model, _ = model_of("FusedMatMul batches")
    finally:
        del FORMS["FusedMatMul batches"]
    with pytest.raises(ModelError, match=r"'fused' is com.microsoft::FusedMatMul with transposed batches"):
        _ = save_case(Case("fused", model, {}), tmp_path).graph
