"""Who decides in the zoo: plans judged on the typed file that is written for them, by none of the tool's code.

The file is rewritten in FP32 with a pair of casts behind every half tensor and run on ONNX Runtime with
all optimisations off. The tool's emulator serves only to enumerate subsets, where files would take hours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from support.independent import with_pairs
from support.zoo import Case, Feed, Hazard
from trt_helper.emulator.emulator import Emulator
from trt_helper.inputs.sample import Sample
from trt_helper.onnx_model.graph import Graph, read_graph
from trt_helper.onnx_model.load import load
from trt_helper.onnx_model.typed import render, write
from trt_helper.search.locate import Located, locate
from trt_helper.values import Plan, Role, Tolerance

Pins = frozenset[str]
Arrays = list[np.ndarray]


@dataclass(eq=False)
class Judged:
    """One case, written and read once."""

    case: Case
    folder: Path
    _errors: dict[tuple[Pins, bool], float] = field(default_factory=dict)

    @cached_property
    def graph(self) -> Graph:
        path = self.folder / f"{self.case.name}.onnx"
        model = self.case.make()
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, path)
        return read_graph(load(path))

    @cached_property
    def feeds(self) -> tuple[list[Feed], list[Feed]]:
        """What the search gets, and what it never sees."""
        return self.case.samples(0), self.case.held_out()

    @cached_property
    def references(self) -> tuple[list[Arrays], list[Arrays]]:
        session = session_of(onnx.load(self.graph.source.path))
        searched, held_out = ([session.run(None, feed) for feed in feeds] for feeds in self.feeds)
        return searched, held_out

    @cached_property
    def located(self) -> Located:
        samples = [Sample(f"{self.case.name}[{index}]", feed) for index, feed in enumerate(self.feeds[0])]
        return locate(self.graph, samples, Tolerance(atol=self.case.atol, rtol=0.0), every_layer=False)

    def error(self, pins: Iterable[str], *, held_out: bool = False) -> float:
        """Worst absolute error of the typed file over the samples; inf where it is not finite."""
        key = (frozenset(pins), held_out)
        if key not in self._errors:
            path = self.folder / "typed.onnx"
            write(render(self.graph, Plan(key[0])), path)
            model = onnx.load(path)
            weights = with_pairs(model)
            session = session_of(model)
            for which in (False, True):
                found = (session.run(None, {**feed, **weights}) for feed in self.feeds[which])
                self._errors[key[0], which] = max(map(distance, found, self.references[which]))
        return self._errors[key]

    # ------------------------------------------------------------------------------------- enumeration

    @cached_property
    def _emulator(self) -> Emulator:
        return Emulator(self.graph)

    def region(self, hazard: Hazard) -> tuple[str, ...]:
        """The layers of a hazard that could be pinned."""
        return tuple(
            layer.name
            for layer in self.graph.layers
            if layer.role is Role.COMPUTE and layer.name.startswith(f"{hazard.name}/")
        )

    def error_inside(self, hazard: Hazard, kept: Iterable[str]) -> float:
        """Worst error on the search samples with `kept` and everything outside the hazard in FP32."""
        plan = Plan(frozenset(self.graph.candidates).difference(self.region(hazard)).union(kept))
        worst = 0.0
        for feed, reference in zip(self.feeds[0], self.references[0], strict=True):
            worst = max(worst, distance(list(self._emulator.run(plan, feed).values()), reference))
            if np.isinf(worst):
                break
        return worst

    def subsets(self, hazard: Hazard, size: int) -> Iterator[tuple[Pins, float]]:
        """All subsets of that size of the hazard's layers, and what is wrong when only the rest is half."""
        for kept in combinations(self.region(hazard), size):
            yield frozenset(kept), self.error_inside(hazard, kept)


def session_of(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def distance(found: Arrays, references: Arrays) -> float:
    """Largest absolute error over all outputs, inf where one is not finite."""
    worst = 0.0
    for array, reference in zip(found, references, strict=True):
        assert np.isfinite(reference).all(), "the case itself is not finite in FP32"
        finite = np.isfinite(array).all()
        worst = max(worst, float(np.abs(array - reference).max())) if finite else float("inf")
    return worst


def trace(located: Located) -> str:
    """The plan, and the search's trials, one a line: pins, verdict, error over tolerance."""
    trials = [f"{len(t.plan):3d} pins {t.verdict.value:10s} {t.error_ratio:9.3g}" for t in located.trials]
    return "\n".join(["", *located.pins, f"{len(trials)} trials", *trials])
