"""Cures: what is found, that it computes the same in FP32, and what `locate` makes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from support import zoo_cases  # noqa: F401 - registers the cases
from support.independent import BRAIN, casts, element_types, run_with_pairs
from support.norms import (
    SPELLINGS,
    WIDTH,
    Build,
    over_another_axis,
    rms,
    torch_layer_norm,
    variance_of_something_else,
    without_a_root,
)
from support.zoo import CASES, Net
from support.zoo_judge import Judged

from trt_helper.builder.build import build
from trt_helper.builder.settings import BuildSettings
from trt_helper.emulator.emulator import Emulator
from trt_helper.errors import ConfigError
from trt_helper.inputs.samples import Sample, load_samples
from trt_helper.onnx_model.graph import Graph, read_graph
from trt_helper.onnx_model.load import load
from trt_helper.onnx_model.rewrites import find
from trt_helper.onnx_model.typed import render, write
from trt_helper.search.journal import Journal
from trt_helper.search.locate import locate
from trt_helper.search.oracle import Criteria, EmulatedOracle, emulated
from trt_helper.search.saved import SavedSearch
from trt_helper.search.strategy import no_plans
from trt_helper.values import REWRITE_KINDS, Plan, Rewrite, Tolerance, Verdict


def graph_of(build: Build, folder: Path) -> Graph:
    net = Net(7)
    y = build(net, net("Mul", net.input("x", [2, 5, WIDTH]), 1.5))
    path = folder / "norm.onnx"
    onnx.save(net.model("norm", [net("Add", y, net.normal(WIDTH))], [2, 5, WIDTH]), path)
    return read_graph(load(path))


def reference(graph: Graph, feed: dict[str, np.ndarray]) -> np.ndarray:
    session = ort.InferenceSession(str(graph.source.path), providers=["CPUExecutionProvider"])
    return session.run(None, feed)[0]


@pytest.mark.parametrize(("build", "op"), SPELLINGS.items(), ids=lambda value: getattr(value, "__name__", value))
def test_a_norm_in_pieces_becomes_one_operator_that_computes_the_same(build, op, tmp_path):
    graph = graph_of(build, tmp_path)
    offered = find(graph.model.graph, ["norms"])
    assert offered == (Rewrite("norms", "norm", op),)
    rewritten = read_graph(graph.source, offered)
    assert [layer.op for layer in rewritten.layers] == ["Mul", op, "Add"]
    assert len(graph.layers) > len(rewritten.layers)
    feed = {"x": np.random.default_rng(3).normal(3, 2, (2, 5, WIDTH)).astype(np.float32)}
    found = next(iter(Emulator(rewritten).reference(feed).values()))
    np.testing.assert_allclose(found, reference(graph, feed), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("build", [over_another_axis, variance_of_something_else, without_a_root])
def test_what_only_looks_like_a_norm_is_left_alone(build, tmp_path):
    assert find(graph_of(build, tmp_path).model.graph, REWRITE_KINDS) == ()


def test_the_layers_that_went_into_a_norm_answer_by_its_name(tmp_path):
    graph = graph_of(torch_layer_norm, tmp_path)
    rewritten = read_graph(graph.source, find(graph.model.graph, ["norms"]))
    (root,) = [layer.name for layer in graph.layers if layer.op == "Sqrt"]
    assert rewritten.plan([root]).fp32 == {"norm"}


def test_a_cure_that_the_model_does_not_offer_is_named_with_the_nearest(tmp_path):
    graph = graph_of(torch_layer_norm, tmp_path)
    with pytest.raises(ConfigError, match="'nrm' by norms") as caught:
        read_graph(graph.source, [Rewrite("norms", "nrm", "LayerNormalization")])
    assert "'norm'" in caught.value.fix


def test_only_constants_beyond_the_range_are_brought_into_it(tmp_path):
    """-1e9 becomes what a half can hold together with a score; -inf, 3.5 and 60000 stay."""
    weights = [
        numpy_helper.from_array(np.array(v, np.float32), n) for n, v in (("mask", [-1e9, 0]), ("big", [6e4, 3.5]))
    ]
    nodes = [helper.make_node("Add", ["x", "mask"], ["a"], "a"), helper.make_node("Mul", ["a", "big"], ["y"], "y")]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [info("x", TensorProto.FLOAT, [2])], [info("y", TensorProto.FLOAT, [2])], weights
    )
    path = tmp_path / "mask.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    model = load(path)
    offered = find(read_graph(model).model.graph, ["constants"])
    assert offered == (Rewrite("constants", "mask"),)
    held = read_graph(model, offered).model.graph.initializers
    np.testing.assert_array_equal(held["mask"].const_value.numpy(), [-32768.0, 0.0])
    np.testing.assert_array_equal(held["big"].const_value.numpy(), np.array([6e4, 3.5], np.float32))


# ------------------------------------------------------------------------------------------------- bf16


def range_model(folder: Path) -> Graph:
    """Values of some 1e6 between two products, with a transpose in the middle."""
    net = Net(5)
    up = net("Mul", net.input("x", [4, 8]), 1e6, name="up")
    down = net("Mul", net("Transpose", net("Abs", up, name="abs"), perm=[1, 0]), 1e-6, name="down")
    path = folder / "range.onnx"
    onnx.save(net.model("range", [net("Relu", down, name="relu")], [8, 4]), path)
    return read_graph(load(path))


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


@pytest.mark.parametrize("bf16", [["up"], ["abs"], ["up", "abs"], ["up", "abs", "down"], ["down", "relu"]])
@pytest.mark.parametrize("fp32", [[], ["relu"], ["abs"]])
def test_bf16_is_emulated_as_the_typed_file_computes_it(tmp_path, bf16, fp32):
    graph = range_model(tmp_path)
    plan = graph.plan(fp32, bf16)
    path = tmp_path / "typed.onnx"
    write(render(graph, plan), path)
    feed = {"x": np.random.default_rng(1).normal(size=(4, 8)).astype(np.float32)}
    np.testing.assert_array_equal(
        next(iter(Emulator(graph).run(plan, feed).values())), *run_with_pairs(path, feed).values()
    )


def test_bf16_holds_the_range_and_eight_bits(tmp_path):
    graph = range_model(tmp_path)
    feed = {"x": np.random.default_rng(1).normal(size=(4, 8)).astype(np.float32)}
    exact = reference(graph, feed)
    plan = graph.plan([], ["up", "abs", "down"])
    found = next(iter(Emulator(graph).run(plan, feed).values()))
    assert not np.isfinite(next(iter(Emulator(graph).run(Plan(), feed).values()))).all()
    relative = np.abs(found - exact).max() / np.abs(exact).max()
    assert 2.0**-12 < relative < 2.0**-6


def test_an_engine_is_built_with_bf16(tmp_path):
    graph = range_model(tmp_path)
    path = tmp_path / "typed.onnx"
    write(render(graph, graph.plan([], ["up", "abs", "down"])), path)
    built = build(path, tmp_path / "range.trt", profiles=[], settings=BuildSettings())
    assert built.bytes > 0


# ---------------------------------------------------------------------------------------------- locate


def rewritten(case: Judged, kinds: str):
    samples = [Sample(f"s{index}", feed) for index, feed in enumerate(case.feeds[0])]
    return locate(case.graph, samples, Tolerance(atol=case.case.atol, rtol=0.0), rewrites=kinds.split(","))


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("layernorm_square", "pins,norms"),
        ("rmsnorm_square", "pins,norms"),
        ("mask_by_where", "pins,constants"),
        ("rmsnorm_square", "norms"),
    ],
)
def test_a_cure_takes_the_place_of_all_pins(name, kinds, tmp_path):
    case = Judged(CASES[name], tmp_path)
    located = rewritten(case, kinds)
    assert case.case.k > 0
    assert located.after.verdict is Verdict.PASS
    assert located.plan == Plan()
    assert [trial.verdict for trial in located.without_rewrite.values()] == [Verdict.FAIL]


def test_a_constant_that_the_result_depends_on_is_not_touched(tmp_path):
    """A factor of 2.5e7 is no mask: brought into range it would change the FP32 result, so layers are pinned."""
    case = Judged(CASES["tiny_weights_rescaled"], tmp_path)
    located = rewritten(case, "pins,constants")
    assert located.graph.rewrites == ()
    assert located.plan.fp32 in case.case.culprits


def test_cures_are_not_applied_where_fp16_is_accurate_without(tmp_path):
    clean = next(name for name, case in CASES.items() if not case.k)
    located = rewritten(Judged(CASES[clean], tmp_path), ",".join(REWRITE_KINDS))
    assert located.graph.rewrites == ()
    assert located.plan == Plan()


def test_a_pin_whose_trouble_is_range_becomes_bf16_where_that_passes(tmp_path):
    graph = range_model(tmp_path)
    feeds = [np.random.default_rng(seed).normal(size=(4, 8)).astype(np.float32) for seed in range(2)]
    samples = [Sample(f"s{seed}", {"x": feed}) for seed, feed in enumerate(feeds)]
    located = locate(graph, samples, Tolerance(atol=0.1, rtol=0.0), rewrites=["pins", "bf16"])
    assert located.after.verdict is Verdict.PASS
    assert located.plan == Plan(bf16=frozenset({"up", "abs", "down"}))
    for name in located.plan.bf16:
        without = located.without(name)
        assert without is not None, f"{name} was not taken out again"
        assert without.verdict is Verdict.FAIL
    strict = locate(graph, samples, Tolerance(atol=0.003, rtol=0.0), rewrites=["pins", "bf16"])
    assert strict.after.verdict is Verdict.PASS
    assert strict.plan == Plan(frozenset({"up", "abs", "down"}))


@pytest.fixture
def norm_and_bound(tmp_path) -> tuple[Graph, list[Sample]]:
    """A root mean square that overflows, bounded by 1e9, which becomes infinity in FP16 and harms nobody."""
    net = Net(9)
    y = net("Min", rms(net, net("Mul", net.input("x", [4, WIDTH]), 300.0, name="up")), 1e9, name="bound")
    path = tmp_path / "model.onnx"
    onnx.save(net.model("norm", [net("Add", y, net.normal(WIDTH), name="shift")], [4, WIDTH]), path)
    feeds = [np.random.default_rng(seed).normal(size=(4, WIDTH)).astype(np.float32) for seed in range(2)]
    return read_graph(load(path)), [Sample(f"s{seed}", {"x": feed}) for seed, feed in enumerate(feeds)]


LOOSE = Tolerance(atol=0.02, rtol=0.0)
NORM = Rewrite("norms", "norm", "RMSNormalization")


def test_a_cure_that_is_not_needed_is_not_applied_and_its_trials_count(norm_and_bound):
    graph, samples = norm_and_bound
    offered = find(graph.model.graph, REWRITE_KINDS)
    assert {rewrite.kind for rewrite in offered} == {"norms", "constants"}
    located = locate(graph, samples, LOOSE, rewrites=REWRITE_KINDS)
    assert located.graph.rewrites == (NORM,)
    assert located.plan == Plan()
    searches = [trial for trial in located.trials if trial.because.startswith("control: no layer")]
    assert len(searches) == 2, "the search with both cures, and the one whose answer stands"


def test_cures_are_judged_by_what_judges_the_search(norm_and_bound):
    graph, samples = norm_and_bound
    asked: list[tuple[tuple[Rewrite, ...], Plan]] = []

    class Spy(EmulatedOracle):
        def judge(self, plan, which, speculative=no_plans):
            asked.append((self.emulator.graph.rewrites, plan))
            return super().judge(plan, which, speculative)

    def oracle(graph: Graph, criteria: Criteria) -> Spy:
        return Spy(Emulator(graph), criteria)

    located = locate(graph, samples, LOOSE, rewrites=["pins", "norms"], oracle=oracle, runner="spy")
    assert located.runner == "spy"
    assert asked[0] == ((), Plan())
    assert {rewrites for rewrites, _ in asked} == {(), (NORM,)}
    assert located.without_rewrite[NORM].verdict is Verdict.FAIL


def test_a_journal_keeps_the_trials_of_each_set_of_cures_apart(norm_and_bound, tmp_path, monkeypatch):
    """The second search is resumed from the first one's journal, and asks for no plan again."""
    graph, samples = norm_and_bound
    monkeypatch.setattr(Journal, "remove", lambda _journal: None)
    judged: list[int] = []

    def counting(graph: Graph, criteria: Criteria) -> EmulatedOracle:
        oracle = emulated(graph, criteria)
        judge = oracle.judge
        monkeypatch.setattr(oracle, "judge", lambda *words: judged.append(len(found)) or judge(*words))
        return oracle

    found = []
    for _ in range(2):
        saved = SavedSearch(tmp_path / "plan.yaml")
        found.append(locate(graph, samples, LOOSE, rewrites=["pins", "norms"], saved=saved, oracle=counting))
    first, second = found
    assert first.graph.rewrites == second.graph.rewrites == (NORM,)
    assert first.plan == second.plan == Plan()
    assert first.trials == second.trials
    assert judged.count(0) > judged.count(1) == 1, "the errors of each sample are not in the journal"


def test_one_norm_cures_a_real_classifier_without_a_pin():
    """Its FP16 gets most answers wrong; see the models' index."""
    folder = Path(__file__).resolve().parents[3] / "shared" / "models" / "magika_standard_v3_3"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent: a real model with real inputs")
    graph = read_graph(load(folder / "model.onnx"))
    samples = load_samples(graph, [folder / "inputs"], script=None, shapes={})
    located = locate(graph, samples, Tolerance(atol=0.05, rtol=0.0), rewrites=["pins", "norms"])
    assert located.before.error_ratio > 10
    assert located.after.verdict is Verdict.PASS
    assert located.plan == Plan()
    assert [rewrite.op for rewrite in located.graph.rewrites] == ["LayerNormalization"]
