"""The graph of layers: their roles, neighbours, and which may be pinned."""

from __future__ import annotations

import numpy as np
import pytest
from support.model_cases import MODELS, save_case
from support.models import Case, f32, normal, parsed

from trt_helper.errors import ConfigError
from trt_helper.values import Plan, Role

every_model = pytest.mark.parametrize("name", MODELS)
COMPUTE, MOVEMENT, FIXED = Role.COMPUTE, Role.MOVEMENT, Role.FIXED


X4, X2 = "float[1,4,8,8] x", "float[2,4] x"
BF16_SINCE = [  # by the operators' versions in ONNX's Operators.md
    (f"g ({X4}) => (float[1,4,6,6] y) {{ [layer] y = Conv(x, w) }}", 22, {"w": normal(4, 4, 3, 3)}),
    (f"g ({X2}) => (float[2,4] y) {{ [layer] y = MatMul(x, w) }}", 13, {"w": normal(4, 4)}),
    (f"g ({X2}) => (float[2,4] y) {{ [layer] y = Sin(x) }}", 22, {}),
    (f"g ({X2}) => (float[2,4] y) {{ [layer] y = Tanh(x) }}", 13, {}),
]


def roles(model_case) -> dict[str, Role]:
    return {layer.name: layer.role for layer in model_case.graph.layers}


def made(folder, text, **weights):
    return save_case(Case("made", parsed(text, **weights), {}), folder)


# ----------------------------------------------------------------------------------------------- roles


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("movement_between", {"turn": MOVEMENT, "flat": MOVEMENT, "join": MOVEMENT, "conv": COMPUTE}),
        ("many_movements", {"split": MOVEMENT, "big": MOVEMENT, "tile": MOVEMENT, "pad": MOVEMENT, "head": COMPUTE}),
        ("scatter_add", {"sum": COMPUTE, "place": MOVEMENT}),
        ("if_outer", {"choose": FIXED, "before": COMPUTE, "inner": COMPUTE}),
        ("loop_float_state", {"loop": FIXED}),
        ("scan_float_state", {"scan": FIXED}),
        ("embedding", {"lookup": MOVEMENT, "norm": COMPUTE, "plus": FIXED, "keep": FIXED}),
        ("top_k", {"topk": MOVEMENT, "argmax": MOVEMENT, "trunc": MOVEMENT, "layer": COMPUTE}),
        ("resize_computed_scales", {"float": FIXED, "more": FIXED, "ratio": FIXED, "resize": COMPUTE}),
        ("lstm", {"lstm": COMPUTE}),
        ("made_of_shapes", {"fill": MOVEMENT, "test": COMPUTE}),
    ],
)
def test_roles_of_the_layers_of(model_case, name, expected):
    found = roles(model_case(name))
    assert {layer: found[layer] for layer in expected} == expected


def test_reading_bits_as_another_type_has_no_half_form(tmp_path):
    model = parsed("g (float[2] x) => (int32[2] y) { [head] h = Exp(x) [bits] y = BitCast <to=6> (h) }", opset=26)
    assert roles(save_case(Case("bits", model, {}), tmp_path)) == {"head": COMPUTE, "bits": FIXED}


def test_an_operator_that_has_no_half_form_at_the_models_opset_is_fixed(tmp_path):
    """Range takes no half at any opset."""
    model_case = made(
        tmp_path,
        """g (float start, float[3] x) => (float[M] r, float[3] y) {
          [range] r = Range(start, ten, one)
          [exp] y = Exp(x)
        }""",
        ten=f32(10)[0],
        one=f32(1)[0],
    )
    assert roles(model_case) == {"range": FIXED, "exp": COMPUTE}


def test_arithmetic_that_ends_in_a_shape_and_in_an_output_is_no_shape_arithmetic(tmp_path):
    model_case = made(
        tmp_path,
        """g (float[1,1,H,W] x) => (float[1,1,P,Q] y, float[4] ratio) {
          [shape] s = Shape(x)
          [float] f = Cast <to=1> (s)
          [ratio] ratio = Div(f, four)
          [resize] y = Resize(x, , ratio)
        }""",
        four=f32(4, 4, 4, 4),
    )
    assert roles(model_case)["ratio"] is COMPUTE


