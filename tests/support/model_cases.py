"""A small model on disk together with what trt_helper makes of it."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import onnx

from support import special_models
from support.models import MODELS, Case, Feed
from trt_helper.emulator.emulator import Emulator
from trt_helper.onnx_model.graph import Graph, read_graph
from trt_helper.onnx_model.load import load
from trt_helper.onnx_model.typed import render, write
from trt_helper.values import Plan, Reading

__all__ = ["MODELS", "ModelCase", "save_case", "special_models"]


@dataclass
class ModelCase:
    path: Path
    feed: Feed

    @cached_property
    def graph(self) -> Graph:
        return read_graph(load(self.path))

    @cached_property
    def emulator(self) -> Emulator:
        return Emulator(self.graph)

    @cached_property
    def one_step(self) -> Emulator:
        """The emulator where every layer is one step, as in the typed file: no kernel's steps in between."""
        return Emulator(self.graph, reading=Reading.ONE_STEP)

    def write(self, plan: Plan, folder: Path | None = None) -> Path:
        """The typed file of `plan`, beside the model or in `folder`; the next one takes its place."""
        path = (folder or self.path.parent) / "typed.onnx"
        write(render(self.graph, plan), path)
        return path

    def typed(self, *pins: str) -> onnx.ModelProto:
        return onnx.load(self.write(self.graph.plan(pins)))

    def plans(self) -> dict[str, Plan]:
        """Nothing pinned, everything, each layer alone, all but each, and four random subsets."""
        names = self.graph.candidates
        generator = random.Random(len(names))
        picked = [[name for name in names if generator.random() < share] for share in (0.2, 0.4, 0.6, 0.8)]
        return {
            "empty": Plan(),
            "all": self.graph.all_pinned(),
            **{f"only {name}": Plan.of([name]) for name in names},
            **{f"all but {name}": Plan.of({*names} - {name}) for name in names},
            **{f"random {index}": Plan.of(pins) for index, pins in enumerate(picked)},
        }


def save_case(case: Case, folder: Path) -> ModelCase:
    path = folder / f"{case.name}.onnx"
    path.write_bytes(case.model.SerializeToString())
    return ModelCase(path, case.feed)
