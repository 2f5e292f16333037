"""The typed model: where casts stand and where they must not, its weights, its file, and what is refused."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import numpy_helper
from support.builder_models import counting_loop
from support.independent import BRAIN, HALF, casts, element_types, run_with_pairs
from support.model_cases import MODELS
from support.models import f32, normal, parsed
from support.rewritable_models import range_model
from support.special_models import external_model, save_external

from trt_helper.emulator.emulator import Emulator
from trt_helper.errors import ModelError, OutputError
from trt_helper.onnx_model.graph import read_graph
from trt_helper.onnx_model.load import load
from trt_helper.onnx_model.typed import check, render, round_to_half, state_conditions, write
from trt_helper.values import Plan, Role

every_model = pytest.mark.parametrize("name", MODELS)


def tensors(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def inputs_of(model: onnx.ModelProto, layer: str) -> list[str]:
    return list(next(node.input for node in model.graph.node if node.name == layer))


def test_a_model_in_half_is_cast_once_at_each_end(model_case):
    assert casts(model_case("residual").typed()) == [
        ("", "fp16", ("first",)),
        ("first", "fp32", ("",)),
        ("skip", "fp32", ("",)),
    ]


@every_model
def test_with_everything_pinned_no_cast_to_half_is_left_but_for_outputs_that_are_half(model_case, name):
    case = model_case(name)
    found = casts(onnx.load(case.write(case.graph.all_pinned())))
    assert [(kind, readers) for _, kind, readers in found if kind == "fp16" and readers != ("",)] == []


def test_several_pinned_readers_take_a_pinned_layers_tensor_as_it_is(model_case):
    found = casts(model_case("residual").typed("first", "left", "right"))
    assert found == [
        ("first", "fp16", ("skip",)),
        ("left", "fp16", ("join",)),
        ("right", "fp16", ("join",)),
        ("skip", "fp32", ("",)),
    ]


def test_all_half_readers_of_a_pinned_layer_share_one_cast(model_case):
    assert ("first", "fp16", ("left", "right", "skip")) in casts(model_case("residual").typed("first"))


def test_pinned_readers_and_an_output_share_one_cast(model_case):
    """The output's own name is given to the tensor that the pinned layers read."""
    model = model_case("residual").typed("left", "right")
    assert [cast for cast in casts(model) if cast[0] == "first"] == [("first", "fp32", ("", "left", "right"))]
    assert inputs_of(model, "left") == ["a"]


def test_a_pinned_chain_is_cast_where_it_begins_and_where_it_ends(model_case):
    assert casts(model_case("layernorm_overflow").typed("square", "variance", "epsilon", "root")) == [
        ("", "fp16", ("centre", "mean")),
        ("centre", "fp32", ("square",)),
        ("root", "fp16", ("divide",)),
        ("shift", "fp32", ("",)),
    ]


def test_a_pinned_layer_reads_a_graph_input_and_writes_a_graph_output_without_a_cast(model_case):
    assert casts(model_case("residual").typed("first", "skip", "join", "left", "right")) == []
    assert casts(model_case("shared_initializer").typed("three")) == [
        ("", "fp16", ("one",)),
        ("two", "fp32", ("three",)),
    ]
    assert casts(model_case("shared_initializer").typed("one")) == [("one", "fp16", ("two",)), ("three", "fp32", ("",))]


def test_an_initializer_that_both_precisions_read_exists_in_both(model_case):
    model = model_case("shared_initializer").typed("one")
    single, half = (inputs_of(model, layer)[1] for layer in ("one", "two"))
    weights = tensors(model)
    given = tensors(MODELS["shared_initializer"]().model)["w"]
    np.testing.assert_array_equal(weights[single], given, strict=True)
    np.testing.assert_array_equal(weights[half], given.astype(np.float16), strict=True)


def test_an_initializer_that_one_precision_reads_exists_once(model_case):
    for pins, kind in (((), np.float16), (("one", "two", "three"), np.float32)):
        weights = tensors(model_case("shared_initializer").typed(*pins))
        assert [weight.dtype for weight in weights.values()] == [kind] * 2


def test_movement_between_two_pins_stays_in_fp32(model_case):
    """Also the weight that is concatenated on the way."""
    model = model_case("movement_between").typed("conv", "product")
    assert casts(model) == [("product", "fp16", ("tail",)), ("tail", "fp32", ("",))]
    assert HALF not in {element_types(model)[name] for name in ("c", "t", "f", "more", "j", "p")}


