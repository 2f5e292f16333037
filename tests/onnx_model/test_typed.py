"""Casts of the typed model: where they stand, and where they must not."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper
from support.independent import HALF, casts, element_types
from support.subjects import MODELS

from trt_helper.onnx_model.typed import render
from trt_helper.values import Plan, Role

every_model = pytest.mark.parametrize("name", MODELS)


def tensors(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def inputs_of(model: onnx.ModelProto, layer: str) -> list[str]:
    return list(next(node.input for node in model.graph.node if node.name == layer))


# ------------------------------------------------------------------------------ the leaks, one by one


def test_a_model_in_half_is_cast_once_at_each_end(subject):
    assert casts(subject("residual").typed()) == [
        ("", "fp16", ("first",)),
        ("first", "fp32", ("",)),
        ("skip", "fp32", ("",)),
    ]


@every_model
def test_with_everything_pinned_no_cast_to_half_is_left_but_for_outputs_that_are_half(subject, name):
    subject = subject(name)
    found = casts(onnx.load(subject.write(subject.graph.all_pinned())))
    assert [(kind, readers) for _, kind, readers in found if kind == "fp16" and readers != ("",)] == []


def test_several_pinned_readers_take_a_pinned_layers_tensor_as_it_is(subject):
    found = casts(subject("residual").typed("first", "left", "right"))
    assert found == [
        ("first", "fp16", ("skip",)),
        ("left", "fp16", ("join",)),
        ("right", "fp16", ("join",)),
        ("skip", "fp32", ("",)),
    ]


def test_all_half_readers_of_a_pinned_layer_share_one_cast(subject):
    assert ("first", "fp16", ("left", "right", "skip")) in casts(subject("residual").typed("first"))


def test_pinned_readers_and_an_output_share_one_cast(subject):
    """The output's own name is given to the tensor that the pinned layers read."""
    model = subject("residual").typed("left", "right")
    assert [cast for cast in casts(model) if cast[0] == "first"] == [("first", "fp32", ("", "left", "right"))]
    assert inputs_of(model, "left") == ["a"]


def test_a_pinned_chain_is_cast_where_it_begins_and_where_it_ends(subject):
    assert casts(subject("layernorm_overflow").typed("square", "variance", "epsilon", "root")) == [
        ("", "fp16", ("centre", "mean")),
        ("centre", "fp32", ("square",)),
        ("root", "fp16", ("divide",)),
        ("shift", "fp32", ("",)),
    ]


def test_a_pinned_layer_reads_a_graph_input_and_writes_a_graph_output_without_a_cast(subject):
    assert casts(subject("residual").typed("first", "skip", "join", "left", "right")) == []
    assert casts(subject("shared_initializer").typed("three")) == [("", "fp16", ("one",)), ("two", "fp32", ("three",))]
    assert casts(subject("shared_initializer").typed("one")) == [("one", "fp16", ("two",)), ("three", "fp32", ("",))]


def test_an_initializer_that_both_precisions_read_exists_in_both(subject):
    model = subject("shared_initializer").typed("one")
    single, half = (inputs_of(model, layer)[1] for layer in ("one", "two"))
    weights = tensors(model)
    given = tensors(MODELS["shared_initializer"]().model)["w"]
    np.testing.assert_array_equal(weights[single], given, strict=True)
    np.testing.assert_array_equal(weights[half], given.astype(np.float16), strict=True)


def test_an_initializer_that_one_precision_reads_exists_once(subject):
    for pins, kind in (((), np.float16), (("one", "two", "three"), np.float32)):
        weights = tensors(subject("shared_initializer").typed(*pins))
        assert [weight.dtype for weight in weights.values()] == [kind] * 2


def test_movement_between_two_pins_stays_in_fp32(subject):
    """Also the weight that is concatenated on the way."""
    model = subject("movement_between").typed("conv", "product")
    assert casts(model) == [("product", "fp16", ("tail",)), ("tail", "fp32", ("",))]
    assert HALF not in {element_types(model)[name] for name in ("c", "t", "f", "more", "j", "p")}


def test_a_constant_that_half_would_change_is_moved_in_fp32_for_a_pin_and_in_half_otherwise(subject):
    assert casts(subject("padded").typed("tail")) == [("", "fp16", ("head",)), ("head", "fp32", ("pad",))]
    assert casts(subject("padded").typed("head")) == [("head", "fp16", ("pad",)), ("tail", "fp32", ("",))]


def test_a_join_for_a_pin_stays_in_fp32_when_any_part_is_and_casts_the_other_part(subject):
    assert casts(subject("joined").typed("left", "tail")) == [("", "fp16", ("right",)), ("right", "fp32", ("join",))]
    assert casts(subject("joined").typed("tail")) == [("", "fp16", ("left", "right")), ("join", "fp32", ("tail",))]


def test_movement_before_a_single_pin_moves_in_half(subject):
    assert casts(subject("movement_between").typed("product")) == [
        ("", "fp16", ("conv",)),
        ("join", "fp32", ("product",)),
        ("product", "fp16", ("tail",)),
        ("tail", "fp32", ("",)),
    ]


