"""Custom operators at the end of a model: what lies before them is judged, the typed model has the whole."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from support.independent import run_on_ort
from support.model_cases import save_case
from support.models import Case, f32, normal

from trt_helper.builder.convert import convert
from trt_helper.errors import BuildError, ModelError
from trt_helper.inputs.references import references
from trt_helper.inputs.sample import Sample
from trt_helper.onnx_model.typed import render, write
from trt_helper.search.locate import locate
from trt_helper.values import Plan, Tolerance

FEED = {"x": normal(2, 4, seed=1, scale=1), "n": np.array([2, 4])}
HEAD = [
    ("MatMul", ["x", "w"], ["p"]),
    ("Mul", ["p", "large"], ["q"]),
    ("Mul", ["q", "q"], ["square"]),
    ("Sqrt", ["square"], ["root"]),
    ("Log", ["root"], ["score"]),
]


def model(tail, outputs, *, head=HEAD, domain="TRT"):
    """HEAD, and nodes of a custom domain or the standard one behind it."""
    value = onnx.helper.make_tensor_value_info
    nodes = [onnx.helper.make_node(op, ins, outs, name=outs[0]) for op, ins, outs in head]
    nodes += [
        onnx.helper.make_node(op, ins, outs, name=op, domain=domain if "_TRT" in op else "", **attributes)
        for op, ins, outs, attributes in tail
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [value("x", 1, [2, 4]), value("n", 7, [2])],
        [value(name, kind, None) for name, kind in outputs],
        [onnx.numpy_helper.from_array(a, n) for n, a in {"w": normal(4, 4, scale=1), "large": f32(1000.0)}.items()],
    )
    opsets = [onnx.helper.make_opsetid("", 17), *([onnx.helper.make_opsetid(domain, 1)] if domain else [])]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)


NMS = ("Nms_TRT", ["p", "score", "n"], ["boxes", "count"], {"iou": 0.5})
TAILS = {
    "at the end": [NMS],
    "with layers behind": [NMS, ("Exp", ["boxes"], ["more"], {}), ("Add", ["more", "large"], ["last"], {})],
}
OUTPUTS = {"at the end": [("boxes", 1), ("count", 6)], "with layers behind": [("score", 1), ("last", 1), ("count", 6)]}


@pytest.mark.parametrize("domain", ["TRT", ""])
@pytest.mark.parametrize("form", TAILS)
def test_the_model_is_judged_where_the_custom_operator_reads_it(tmp_path, form, domain):
    graph = save_case(Case("nms", model(TAILS[form], OUTPUTS[form], domain=domain), {}), tmp_path).graph
    assert set(graph.outputs) == {"p", "score"}
    assert sum(graph.unjudged.values()) == len(TAILS[form])
    straight = model([], [("p", 1), ("score", 1)])
    expected = run_on_ort(straight, FEED)
    (found,) = references(graph, [Sample("s", FEED)])
    for name in graph.outputs:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6)
    located = locate(graph, [Sample("s", FEED)], Tolerance(atol=0.05, rtol=0.01))
    assert located.plan.fp32 == {"square", "root"}


@pytest.mark.parametrize("form", TAILS)
def test_the_typed_model_has_the_whole_and_the_custom_operator_reads_fp32(tmp_path, form):
    given = model(TAILS[form], OUTPUTS[form])
    graph = save_case(Case("nms", given, {}), tmp_path).graph
    write(render(graph, Plan.of(["square"])), tmp_path / "typed.onnx")
    typed = onnx.load(tmp_path / "typed.onnx")
    assert [value.name for value in typed.graph.output] == [value.name for value in given.graph.output]
    assert [value.name for value in typed.graph.input] == ["x", "n"]
    behind = [node for node in typed.graph.node if node.domain == "TRT"]
    assert [(node.op_type, list(node.input), list(node.output)) for node in behind] == [NMS[:3]]
    assert behind[0].attribute[0].f == 0.5
    types = {value.name: value.type.tensor_type.elem_type for value in typed.graph.value_info}
    assert types.get("p", 1) == types.get("score", 1) == onnx.TensorProto.FLOAT
    by_output = {name: node for node in typed.graph.node for name in node.output}
    assert by_output["p"].op_type == by_output["score"].op_type == "Cast"


def test_the_builder_says_which_plugin_it_lacks(tmp_path):
    graph = save_case(Case("nms", model(TAILS["at the end"], OUTPUTS["at the end"]), {}), tmp_path).graph
    with pytest.raises(BuildError, match="no operator or plugin 'Nms_TRT'") as error:
        convert(graph, Plan(), engine=tmp_path / "m.trt")
    assert "--plugin" in error.value.fix


def test_with_nothing_before_a_custom_operator_nothing_can_be_judged(tmp_path):
    first = [("Swish_TRT", ["x"], ["y"], {})]
    with pytest.raises(ModelError, match="every layer depends on Swish_TRT"):
        _ = save_case(Case("first", model(first, [("y", 1)], head=[]), {}), tmp_path).graph


@pytest.mark.parametrize("domain", ["com.microsoft", "ai.onnx.ml"])
def test_operators_that_no_tensorrt_has_are_refused(tmp_path, domain):
    node = onnx.helper.make_node("Tokenizer", ["x"], ["y"], name="own", domain=domain)
    given = model([], [("y", 1)])
    given.graph.node.append(node)
    given.opset_import.append(onnx.helper.make_opsetid(domain, 1))
    with pytest.raises(ModelError, match=f"'own' is {domain}::Tokenizer"):
        _ = save_case(Case("own", given, {}), tmp_path).graph