def test_a_constant_that_half_would_change_is_moved_in_fp32_for_a_pin_and_in_half_otherwise(model_case):
    assert casts(model_case("padded").typed("tail")) == [("", "fp16", ("head",)), ("head", "fp32", ("pad",))]
    assert casts(model_case("padded").typed("head")) == [("head", "fp16", ("pad",)), ("tail", "fp32", ("",))]


def test_a_join_for_a_pin_stays_in_fp32_when_any_part_is_and_casts_the_other_part(model_case):
    assert casts(model_case("joined").typed("left", "tail")) == [("", "fp16", ("right",)), ("right", "fp32", ("join",))]
    assert casts(model_case("joined").typed("tail")) == [("", "fp16", ("left", "right")), ("join", "fp32", ("tail",))]


def test_movement_before_a_single_pin_moves_in_half(model_case):
    assert casts(model_case("movement_between").typed("product")) == [
        ("", "fp16", ("conv",)),
        ("join", "fp32", ("product",)),
        ("product", "fp16", ("tail",)),
        ("tail", "fp32", ("",)),
    ]


def test_movement_behind_a_single_pin_moves_in_half(model_case):
    assert ("conv", "fp16", ("turn",)) in casts(model_case("movement_between").typed("conv"))


def test_movement_between_an_input_and_an_output_is_never_cast(model_case):
    """Of `many_movements`, with its only computing layers pinned."""
    assert casts(model_case("many_movements").typed("head", "tail")) == []


def test_a_subgraph_reads_outer_tensors_in_fp32(model_case):
    assert casts(model_case("loop_float_state").typed()) == [
        ("", "fp16", ("start",)),
        ("end", "fp32", ("",)),
        ("loop", "fp16", ("end",)),
        ("start", "fp32", ("loop",)),
    ]


def test_a_pinned_layer_gives_its_tensor_to_a_subgraph_without_a_cast(model_case):
    assert casts(model_case("loop_float_state").typed("start", "end")) == []


def every_node(graph):
    """The nodes of a graph and of the branches of its Ifs."""
    for node in graph.node:
        yield node
        for attribute in node.attribute if node.op_type == "If" else ():
            yield from every_node(attribute.g)


@pytest.mark.parametrize("name", ["mixed_softmax", "all_half"])
def test_a_mixed_model_gets_its_authors_casts_back(model_case, name):
    renamed = {"back": "", "up": "softmax"}
    authors = [
        (maker, kind, tuple(sorted(renamed.get(reader, reader) for reader in readers)))
        for maker, kind, readers in casts(MODELS[name]().model)
    ]
    assert casts(model_case(name).typed()) == sorted(authors)


def test_arithmetic_on_shapes_stays_in_fp32_whatever_the_plan(model_case):
    model = model_case("resize_computed_scales").typed()
    assert casts(model)[-1] == ("tail", "fp32", ("",))
    assert HALF not in {element_types(model)[name] for name in ("f", "m", "r")}


def test_a_layer_that_picks_reads_a_pinned_layer_in_fp32(model_case):
    assert casts(model_case("top_k").typed("layer")) == []


def test_integers_are_untouched(model_case):
    types = element_types(model_case("embedding").typed())
    assert {types[name] for name in ("ids", "one", "n", "next")} == {onnx.TensorProto.INT64}


@every_model
def test_one_tensor_is_cast_once_in_a_direction_and_never_back(model_case, name):
    case = model_case(name)
    authors = Counter(node.op_type for node in case.graph.nodes.values())["Cast"]
    for why, plan in case.plans().items():
        model = onnx.load(case.write(plan))
        nodes = [node for node in every_node(model.graph) if node.op_type == "Cast"]
        assert render(case.graph, plan).casts == len(nodes) - authors, why
        assert max(Counter((n.input[0], n.attribute[0].i) for n in nodes).values(), default=1) == 1, why
        added = {node.output[0] for node in nodes if node.name not in case.graph.nodes}
        assert not [node.name for node in nodes if node.input[0] in added], why
        types = element_types(model)
        assert not [n.name for n in nodes if types[n.input[0]] == types[n.output[0]]], why


