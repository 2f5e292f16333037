"""Errors layer by layer: accumulated, isolated, and those of single roundings; and how much memory that takes."""

from __future__ import annotations

import weakref

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from support.independent import alone_in_half, as_half, every_tensor, run_on_ort, with_one_pair
from support.model_cases import MODELS, save_case
from support.models import Case, f32, i64, normal, parsed

from trt_helper.emulator.checkpoints import CHECKPOINTS
from trt_helper.emulator.compare import compare
from trt_helper.emulator.kernels import Kernel, Rounder
from trt_helper.emulator.layer_errors import measure_layers
from trt_helper.values import Plan, Role, Statistic, Tolerance

every_model = pytest.mark.parametrize("name", MODELS)


@every_model
def test_a_walk_arrives_where_a_run_arrives(model_case, name):
    case = model_case(name)
    for why, plan in case.plans().items():
        arrived = {
            key: array for step in case.emulator.walk(plan, case.feed) for key, array in step.accumulated.items()
        }
        for output, expected in case.emulator.run(plan, case.feed).items():
            if output in arrived:
                found = (
                    as_half(arrived[output])
                    if case.graph.io_types.get(output) is ir.DataType.FLOAT16
                    else arrived[output]
                )
                np.testing.assert_array_equal(found, expected, err_msg=f"{why}: {output}")


@every_model
def test_a_walk_visits_each_layer_once_in_order_with_every_output(model_case, name):
    case = model_case(name)
    steps = list(case.emulator.walk(Plan(), case.feed))
    assert [step.layer for step in steps] == list(case.graph.layers)
    for step in steps:
        written = {name for name in step.layer.outputs if name}
        assert set(step.reference) == set(step.accumulated) == set(step.isolated) == written


@every_model
def test_the_reference_of_a_walk_is_the_fp32_file(model_case, name):
    case = model_case(name)
    control = case.graph.all_pinned()
    expected = every_tensor(case.write(control), case.feed)
    for step in case.emulator.walk(Plan(), case.feed):
        for tensor, array in step.reference.items():
            if tensor in expected and case.graph.io_types.get(tensor) is not ir.DataType.FLOAT16:
                np.testing.assert_array_equal(array, expected[tensor], err_msg=tensor)


PLAIN = [  # every float input of every layer follows its precision
    *("conv_bn_relu", "layernorm_overflow", "gelu_cube", "residual", "shared_initializer", "movement_between"),
    *("many_movements", "scatter_add", "lstm", "gru", "mask_constant", "huge_constant"),
]


@pytest.mark.parametrize("name", PLAIN)
def test_the_isolated_error_is_that_of_the_layer_alone_on_reference_inputs(model_case, name):
    """Whatever happens upstream: here everything else is half as well."""
    case = model_case(name)
    path = case.write(case.graph.all_pinned())
    model, tensors = onnx.load(path), every_tensor(path, case.feed)
    for step in case.one_step.walk(Plan(), case.feed):
        expected = alone_in_half(model, step.layer.name, tensors, half=tensors)
        for tensor, array in expected.items():
            np.testing.assert_array_equal(step.isolated[tensor], array, err_msg=f"{step.layer.name}: {tensor}")


@pytest.mark.parametrize("name", PLAIN)
def test_a_pinned_layer_adds_nothing_by_itself(model_case, name):
    case = model_case(name)
    pins = case.graph.candidates[::2]
    for step in case.emulator.walk(Plan.of(pins), case.feed):
        if step.layer.name in pins:
            for tensor, array in step.reference.items():
                np.testing.assert_array_equal(step.isolated[tensor], array)


def test_a_culprit_has_an_isolated_error_and_its_victim_has_not(model_case):
    """The square overflows by itself; the division only receives an infinite root and gives 0."""
    case = model_case("layernorm_overflow")
    steps = {step.layer.name: step for step in case.emulator.walk(Plan(), case.feed)}
    square, divide = steps["square"], steps["divide"]
    assert np.isinf(square.isolated["s"]).any()
    assert np.isfinite(square.reference["s"]).all()
    assert np.abs(divide.isolated["n"] - divide.reference["n"]).max() < 2e-3
    assert np.abs(divide.accumulated["n"] - divide.reference["n"]).max() > 0.5


@pytest.mark.parametrize("stat", list(Statistic))
def test_the_medians_of_layers_are_exact_where_a_median_decides(tmp_path, stat):
    case = Case("wide", parsed("g (float[100003] x) => (float[100003] y) { y = Exp(x) }"), {"x": normal(100_003)})
    one_case = save_case(case, tmp_path)
    tolerance = Tolerance(stat=stat)
    report = measure_layers(one_case.emulator, Plan(), [one_case.feed], tolerance)[0]
    step = next(one_case.emulator.walk(Plan(), one_case.feed))
    exact = compare("y", step.accumulated["y"], step.reference["y"], tolerance)
    assert (report.accumulated == exact) == (stat is Statistic.MEDIAN)
    assert report.isolated == report.accumulated


# --------------------------------------------------------------------------------------------- memory

LENGTH = 160