def test_movement_behind_a_single_pin_moves_in_half(subject):
    assert ("conv", "fp16", ("turn",)) in casts(subject("movement_between").typed("conv"))


def test_movement_between_an_input_and_an_output_is_never_cast(subject):
    """Of `many_movements`, with its only computing layers pinned."""
    assert casts(subject("many_movements").typed("head", "tail")) == []


def test_a_subgraph_reads_outer_tensors_in_fp32(subject):
    assert casts(subject("if_outer").typed()) == [
        ("", "fp16", ("before",)),
        ("after", "fp32", ("",)),
        ("before", "fp32", ("choose",)),
        ("choose", "fp16", ("after",)),
    ]


def test_a_pinned_layer_gives_its_tensor_to_a_subgraph_without_a_cast(subject):
    assert casts(subject("if_outer").typed("before", "after")) == []


@pytest.mark.parametrize("name", ["mixed_softmax", "all_half"])
def test_a_mixed_model_gets_its_authors_casts_back(subject, name):
    renamed = {"back": "", "up": "softmax"}
    authors = [
        (maker, kind, tuple(sorted(renamed.get(reader, reader) for reader in readers)))
        for maker, kind, readers in casts(MODELS[name]().model)
    ]
    assert casts(subject(name).typed()) == sorted(authors)


def test_arithmetic_on_shapes_stays_in_fp32_whatever_the_plan(subject):
    model = subject("resize_computed_scales").typed()
    assert casts(model)[-1] == ("tail", "fp32", ("",))
    assert HALF not in {element_types(model)[name] for name in ("f", "m", "r")}


def test_a_layer_that_picks_reads_a_pinned_layer_in_fp32(subject):
    assert casts(subject("top_k").typed("layer")) == []


def test_integers_are_untouched(subject):
    types = element_types(subject("embedding").typed())
    assert {types[name] for name in ("ids", "one", "n", "next")} == {onnx.TensorProto.INT64}


# ---------------------------------------------------------------------------------- for any model and plan


@every_model
def test_one_tensor_is_cast_once_in_a_direction_and_never_back(subject, name):
    subject = subject(name)
    authors = Counter(node.op_type for node in subject.graph.nodes.values())["Cast"]
    for why, plan in subject.plans().items():
        model = onnx.load(subject.write(plan))
        nodes = [node for node in model.graph.node if node.op_type == "Cast"]
        assert render(subject.graph, plan).casts == len(nodes) - authors, why
        assert max(Counter((n.input[0], n.attribute[0].i) for n in nodes).values(), default=1) == 1, why
        added = {node.output[0] for node in nodes if node.name not in subject.graph.nodes}
        assert not [node.name for node in nodes if node.input[0] in added], why
        types = element_types(model)
        assert not [n.name for n in nodes if types[n.input[0]] == types[n.output[0]]], why


@every_model
def test_a_pinned_layer_reads_fp32_and_writes_fp32_and_any_other_half(subject, name):
    subject = subject(name)
    names = {layer.name for layer in subject.graph.layers if layer.role is Role.COMPUTE}
    for why, plan in subject.plans().items():
        model = onnx.load(subject.write(plan))
        types = element_types(model)
        for node in model.graph.node:
            if node.name in names:
                kinds = {types[name] for name in (*node.input, *node.output) if name}
                assert (HALF in kinds) == (node.name not in plan.fp32), f"{why}: {node.name}"


@every_model
def test_inputs_and_outputs_keep_names_and_types_and_layers_keep_names(subject, name):
    subject = subject(name)
    given = MODELS[name]().model
    held = {tensor.name for tensor in given.graph.initializer}
    for plan in (Plan(), subject.graph.all_pinned()):
        model = onnx.load(subject.write(plan))
        for mine, theirs in ((model.graph.input, given.graph.input), (model.graph.output, given.graph.output)):
            assert [(v.name, v.type.tensor_type.elem_type) for v in mine] == [
                (v.name, v.type.tensor_type.elem_type)
                for v in theirs
                if v.name not in held or theirs != given.graph.input
            ]
        names = [node.name for node in model.graph.node]
        assert len(set(names)) == len(names)
        assert {layer.name for layer in subject.graph.layers} <= set(names)


@every_model
def test_rendering_depends_on_the_plan_alone(subject, name):
    subject = subject(name)

    def data(plan: Plan) -> bytes:
        return ir.to_proto(render(subject.graph, plan).model).SerializeToString(deterministic=True)

    first = data(Plan())
    everything = data(subject.graph.all_pinned())
    assert data(Plan()) == first
    assert data(subject.graph.all_pinned()) == everything


@every_model
def test_the_users_file_is_never_changed(subject, name):
    subject = subject(name)
    before = subject.path.read_bytes()
    for plan in (Plan(), subject.graph.all_pinned()):
        subject.write(plan)
        subject.emulator.run(plan, subject.feed)
    assert subject.path.read_bytes() == before == MODELS[name]().model.SerializeToString()