@every_model
def test_a_pinned_layer_reads_fp32_and_writes_fp32_and_any_other_half(model_case, name):
    case = model_case(name)
    names = {layer.name for layer in case.graph.layers if layer.role is Role.COMPUTE}
    for why, plan in case.plans().items():
        model = onnx.load(case.write(plan))
        types = element_types(model)
        for node in model.graph.node:
            if node.name in names:
                kinds = {types[name] for name in (*node.input, *node.output) if name}
                assert (HALF in kinds) == (node.name not in plan.fp32), f"{why}: {node.name}"


@every_model
def test_inputs_and_outputs_keep_names_and_types_and_layers_keep_names(model_case, name):
    case = model_case(name)
    given = MODELS[name]().model
    held = {tensor.name for tensor in given.graph.initializer}
    for plan in (Plan(), case.graph.all_pinned()):
        model = onnx.load(case.write(plan))
        for mine, theirs in ((model.graph.input, given.graph.input), (model.graph.output, given.graph.output)):
            assert [(v.name, v.type.tensor_type.elem_type) for v in mine] == [
                (v.name, v.type.tensor_type.elem_type)
                for v in theirs
                if v.name not in held or theirs != given.graph.input
            ]
        names = [node.name for node in every_node(model.graph)]
        assert len(set(names)) == len(names)
        assert {layer.name for layer in case.graph.layers} <= set(names)


@every_model
def test_rendering_depends_on_the_plan_alone(model_case, name):
    case = model_case(name)

    def data(plan: Plan) -> bytes:
        return ir.to_proto(render(case.graph, plan).model).SerializeToString(deterministic=True)

    first = data(Plan())
    everything = data(case.graph.all_pinned())
    assert data(Plan()) == first
    assert data(case.graph.all_pinned()) == everything


@every_model
def test_the_users_file_is_never_changed(model_case, name):
    case = model_case(name)
    before = case.path.read_bytes()
    for plan in (Plan(), case.graph.all_pinned()):
        case.write(plan)
        case.emulator.run(plan, case.feed)
    assert case.path.read_bytes() == before == MODELS[name]().model.SerializeToString()


# ----------------------------------------------------------------------------------------------------------------- BF16


def test_a_region_in_bf16_has_one_cast_at_each_border_and_none_inside(tmp_path):
    graph = range_model(tmp_path)
    path = tmp_path / "typed.onnx"
    write(render(graph, graph.plan([], ["up", "abs", "down"])), path)
    model = onnx.load(path)
    types = element_types(model)
    assert {types[name] for name in ("up", "abs")} == {BRAIN}
    assert sorted((maker, kind) for maker, kind, _ in casts(model)) == [
        ("", "bf16"),
        ("down", "fp16"),
        ("relu", "fp32"),
    ]


# ---------------------------------------------------------------------------------------------------------------- loops


def test_a_loop_that_counts_gets_a_condition_and_turns_as_often(tmp_path):
    onnx.save(counting_loop(), tmp_path / "model.onnx")
    typed = render(read_graph(load(tmp_path / "model.onnx")), Plan())
    state_conditions(typed.model)
    proto = ir.serde.serialize_model(typed.model)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": np.array([1, 2, 3, -4], np.float32)})
    assert y.tolist() == [8, 16, 24, 0]


# -------------------------------------------------------------------------------------------------------------- weights


FEED = {"x": normal(2, 32, scale=1.0)}


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_half_weights_are_the_nearest_halves_and_single_ones_the_users_own(model_case):
    given = tensors(MODELS["opset8"]().model)
    for pins, kind in (((), np.float16), (("conv", "dense"), np.float32)):
        arrays = list(tensors(model_case("opset8").typed(*pins)).values())
        for name in "wvb":
            expected = given[name].astype(kind)
            assert any(array.dtype == kind and np.array_equal(array, expected) for array in arrays), name


def test_a_constant_beyond_half_becomes_infinite_and_is_named(model_case):
    graph = model_case("huge_constant").graph
    assert render(graph, Plan()).unrepresentable == ("million",)
    assert render(graph, graph.plan(["up"])).unrepresentable == ("million",)
    assert render(graph, graph.all_pinned()).unrepresentable == ()
    assert [np.isinf(array).all() for array in tensors(model_case("huge_constant").typed()).values()] == [True]