def chain(folder):
    """A quarter of the layers has an output that nobody reads."""
    lines = [f"[n{i}] p{i} = Pad(t{i}, pads) [s{i}] t{i + 1}, u{i} = Split(p{i}, parts)" for i in range(LENGTH // 4)]
    lines += [f"[n{i}] t{i + 1} = Add(t{i}, k)" for i in range(LENGTH // 4, LENGTH)]
    model = parsed(
        f"g (float[3] t0) => (float[3] t{LENGTH}) {{ {' '.join(lines)} }}", k=f32(0.25), pads=i64(0, 1), parts=i64(3, 1)
    )
    return save_case(Case("chain", model, {"t0": f32(0.1, 0.2, 0.3)}), folder)


@pytest.mark.parametrize("method", ["run", "walk", "reference", "inject"])
def test_a_tensor_is_freed_after_its_last_reader(tmp_path, monkeypatch, method):
    """Every second layer is pinned, so tensors are rounded on their way too; a handful is alive at any time.

    A run also leaves what is alive at some places for the next one. To inject a rounding keeps what layers only move
    until a computing layer, which may request another copy of it, has been: that of the chain's first quarter.
    """
    model_case = chain(tmp_path)
    plan = Plan.of(model_case.graph.candidates[::2])
    calls = {
        "run": lambda: model_case.emulator.run(plan, model_case.feed),
        "walk": lambda: [None for _ in model_case.emulator.walk(plan, model_case.feed)],
        "reference": lambda: model_case.emulator.reference(model_case.feed),
        "inject": lambda: model_case.emulator.inject([("t0", "n0")], whole),
    }
    whole = model_case.emulator.all_values(model_case.feed)
    made: list[weakref.ref] = []
    alive: list[int] = []

    def watched(call):
        def result(*args):
            found = call(*args)
            made.extend(map(weakref.ref, found if isinstance(found, list) else [found]))
            alive.append(sum(ref() is not None for ref in made))
            return found

        return result

    assert len(list(model_case.emulator.walk(plan, model_case.feed))) > LENGTH  # and weights are rounded by now
    monkeypatch.setattr(Kernel, "run", watched(Kernel.run))
    monkeypatch.setattr(Rounder, "__call__", watched(Rounder.__call__))
    calls[method]()
    assert len(made) >= LENGTH
    if method == "inject":
        alive = alive[2 * LENGTH // 3 :]
    assert max(alive) <= 10 + (2 * CHECKPOINTS if method == "run" else 0) < LENGTH


# ----------------------------------------------------------------------------------- single roundings


@pytest.mark.parametrize(
    "name", ["layernorm_overflow", "residual", "gelu_cube", "shared_initializer", "gru", "movement_between"]
)
def test_one_injected_rounding_is_one_pair_of_casts_in_the_fp32_model(model_case, name):
    case = model_case(name)
    path = case.write(case.graph.all_pinned())
    model = onnx.load(path)
    reference = case.emulator.all_values(case.feed)
    plain = run_on_ort(model, case.feed)
    made = {out for layer in case.graph.layers for out in layer.outputs} | set(case.feed)
    for layer in case.graph.layers:
        if layer.role is not Role.COMPUTE:
            continue
        for tensor in {*layer.inputs} & made:
            expected = run_on_ort(with_one_pair(model, tensor, layer.name), case.feed)
            changed = case.emulator.inject([(tensor, layer.name)], reference).changed
            for output, array in expected.items():
                np.testing.assert_array_equal(
                    changed.get(output, plain[output]), array, err_msg=f"{tensor} {layer.name}"
                )


def test_rounding_through_movement_reaches_only_the_reader_that_it_is_meant_for(model_case):
    """`conv` rounded on its way to `product`, through three movement layers."""
    case = model_case("movement_between")
    reference = case.emulator.all_values(case.feed)
    (changed,) = case.emulator.inject([("c", "product")], reference).changed.values()
    tensors = every_tensor(case.write(case.graph.all_pinned()), case.feed)
    moved = as_half(tensors["c"]).transpose(0, 2, 3, 1).reshape(4, 2)
    joined = np.concatenate([moved, tensors["more"]], axis=1)
    np.testing.assert_allclose(changed, np.tanh(joined @ tensors["v"]), rtol=1e-6)
    assert not np.array_equal(changed, reference["y"])


def test_an_injected_output_rounding_changes_that_output_alone(model_case):
    case = model_case("residual")
    reference = case.emulator.all_values(case.feed)
    changed = case.emulator.inject([("y", "")], reference).changed
    assert list(changed) == ["y"]
    np.testing.assert_array_equal(changed["y"], as_half(reference["y"]))


def test_a_layer_rounds_inside_if_its_weights_are_no_halves_or_its_kernel_takes_steps(model_case):
    assert model_case("shared_initializer").one_step.rounds_inside("one")
    assert not model_case("all_half").one_step.rounds_inside("product")
    assert not model_case("residual").emulator.rounds_inside("join")


def test_an_injection_that_changes_one_element_of_many_is_followed(tmp_path):
    """All but one are halves already; a few elements of a large tensor would not tell."""
    size = 1 << 20
    nodes = [helper.make_node("Relu", ["x"], ["r"], name="relu"), helper.make_node("Neg", ["r"], ["y"], name="neg")]
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [size]) for name in "xy"]
    model = helper.make_model(
        helper.make_graph(nodes, "g", infos[:1], infos[1:]), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    array = np.ones(size, np.float32)
    array[77_777] = 2049.0
    case = save_case(Case("one", model, {"x": array}), tmp_path)
    reference = case.emulator.all_values(case.feed)
    changed = case.emulator.inject([("x", "relu")], reference).changed
    assert changed["y"][77_777] == -2048.0
