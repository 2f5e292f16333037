"""Norms and GELUs that an exporter wrote in pieces are named, and only they."""

from __future__ import annotations

import pytest
from support.model_cases import save_case
from support.models import Case, f32, parsed

from trt_helper.export.decomposed import decomposed

GELU = """[cube] c = Pow(x, three) [small] s = Mul(c, k) [inner] i = Add(x, s) [scaled] a = Mul(i, k) [tanh] t = Tanh(a)
          [one] o = Add(t, k) [out] y = Mul(x, o)"""
ERF = "[part] a = Mul(x, k) [erf] t = Erf(a) [one] o = Add(t, k) [out] y = Mul(x, o)"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GELU, True),
        (ERF, True),
        ("[tanh] t = Tanh(x) [square] y = Pow(t, three)", False),
        ("[erf] y = Erf(x)", False),
        ("[cube] c = Pow(x, three) [tanh] t = Tanh(c) [one] o = Add(t, k) [out] y = Mul(x, o)", False),
    ],
    ids=["tanh", "erf", "a power and a tanh", "erf alone", "a tanh of a cube"],
)
def test_a_gelu_in_pieces_is_named_where_there_is_one(tmp_path, text, expected):
    model = parsed(f"g (float[4] x) => (float[4] y) {{ {text} }}", k=f32(0.5), three=f32(3))
    layers = save_case(Case("gelu", model, {}), tmp_path).graph.layers
    assert any("GELUs come out in pieces" in said for said in decomposed(layers, 17)) is expected
