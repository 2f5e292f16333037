"""`locate` with rewrites: which of those offered are applied, and that no more than needed are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from support import zoo_cases  # noqa: F401 - registers the cases
from support.rewritable_models import (
    WIDTH,
    range_model,
    rms,
    unit_rows,
    weighed_by_inverse,
)
from support.zoo import CASES, Net
from support.zoo_judge import Judged

from trt_helper.emulator.emulator import Emulator
from trt_helper.inputs.sample import Sample
from trt_helper.inputs.samples import load_samples
from trt_helper.onnx_model.graph import Graph, read_graph
from trt_helper.onnx_model.load import load
from trt_helper.onnx_model.rewrites import find
from trt_helper.search.journal import Journal
from trt_helper.search.locate import locate
from trt_helper.search.oracle import Criteria, EmulatedOracle, emulated
from trt_helper.search.saved import SavedSearch
from trt_helper.search.strategy import no_plans
from trt_helper.values import REWRITE_KINDS, Plan, Rewrite, Tolerance, Verdict


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
def test_a_rewrite_takes_the_place_of_all_pins(name, kinds, tmp_path):
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


def test_rewrites_are_not_applied_where_fp16_is_accurate_without(tmp_path):
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


def rows_with_a_row_of_zeros(width: int = WIDTH) -> list[Sample]:
    feeds = [np.random.default_rng(seed).normal(size=(4, width)).astype(np.float32) for seed in range(2)]
    for feed in feeds:
        feed[1] = 0
    return [Sample(f"s{seed}", {"x": feed}) for seed, feed in enumerate(feeds)]


def test_a_bound_that_fp16_loses_and_the_division_by_it_become_bf16(tmp_path):
    """0/1e-12 is 0 in FP32 and in BF16, and 0/0 in FP16. Eight bits are enough for numbers up to 1."""
    samples = rows_with_a_row_of_zeros()
    located = locate(unit_rows(tmp_path), samples, Tolerance(atol=0.02, rtol=0.0), rewrites=["pins", "bf16"])
    assert located.after.verdict is Verdict.PASS
    assert located.plan == Plan(bf16=frozenset({"bound", "divide"}))


@pytest.mark.parametrize(
    ("build", "raised"),
    [
        (unit_rows, "5.961e-08"),  # 0/6e-8 is 0
        (weighed_by_inverse, "6.104e-05"),  # 1/6e-8 is beyond FP16, 1/6e-5 is 16384
    ],
)
def test_an_epsilon_that_fp16_loses_is_raised_as_little_as_takes_the_place_of_all_pins(build, raised, tmp_path):
    samples, tolerance = rows_with_a_row_of_zeros(), Tolerance(atol=0.02, rtol=0.0)
    pinned = locate(build(tmp_path), samples, tolerance)
    assert len(pinned.plan) > 1
    located = locate(build(tmp_path), samples, tolerance, rewrites=["pins", "constants"])
    assert located.after.verdict is Verdict.PASS
    assert located.plan == Plan()
    assert [(rewrite.kind, rewrite.op) for rewrite in located.graph.rewrites] == [("constants", raised)]
    assert [trial.verdict for trial in located.without_rewrite.values()] == [Verdict.FAIL]


def test_an_epsilon_that_the_result_depends_on_is_not_raised(tmp_path):
    """Elements of 1e-9 have squares of 1e-18 and are divided by some 3e-17, not by 6e-8."""
    samples = rows_with_a_row_of_zeros()
    for sample in samples:
        sample.feed["x"][2] *= 1e-9
    graph = weighed_by_inverse(tmp_path, 1e-17)
    located = locate(graph, samples, Tolerance(atol=0.02, rtol=0.001), rewrites=["pins", "constants"])
    assert located.after.verdict is Verdict.PASS
    assert located.graph.rewrites == ()
    assert located.plan.fp32 >= {"add", "inverse"}


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


def test_a_rewrite_that_is_not_needed_is_not_applied_and_its_trials_count(norm_and_bound):
    graph, samples = norm_and_bound
    offered = find(graph.model.graph, REWRITE_KINDS)
    assert {rewrite.kind for rewrite in offered} == {"norms", "constants"}
    located = locate(graph, samples, LOOSE, rewrites=REWRITE_KINDS)
    assert located.graph.rewrites == (NORM,)
    assert located.plan == Plan()
    searches = [trial for trial in located.trials if trial.because.startswith("control: no layer")]
    assert len(searches) == 2, "the search with both rewrites, and the one whose answer stands"


def test_rewrites_are_judged_by_what_judges_the_search(norm_and_bound):
    graph, samples = norm_and_bound
    requested: list[tuple[tuple[Rewrite, ...], Plan]] = []

    class Spy(EmulatedOracle):
        def judge(self, plan, which, speculative=no_plans):
            requested.append((self.emulator.graph.rewrites, plan))
            return super().judge(plan, which, speculative)

    def oracle(graph: Graph, criteria: Criteria) -> Spy:
        return Spy(Emulator(graph), criteria)

    located = locate(graph, samples, LOOSE, rewrites=["pins", "norms"], oracle=oracle, runner="spy")
    assert located.runner == "spy"
    assert requested[0] == ((), Plan())
    assert {rewrites for rewrites, _ in requested} == {(), (NORM,)}
    assert located.without_rewrite[NORM].verdict is Verdict.FAIL


def test_a_journal_keeps_the_trials_of_each_set_of_rewrites_apart(norm_and_bound, tmp_path, monkeypatch):
    """The second search is resumed from the first one's journal, and requests no plan again."""
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


def test_one_rewritten_norm_repairs_a_real_classifier_without_a_pin():
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
