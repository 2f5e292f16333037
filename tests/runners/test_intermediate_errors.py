"""The intermediate tensors of an engine against the emulator. Engines are real; what they would compute is made up."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import yaml
from support.builder_models import needs_rtx, weights
from support.onnx_parts import model, node, value

from trt_helper.builder.convert import convert
from trt_helper.builder.layer_info import EngineLayer, EngineTensor
from trt_helper.builder.settings import BuildSettings
from trt_helper.cli import tables
from trt_helper.cli.console import show
from trt_helper.emulator.emulator import Emulator
from trt_helper.errors import MachineError
from trt_helper.inputs.references import references
from trt_helper.inputs.sample import Sample
from trt_helper.onnx_model.graph import read_graph
from trt_helper.onnx_model.load import load
from trt_helper.report.record import located_json
from trt_helper.runners.intermediate_errors import attributed, complaint, intermediate_errors, intermediate_tensors
from trt_helper.runners.oracle import RunnerOracle
from trt_helper.runners.run import RUNNERS, Runner, runner_here
from trt_helper.search.locate import locate
from trt_helper.search.oracle import Criteria, EmulatedOracle
from trt_helper.system import child_process
from trt_helper.values import IntermediateError, Plan, TensorError, Tolerance

LAYERS = ("c0", "r0", "c1", "r1", "up", "down")
STAND_IN = Runner("stand-in", "tensorrt_rtx", "trt-helper[rtx]", module="support.stand_in_engine_child")


@pytest.fixture
def graph(tmp_path):
    """Two convolutions with their Relus, then a product that is beyond FP16 and a quotient that brings it back."""
    nodes = [
        node("Conv", ["x", "k0"], ["c0_out"], "c0", pads=[1, 1, 1, 1]),
        node("Relu", ["c0_out"], ["r0_out"], "r0"),
        node("Conv", ["r0_out", "k1"], ["c1_out"], "c1", pads=[1, 1, 1, 1]),
        node("Relu", ["c1_out"], ["r1_out"], "r1"),
        node("Mul", ["r1_out", "big"], ["up_out"], "up"),
        node("Div", ["up_out", "big"], ["y"], "down"),
    ]
    big = weights("big", [1])
    big.raw_data = np.array([1e5], np.float32).tobytes()
    held = [weights("k0", [32, 32, 3, 3]), weights("k1", [32, 32, 3, 3]), big]
    path = tmp_path / "m.onnx"
    made = model(nodes, [value("x", [1, 32, 8, 8])], [value("y", [1, 32, 8, 8])], held)
    path.write_bytes(made.SerializeToString())
    return read_graph(load(path))


def sample():
    return Sample("s", {"x": np.random.default_rng(1).standard_normal([1, 32, 8, 8]).astype(np.float32)})


def kernel(name, onnx, *outputs):
    made = tuple(EngineTensor(tensor, "FP16", (1, 32, 8, 8)) for tensor in outputs)
    return EngineLayer(name, "correlation", tuple(onnx), (), (), made)


# ------------------------------------------------------------------------------------------ whose tensor it is


def test_the_tensor_that_alone_leads_out_of_a_kernel_is_its_output(graph):
    layers = [kernel("k0", ["c0", "r0"], "a"), kernel("k1", ["c1", "x_to_fp16_cast"], "b"), kernel("k2", ["down"], "y")]
    k0, k1, k2 = layers
    assert attributed(layers, graph) == {"a": ("r0_out", k0), "b": ("c1_out", k1), "y": ("y", k2)}


@pytest.mark.parametrize(
    "layers",
    [
        [kernel("k", ["c0", "c1"], "a")],  # c0_out and c1_out both lead out
        [kernel("k", ["c0"], "a", "b")],  # which of the two?
        [kernel("k", ["c0"], "a"), kernel("l", ["c0"], "b")],  # kernels name layers that they only read from
        [kernel("k", ["x_to_fp16_cast"], "a")],
        [kernel("k", [], "a")],
    ],
)
def test_what_may_be_another_tensor_is_left_out(graph, layers):
    assert attributed(layers, graph) == {}


def test_the_intermediate_tensors_are_what_layers_compute_for_others(tmp_path):
    nodes = [
        node("Relu", ["x"], ["a"], "relu"),
        node("Transpose", ["a"], ["b"], "turn"),
        node("Tanh", ["b"], ["c"], "tanh"),
        node("Relu", ["c"], ["y"], "last"),
    ]
    path = tmp_path / "moved.onnx"
    path.write_bytes(model(nodes, [value("x", [2, 2])], [value("y", [2, 2])], []).SerializeToString())
    moved = read_graph(load(path))
    assert intermediate_tensors(moved, Plan()) == ("a", "c")
    assert intermediate_tensors(moved, Plan(bf16=frozenset({"tanh"}))) == ("a",)


# ------------------------------------------------------------------------------------------ how far off


def steps(graph, plan):
    return {
        name: (step.reference[name], step.accumulated[name])
        for step in Emulator(graph).walk(plan, sample().feed)
        for name in step.reference
    }


def errors_of(graph, **wrong):
    """What is found where the engine computes as emulated, but for the tensors in `wrong`."""
    emulated = {name: array for name, (_, array) in steps(graph, Plan()).items()} | wrong
    outputs = ("c0_out", "r0_out", "c1_out", "r1_out", "up_out", "y")
    found = {name: (emulated[name], kernel(f"k{index}", [], name)) for index, name in enumerate(outputs)}
    return intermediate_errors(Emulator(graph), Plan(), sample().feed, found, Tolerance())


def test_an_engine_that_computes_as_emulated_is_nowhere_farther_off(graph):
    found = errors_of(graph)
    assert [(one.layer, one.kernel) for one in found] == [(name, f"k{index}") for index, name in enumerate(LAYERS)]
    assert all(one.engine == one.emulated for one in found)
    assert not any(one.is_farther for one in found)
    assert [one.layer for one in found if one.engine.non_finite] == ["up", "down"]  # precision, not a kernel


def test_only_the_layer_whose_kernel_is_wrong_is_farther_off(graph):
    reference, _ = steps(graph, Plan())["c1_out"]
    found = errors_of(graph, c1_out=reference * np.float32(1.1))
    assert [one.layer for one in found if one.is_farther] == ["c1"]
    (wrong,) = [one for one in found if one.is_farther]
    assert wrong.engine.max == pytest.approx(0.1 * np.abs(reference).max(), rel=1e-4)


def test_what_is_farther_off_is_said_with_what_to_exclude_where_tactics_can_be(graph):
    reference, _ = steps(graph, Plan())["c1_out"]
    assert complaint(errors_of(graph), excludable=True) is None
    found = errors_of(graph, c1_out=reference * np.float32(1.1))
    said = complaint(found, excludable=True)
    assert said.startswith("1 of 6 tensors in the engine are farther off than FP16 explains, first that of 'c1' (")
    assert said.endswith("a fusion or a kernel")  # its tactic is not known
    found = [replace(one, tactic="sm80_xmma") for one in found]
    assert complaint(found, excludable=False) == said
    said = complaint(found, excludable=True)
    entries = yaml.safe_load(said[said.index("TRT_EXCLUDE_TACTIC:") : said.index(" tries another kernel")])
    assert entries == {"TRT_EXCLUDE_TACTIC": [{"layer": "c1", "kernel": "sm80_xmma"}]}


def test_not_a_number_where_fp16_has_one_is_farther_off(graph):
    _, emulated = steps(graph, Plan())["r0_out"]
    broken = emulated.copy()
    broken[0, 0, 0, 0] = np.nan
    assert [one.layer for one in errors_of(graph, r0_out=broken) if one.is_farther] == ["r0"]


def test_a_tensor_of_another_shape_is_not_what_it_was_taken_for(graph):
    found = errors_of(graph, r0_out=np.zeros([1, 8, 8, 32], np.float32))
    assert "r0" not in {one.layer for one in found}
    assert len(found) == len(LAYERS) - 1


# ------------------------------------------------------------------------------------------ engines


@needs_rtx
def test_debug_tensors_leave_the_kernels_what_they_are(graph, tmp_path):
    """Marked outputs would change what is fused; the layers of this engine are those of the one that is judged."""
    built = [
        convert(
            graph,
            Plan(),
            engine=tmp_path / f"{len(debug)}.trt",
            typed_onnx=None,
            profile={},
            settings=BuildSettings(debug_tensors=debug),
        ).engine
        for debug in ((), ("r0_out",))
    ]
    names = [[(one.name, one.kind, one.onnx_layers) for one in engine.layers] for engine in built]
    assert names[0] == names[1]
    assert built[1].marked == ()
    assert built[0].sha256 != built[1].sha256  # they are there: without them, two builds give the same bytes
    shapes = {tensor.name: tensor.shape for one in built[1].layers for tensor in one.outputs}
    found = attributed(built[1].layers, graph)
    assert found
    assert {shapes[name] for name in found} == {(1, 32, 8, 8)}


def oracle(graph):
    given = [sample()]
    return RunnerOracle(graph, STAND_IN, Criteria(given, references(graph, given), Tolerance()), {}, BuildSettings())


def let_engine_compute_changed(graph, tmp_path, monkeypatch, change):
    """Let the stand-in engine compute as emulated, under the names that a real build gives, and `change` that."""
    made = convert(
        graph,
        Plan(),
        engine=tmp_path / "n.trt",
        typed_onnx=None,
        profile={},
        settings=BuildSettings(debug_tensors=("r0_out",)),
    )
    known = steps(graph, Plan())
    computed = {name: known[tensor][1] for name, (tensor, _) in attributed(made.engine.layers, graph).items()}
    let_engine_compute(tmp_path, monkeypatch, change(computed) | {"y": known["y"][1]})


def let_engine_compute(tmp_path, monkeypatch, computed):
    """Let the stand-in engine compute this."""
    path = tmp_path / "computed.npz"
    np.savez(path, *computed.values(), names=np.array(list(computed)))
    monkeypatch.setenv("STAND_IN_ENGINE", str(path))


@needs_rtx
def test_intermediate_tensors_are_compared_with_the_emulated_ones(graph, tmp_path, monkeypatch):
    let_engine_compute_changed(
        graph, tmp_path, monkeypatch, lambda computed: {name: array * 2 for name, array in computed.items()}
    )
    said = []
    found = oracle(graph).intermediate_errors(Plan(), 0, Emulator(graph), said.append)
    wrong = [one for one in found if one.is_farther]
    assert wrong
    assert len(said) == 1
    assert f"{len(wrong)} of {len(found)} tensors in the engine are farther off than FP16 explains" in said[0]
    assert f"first that of {wrong[0].layer!r}" in said[0]
    assert said[0].endswith("a fusion or a kernel")


@needs_rtx
def test_an_engine_that_is_as_emulated_says_nothing(graph, tmp_path, monkeypatch):
    let_engine_compute_changed(graph, tmp_path, monkeypatch, lambda computed: computed)
    said = []
    found = oracle(graph).intermediate_errors(Plan(), 0, Emulator(graph), said.append)
    assert found
    assert not any(one.is_farther for one in found)
    assert said == []


@needs_rtx
def test_an_engine_that_gives_no_intermediate_tensor_is_said(graph, tmp_path, monkeypatch):
    let_engine_compute_changed(graph, tmp_path, monkeypatch, lambda _: {})
    said = []
    assert oracle(graph).intermediate_errors(Plan(), 0, Emulator(graph), said.append) == ()
    assert said == ["no tensor between the kernels of the engine could be read"]


@needs_rtx
def test_an_engine_whose_intermediate_tensors_cannot_be_had_is_said_and_no_error(graph, tmp_path, monkeypatch):
    monkeypatch.setenv("STAND_IN_ENGINE", str(tmp_path / "none.npz"))
    crashing = replace(oracle(graph), runner=replace(STAND_IN, module="no_such_child"))
    said = []
    assert crashing.intermediate_errors(Plan(), 0, Emulator(graph), said.append) == ()
    assert len(said) == 1
    assert said[0].startswith("the tensors inside the engine were not measured: the runner 'stand-in' cannot be loaded")


def test_a_runner_without_engines_has_no_intermediate_errors(graph):
    said = []
    none = replace(oracle(graph), runner=RUNNERS["cuda"])
    assert none.intermediate_errors(Plan(), 0, Emulator(graph), said.append) == ()
    assert said == []


# ------------------------------------------------------------------------------------ without debug tensors


@pytest.fixture(params=["lacks them", "has none to emit"])
def engines(monkeypatch, request):
    """Every engine that is built, with its guards, by TensorRT-RTX whose networks have no debug tensors."""
    monkeypatch.setenv("OLDER_BUILDER", request.param)

    def older(module, *args, **how):
        return child_process.run(
            module.replace("trt_helper.builder.build_child", "support.older_builder_child"), *args, **how
        )

    built = []
    monkeypatch.setattr("trt_helper.builder.build.run", older)

    def spied(*args, **how):
        made = convert(*args, **how)
        built.append((made.engine, how["guards"]))
        return made

    monkeypatch.setattr("trt_helper.runners.oracle.convert", spied)
    return built


@needs_rtx
def test_without_debug_tensors_each_is_an_output_of_one_of_a_few_engines(graph, tmp_path, monkeypatch, engines):
    emulated = {name: array for name, (_, array) in steps(graph, Plan()).items()}
    let_engine_compute(tmp_path, monkeypatch, emulated | {"c1_out": emulated["c1_out"] * 2})
    said = []
    found = replace(oracle(graph), guards=("c1",)).intermediate_errors(Plan(), 0, Emulator(graph), said.append)
    between = ["c0_out", "r0_out", "c1_out", "r1_out", "up_out"]
    assert {guards for _, guards in engines} == {("c1",)}
    assert [engine.marked for engine, _ in engines] == [("c0_out", "up_out"), ("r0_out",), ("c1_out",), ("r1_out",)]
    for engine, _ in engines:
        shown = {tensor.name: one.name for one in engine.layers for tensor in one.outputs}
        assert {"y", *engine.marked} <= shown.keys()  # TensorRT's own list of the engine has them
        assert {one.kernel for one in found if one.tensor in engine.marked} == {shown[name] for name in engine.marked}
    assert [one.tensor for one in found] == between
    assert [one.layer for one in found if one.is_farther] == ["c1"]
    assert "has no debug tensors: the inside is that of 4 engines, each with some 2 tensors as outputs" in said[0]
    assert "first that of 'c1'" in said[1]
    assert len(said) == 2


@needs_rtx
def test_a_model_without_intermediate_tensors_needs_no_engine_for_them(tmp_path, engines):
    path = tmp_path / "one.onnx"
    made = model([node("Relu", ["x"], ["y"], "r")], [value("x", [1, 4])], [value("y", [1, 4])], [])
    path.write_bytes(made.SerializeToString())
    alone = read_graph(load(path))
    given = [Sample("s", {"x": np.ones([1, 4], np.float32)})]
    criteria = Criteria(given, references(alone, given), Tolerance())
    judge = RunnerOracle(alone, STAND_IN, criteria, {}, BuildSettings())
    said = []
    assert judge.intermediate_errors(Plan(), 0, Emulator(alone), said.append) == ()
    assert engines == []
    assert said == ["no tensor between the kernels of the engine could be read"]


# ------------------------------------------------------------------------------------------ in a search


def error(name, most):
    return TensorError(name, most, most, most, 0.0, 0.0, 0.0, (0,), 0, 0, 1, 1.0)


class WithIntermediateErrors(EmulatedOracle):
    """Judges as the emulator does, and knows intermediate errors."""

    def intermediate_errors(self, plan, _sample, _emulator, warn):
        assert plan == Plan()
        warn("compared")
        return (
            IntermediateError("c1", "c1_out", "[red]k", error("c1_out", 0.5), error("c1_out", 1e-3)),
            IntermediateError("r1", "r1_out", "k", error("r1_out", 1e-3), error("r1_out", 1e-3)),
        )


def test_a_search_lists_intermediate_errors_and_decides_without_them(graph, capsys):
    given = [sample()]
    plain = locate(graph, given, Tolerance())

    def with_intermediate_errors(graph, criteria):
        return WithIntermediateErrors(Emulator(graph), criteria)

    located = locate(graph, given, Tolerance(), oracle=with_intermediate_errors, runner="stand-in")
    assert located.plan == plain.plan
    assert sorted(located.warnings) == sorted(["compared", *plain.warnings])
    found = located_json(located)["inside"]
    assert [(one["layer"], one["farther"]) for one in found] == [("c1", True), ("r1", False)]
    assert (found[0]["engine"]["max"], found[0]["emulated"]["max"]) == (0.5, 1e-3)
    assert "inside" not in located_json(plain)
    show(tables.intermediate_errors(located.intermediate_errors, 20))
    rows = capsys.readouterr().out.splitlines()
    assert [row for row in rows if "c1" in row and "[red]k" in row and "farther" in row]
    assert not [row for row in rows if "r1" in row and "farther" in row]


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_on_a_gpu_a_search_compares_the_intermediate_tensors_of_the_engine(graph, name):
    try:
        runner = runner_here(name)
    except MachineError as missing:
        pytest.skip(missing.message)
    settings = BuildSettings(tensorrt=name == "tensorrt")

    def oracle(graph, criteria):
        return RunnerOracle(graph, runner, criteria, {}, settings)

    located = locate(graph, [sample()], Tolerance(1e-2, 0), oracle=oracle, runner=name)
    not_compared = [said for said in located.warnings if "were not measured" in said]
    assert located.intermediate_errors or not_compared