# ----------------------------------------------------------------------------------------- the plan


@every_model
def test_only_computing_layers_can_be_pinned_and_all_pinned_pins_them_all(model_case, name):
    graph = model_case(name).graph
    assert graph.candidates == tuple(layer.name for layer in graph.layers if layer.role is COMPUTE)
    assert graph.all_pinned() == Plan.of(graph.candidates) == graph.plan(layer.name for layer in graph.layers)


def test_a_pinned_movement_or_fixed_layer_changes_nothing(model_case):
    graph = model_case("movement_between").graph
    assert graph.plan(["turn", "flat"]) == Plan()
    assert model_case("if_outer").graph.plan(["choose"]) == Plan()


def test_an_unknown_name_is_refused_with_the_nearest(model_case):
    with pytest.raises(ConfigError, match="no layer named 'varience'") as error:
        model_case("layernorm_overflow").graph.plan(["varience"])
    assert "'variance'" in error.value.fix
    with pytest.raises(ConfigError) as error:
        model_case("layernorm_overflow").graph.plan(["%%%"])
    assert "inspect" in error.value.fix


# ------------------------------------------------------------------------------------------ neighbours


def test_parents_and_children(model_case):
    layers = {layer.name: layer for layer in model_case("residual").graph.layers}
    assert layers["first"].children == ("left", "right", "skip")
    assert layers["skip"].parents == ("join", "first")
    assert layers["first"].parents == ()
    assert layers["skip"].children == ()


def test_a_subgraphs_reads_are_its_nodes_reads(model_case):
    layers = {layer.name: layer for layer in model_case("loop_float_state").graph.layers}
    assert {"s", "x", "factor"} <= set(layers["loop"].inputs)
    assert layers["loop"].parents == ("start",)
    assert layers["start"].children == ("loop",)


def test_a_subgraph_in_a_subgraph_reads_the_outermost_tensor(tmp_path):
    model_case = made(
        tmp_path,
        """g (float[2] x, bool d) => (float[2] y) {
          [head] h = Exp(x)
          [outer] y = Loop(trips, , x) <body = b (int64 i, bool go, float[2] s) => (bool on, float[2] n) {
            on = Identity(go)
            [inner] a = If (d) <
              then_branch = t () => (float[2] p) { p = Neg(h) }, else_branch = e () => (float[2] q) { q = Abs(s) }>
            n = Add(a, s)
          }>
        }""",
        trips=np.array(2, np.int64),
    )
    (outer,) = (layer for layer in model_case.graph.layers if layer.name == "outer")
    assert set(outer.inputs) >= {"d", "h", "x"}
    assert outer.parents == ("head",)


@every_model
def test_neighbours_mirror_each_other_and_come_in_topological_order(model_case, name):
    layers = model_case(name).graph.layers
    place = {layer.name: index for index, layer in enumerate(layers)}
    edges = {(parent, layer.name) for layer in layers for parent in layer.parents}
    assert edges == {(layer.name, child) for layer in layers for child in layer.children}
    assert all(place[parent] < place[child] for parent, child in edges)


def test_a_layer_knows_its_pytorch_module(tmp_path):
    model = parsed("g (float[2,3] x) => (float[2,4] y) { [linear] y = MatMul(x, w) }", w=normal(3, 4))
    model.graph.node[0].metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['', 'head', 'head.linear']")
    (layer,) = save_case(Case("module", model, {}), tmp_path).graph.layers
    assert layer.module == "head"


@pytest.mark.parametrize(("text", "since", "weights"), BF16_SINCE, ids=["Conv", "MatMul", "Sin", "Tanh"])
def test_a_layer_can_be_bf16_from_the_opset_on_whose_version_takes_it(tmp_path, text, since, weights):
    for opset in (since, since - 1):
        (folder := tmp_path / str(opset)).mkdir()
        graph = save_case(Case("made", parsed(text, opset=opset, **weights), {}), folder).graph
        if opset == since:
            assert graph.plan([], bf16=["layer"]).bf16 == {"layer"}
        else:
            with pytest.raises(ConfigError, match="cannot be BF16"):
                graph.plan([], bf16=["layer"])
