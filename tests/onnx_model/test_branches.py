"""Layers in the branches of an If: opened to be decided, closed in the typed model. ONNX Runtime judges."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from support.independent import run_on_ort, run_with_pairs
from support.model_cases import save_case
from support.models import Case, f32, normal, parsed

from trt_helper.builder.convert import convert
from trt_helper.emulator.emulator import Emulator
from trt_helper.emulator.kernels import EmulationError
from trt_helper.inputs.sample import Sample
from trt_helper.onnx_model.branches import PATH, close_branches, is_select
from trt_helper.onnx_model.typed import render, write
from trt_helper.search.locate import locate
from trt_helper.values import Plan, Tolerance

X, W = normal(2, 4, seed=1, scale=1), normal(4, 4, seed=2, scale=1)
FORMS = {
    "one": """g (bool c, float[2,4] x) => (float[2,4] y) {
      [before] b = Tanh(x)
      [choose] o = If (c) <
        then_branch = t () => (float[2,4] a) {
          [mm] p = MatMul(b, w) [big] q = Mul(p, k) [root] r = Mul(q, q) [back] a = Sqrt(r)
        },
        else_branch = e () => (float[2,4] a) { [soft] p = Softmax(b) [plus] a = Add(p, x) }>
      [after] y = Exp(o)
    }""",
    "nested": """g (bool c, bool d, float[2,4] x) => (float[2,4] y) {
      [outer] y = If (c) <
        then_branch = t () => (float[2,4] a) {
          [mm] p = MatMul(x, w)
          [inner] a = If (d) <
            then_branch = tt () => (float[2,4] z) { [deep] z = Exp(p) },
            else_branch = te () => (float[2,4] z) { [other] q = Neg(p) [last] z = Exp(q) }>
        },
        else_branch = e () => (float[2,4] a) { [neg] a = Neg(x) }>
    }""",
    "outer values": """g (bool c, float[2,4] x) => (float[2,4] y, float[4,4] v) {
      [before] b = Exp(x)
      [choose] y, v = If (c) <
        then_branch = t () => (float[2,4] a, float[4,4] u) { [take] a = Identity(b) [keep] u = Identity(w) },
        else_branch = e () => (float[2,4] a, float[4,4] u) { [twice] a = Add(b, b) [same] u = Mul(w, w) }>
    }""",
    "one value twice": """g (bool c, float[2,4] x) => (float[2,4] y, float[2,4] z) {
      [choose] y, z = If (c) <
        then_branch = t () => (float[2,4] a, float[2,4] b) { [e] a = Exp(x) [i] b = Identity(a) },
        else_branch = e () => (float[2,4] a, float[2,4] b) { [n] a = Neg(x) [t] b = Tanh(a) }>
    }""",
}  # fmt: skip


def made(tmp_path, form):
    return save_case(Case("branches", parsed(FORMS[form], w=W, k=f32(100.0)), {}), tmp_path)


def feeds(graph):
    """Every combination of conditions."""
    flags = [value.name for value in graph.inputs if value.dtype is ir.DataType.BOOL]
    for bits in range(2 ** len(flags)):
        yield {**{name: np.array(bool(bits >> i & 1)) for i, name in enumerate(flags)}, "x": X}


@pytest.mark.parametrize("form", FORMS)
def test_opened_branches_compute_what_the_file_computes(tmp_path, form):
    graph = made(tmp_path, form).graph
    assert not any(node.op_type == "If" for node in graph.nodes.values())
    for feed in feeds(graph):
        expected = run_on_ort(graph.source.path, feed)
        found = Emulator(graph).reference(feed)
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array)


def test_a_branch_that_is_not_taken_is_not_computed(tmp_path):
    """It may be there because it cannot be: here its index is outside of what it indexes."""
    text = """g (bool c, float[2,4] x, int64[1] i) => (float[1,4] y) {
      [choose] y = If (c) <
        then_branch = t () => (float[1,4] a) { [row] a = Gather(x, i) },
        else_branch = e () => (float[1,4] a) { [total] a = ReduceSum<keepdims=1>(x, zero) }>
    }"""
    case = save_case(Case("guarded", parsed(text, zero=np.array([0])), {}), tmp_path)
    feed = {"c": np.array(False), "x": X, "i": np.array([9])}
    expected = run_on_ort(case.graph.source.path, feed)["y"]
    np.testing.assert_array_equal(Emulator(case.graph).reference(feed)["y"], expected)
    np.testing.assert_allclose(case.one_step.run(Plan(), feed)["y"], expected, rtol=2e-3)
    with pytest.raises(EmulationError):
        Emulator(case.graph).reference({**feed, "c": np.array(True)})


@pytest.mark.parametrize("form", FORMS)
def test_closed_again_the_file_has_its_ifs_and_computes_the_same(tmp_path, form):
    case = made(tmp_path, form)
    model = case.graph.model.clone()
    close_branches(model)
    path = tmp_path / "closed.onnx"
    ir.save(model, path)
    onnx.checker.check_model(str(path), full_check=True)
    nodes = list(ir.traversal.RecursiveGraphIterator(model.graph))
    assert sum(node.op_type == "If" for node in nodes) == FORMS[form].count("= If")
    assert not any(map(is_select, nodes))
    for feed in feeds(case.graph):
        expected, found = run_on_ort(case.graph.source.path, feed), run_on_ort(path, feed)
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("form", FORMS)
def test_every_layer_of_a_branch_can_be_pinned_and_the_typed_model_is_valid(tmp_path, form):
    graph = made(tmp_path, form).graph
    for name in (*graph.candidates, ""):
        path = tmp_path / "typed.onnx"
        write(render(graph, Plan.of([name] if name else [])), path)
        assert path.is_file()


def test_metadata_of_a_users_file_decides_nothing(tmp_path):
    """The key under which the path of an opened branch is kept, with what no such path is."""
    model = parsed(FORMS["one"], w=W, k=f32(100.0))
    for node in model.graph.node:
        node.metadata_props.add(key=PATH, value="[not JSON")
    case = save_case(Case("hostile", model, {}), tmp_path)
    assert case.graph.candidates == made(tmp_path, "one").graph.candidates
    write(render(case.graph, Plan()), tmp_path / "typed.onnx")


def test_a_branch_is_emulated_as_the_same_layers_without_an_if_are(tmp_path):
    """Each branch of the form `one`, written out by hand, judged from its typed file."""
    case = made(tmp_path, "one")
    alone = {
        True: "[mm] p = MatMul(b, w) [big] q = Mul(p, k) [root] r = Mul(q, q) [back] o = Sqrt(r)",
        False: "[soft] p = Softmax(b) [plus] o = Add(p, x)",
    }
    for taken, layers in alone.items():
        model = parsed(
            f"g (float[2,4] x) => (float[2,4] y) {{ [before] b = Tanh(x) {layers} [after] y = Exp(o) }}",
            w=W,
            k=f32(100.0),
        )
        (tmp_path / str(taken)).mkdir()
        straight = save_case(Case("straight", model, {"x": X}), tmp_path / str(taken))
        for name in ("", *straight.graph.candidates):
            plan = Plan.of(["before", "after", name] if name else ["before", "after"])
            expected = run_with_pairs(straight.write(plan), {"x": X})["y"]
            found = case.one_step.run(plan, {"c": np.array(taken), "x": X})["y"]
            # what a branch returns is FP32, so its last layer alone may be exact here
            np.testing.assert_allclose(found, expected, rtol=2e-3)
            assert np.isfinite(found).all() == np.isfinite(expected).all()


def test_the_layer_that_overflows_in_a_branch_is_found_and_proven(tmp_path):
    """Squares of some hundred pass 65504 in one branch: square and root are needed, and nothing of the other."""
    samples = [Sample(str(taken), {"c": np.array(taken), "x": X}) for taken in (True, False)]
    text = FORMS["one"].replace("[after] y = Exp(o)", "[after] y = Identity(o)").replace("k)", "large)")
    graph = save_case(Case("large", parsed(text, w=W, large=f32(1000.0)), {}), tmp_path).graph
    located = locate(graph, samples, Tolerance(atol=10, rtol=0.01))
    assert located.plan.fp32 == {"root", "back"}
    converted = convert(graph, located.plan, engine=tmp_path / "m.trt")
    states = {proof.layer: proof.state for proof in converted.proofs}
    assert states["back"] == "honoured"
    assert states["root"] in ("honoured", "fused")  # there is another product in its kernel
    assert converted.half_share > 0