@pytest.mark.parametrize("finite", [65504.0, 65519.9, -65519.9, 0.0, 1e-10])
def test_what_rounds_to_a_finite_half_is_representable(finite):
    half, exact = round_to_half(f32(finite, np.inf, np.nan))
    assert exact
    assert np.isfinite(half[0])


@pytest.mark.parametrize("lost", [65520.0, -1e6, 3.4e38])
def test_what_rounds_to_infinity_is_not(lost):
    half, exact = round_to_half(f32(1, lost))
    assert not exact
    assert half[1] == np.copysign(np.inf, lost)


def test_a_constant_that_fills_a_tensor_is_rounded_in_its_attribute(model_case):
    (node,) = (n for n in model_case("made_of_shapes").typed().graph.node if n.op_type == "ConstantOfShape")
    np.testing.assert_array_equal(numpy_helper.to_array(node.attribute[0].t), np.array([2048], np.float16), strict=True)


@pytest.mark.parametrize("files", [("w.bin", "w.bin"), ("a.bin", "b.bin"), ("deep/a.bin", "b.bin")])
@pytest.mark.parametrize("pins", [(), ("one",), ("one", "two", "three")])
def test_a_model_with_external_weights_gives_a_file_that_stands_alone(tmp_path, files, pins):
    graph = read_graph(load(save_external(tmp_path / "given", files=files)))
    plan = graph.plan(pins)
    for folder in ("given", "elsewhere"):
        path = tmp_path / folder / "typed.onnx"
        write(render(graph, plan), path)
        found = run_with_pairs(path, FEED)["y"]
        np.testing.assert_array_equal(found, Emulator(graph).run(plan, FEED)["y"])
    assert files_in(tmp_path / "elsewhere") == ["typed.onnx"]


def test_external_and_internal_weights_are_judged_alike(tmp_path):
    internal = tmp_path / "internal.onnx"
    internal.write_bytes(external_model().SerializeToString())
    found = [Emulator(read_graph(load(p))).run(Plan(), FEED)["y"] for p in (internal, save_external(tmp_path))]
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("pins", [(), ("one",)])
def test_weights_too_large_for_one_file_go_beside_it(tmp_path, monkeypatch, pins):
    monkeypatch.setattr("trt_helper.onnx_model.typed.PROTOBUF_LIMIT", 1000)
    graph = read_graph(load(save_external(tmp_path / "given")))
    path = tmp_path / "out" / "typed.onnx"
    for _ in range(2):
        write(render(graph, graph.plan(pins)), path)
        assert files_in(path.parent) == ["typed.onnx", "typed.onnx.data"]
        np.testing.assert_array_equal(run_with_pairs(path, FEED)["y"], Emulator(graph).run(graph.plan(pins), FEED)["y"])


def test_a_folder_that_is_a_file_is_refused_with_the_path(tmp_path, model_case):
    (tmp_path / "taken").write_text("")
    typed = render(model_case("residual").graph, Plan())
    with pytest.raises(OutputError, match=r"taken/typed\.onnx cannot be written") as error:
        write(typed, tmp_path / "taken" / "typed.onnx")
    assert error.value.exit_status == 3


def test_a_typed_model_that_is_wrong_is_refused_and_leaves_nothing_behind(tmp_path, model_case):
    """An addition of a half and a single: what a forgotten cast would give."""
    typed = render(model_case("residual").graph, Plan())
    join = next(node for node in typed.model.graph if node.name == "join")
    join.inputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    with pytest.raises(ModelError, match="not valid"):
        write(typed, tmp_path / "typed.onnx")
    assert files_in(tmp_path) == []


def test_the_checker_refuses_mixed_types_that_its_plain_form_lets_pass(tmp_path):
    model = parsed("g (float[2] x, float16[2] h) => (float[2] y) { [sum] y = Add(x, h) }")
    path = tmp_path / "mixed.onnx"
    path.write_bytes(model.SerializeToString())
    onnx.checker.check_model(str(path))
    with pytest.raises(ModelError, match="not valid"):
        check(path)


def test_two_writers_of_one_file_leave_a_whole_one(tmp_path, model_case):
    graph = model_case("residual").graph
    path = tmp_path / "typed.onnx"
    plans = [Plan(), graph.all_pinned()] * 4
    threads = [threading.Thread(target=lambda plan=plan: write(render(graph, plan), path)) for plan in plans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    check(path)
    assert files_in(tmp_path) == ["typed.onnx"]
