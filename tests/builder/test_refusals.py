"""What the installed builder will refuse is known before a search, in its own words."""

from __future__ import annotations

from itertools import pairwise

import pytest
from support.model_cases import save_case
from support.models import Case, f32, i64, normal, parsed

from trt_helper.builder.build import build
from trt_helper.builder.refusals import in_one_line, may_refuse, refusals
from trt_helper.builder.settings import BuildSettings
from trt_helper.errors import BuildError
from trt_helper.onnx_model.typed import render, write
from trt_helper.values import Plan

BOXES = (
    """g (float[1,6,4] boxes, float[1,1,6] scores, float[2] x) => (int64[n,3] kept, float[2] y) {
      [nms] kept = NonMaxSuppression(boxes, scores, most, iou)
      [exp] y = Exp(x)
    }""",
    {"most": i64(3), "iou": f32(0.5)},
    ("nms", "no runners that implement it"),
)
GRID = (
    "g (float[1,2,3] theta) => (float[1,4,4,2] y) { [grid] y = AffineGrid(theta, size) }",
    {"size": i64(1, 3, 4, 4)},
    ("grid", "AffineGrid"),
)
BYTES = (
    "g (float[4] x) => (float[4] y) { [down] u = Cast <to=2> (x) [up] f = Cast <to=1> (u) [exp] y = Exp(f) }",
    {},
    ("down", "UINT8"),
)
USUAL = (
    "g (float[2,4] x) => (float[2,4] y) { [product] p = MatMul(x, w) [exp] y = Exp(p) }",
    {"w": normal(4, 4)},
    None,
)


@pytest.mark.parametrize("form", [BOXES, GRID, BYTES, USUAL], ids=["boxes", "grid", "bytes", "usual"])
def test_what_is_said_before_is_what_the_build_says(tmp_path, form):
    text, weights, expected = form
    graph = save_case(Case("asked", parsed(text, opset=20, **weights), {}), tmp_path).graph
    assert may_refuse(graph) is (expected is not None)
    found = refusals(graph)
    write(render(graph, Plan()), tmp_path / "typed.onnx")

    def built():
        return build(tmp_path / "typed.onnx", tmp_path / "m.trt", profiles=[], settings=BuildSettings())

    if expected is None:
        assert found == ()
        assert built().layers
        return
    layer, words = expected
    assert [one.layer for one in found] == [layer]
    assert words in in_one_line(found) + found[0].op
    with pytest.raises(BuildError) as error:
        built()
    said = error.value.message
    assert layer in said or any(f"{a} {b}" in said for a, b in pairwise(found[0].says.split()))
