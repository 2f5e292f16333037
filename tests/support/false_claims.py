"""Engines that are claimed to keep more pins than they were built with: a proof must not believe it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from trt_helper.builder.build import build
from trt_helper.builder.proof import PinState, prove
from trt_helper.builder.requested_precision import requested_precisions
from trt_helper.builder.settings import BuildSettings
from trt_helper.inputs.sample import Sample
from trt_helper.inputs.shapes import profile, ranges_of
from trt_helper.onnx_model.graph import Graph
from trt_helper.onnx_model.typed import TypedModel, render, write

Pins = Sequence[str]


class Claims:
    """One model, its pins, and engines that are built with some of them."""

    def __init__(self, graph: Graph, pins: Iterable[str], samples: Sequence[Sample], folder: Path) -> None:
        ranges, _ = profile(graph, ranges_of(graph, samples) if samples else {})
        self.graph, self.folder = graph, folder
        self.pins = [name for name in graph.candidates if name in frozenset(pins)]
        self._profiles = [ranges] if ranges else []
        self._claimed = self._typed(self.pins)

    def states(self, built_with: Pins) -> dict[str, PinState]:
        """What is said of all pins in an engine that was built with some of them.

        What both typed models ask is known to the proof, and where they differ the claim is believed.
        """
        typed = self._typed(built_with)
        write(typed, self.folder / "typed.onnx")
        engine = build(
            self.folder / "typed.onnx", self.folder / "m.trt", profiles=self._profiles, settings=BuildSettings()
        )
        known = {**requested_precisions(typed.model), **requested_precisions(self._claimed.model)}
        return {one.layer: one.state for one in prove(self.pins, engine.layers, known, program=engine.program)}

    def false(self) -> Iterator[tuple[Pins, dict[str, PinState]]]:
        """The pins that were left out, one each and then all, and what is said of them."""
        for left_out in [*([pin] for pin in self.pins), self.pins]:
            states = self.states([pin for pin in self.pins if pin not in left_out])
            yield left_out, {pin: states[pin] for pin in left_out}

    def _typed(self, pins: Pins) -> TypedModel:
        return render(self.graph, self.graph.plan(pins))
