"""Texts and samples go in, input shapes and optimisation profiles come out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from trt_helper.errors import InputError, nearest
from trt_helper.inputs.samples import DEFAULT_DIMENSION, Sample, element_count, load_samples, resized
from trt_helper.onnx_model.graph import Graph
from trt_helper.system.array_store import ArrayStore

Shape = tuple[int, ...]
Range = tuple[Shape, Shape, Shape]  # min, opt, max


def parse_shapes(texts: Sequence[str], graph: Graph) -> dict[str, Range]:
    """`NAME:1x3x64x64` or `NAME:MIN,OPT,MAX`, as the command line has it. Raises InputError."""
    known = {value.name or "": value for value in graph.inputs}
    ranges: dict[str, Range] = {}
    for text in texts:
        name, _, shapes = text.rpartition(":")
        if name not in known:
            near = nearest(name, known)
            raise InputError(
                f"--shapes {text!r}: the model has no input {name!r}",
                fix=f"did you mean {near!r}?" if near else f"its inputs: {', '.join(known)}",
            )
        parts = shapes.split(",")
        if len(parts) not in (1, 3) or not all(
            re.fullmatch(r"[1-9][0-9]{0,8}(x[1-9][0-9]{0,8})*", part) for part in parts
        ):
            raise InputError(
                f"--shapes {text!r} is no shape",
                fix="write NAME:1x3x224x224, or NAME:MIN,OPT,MAX with three of them",
            )
        sizes = [tuple(int(size) for size in part.split("x")) for part in parts]
        low, usual, high = sizes * 3 if len(sizes) == 1 else sizes
        _require_fit(known[name], (low, usual, high), text)
        ranges[name] = (low, usual, high)
    return ranges


def _require_fit(value: ir.Value, shapes: Range, text: str) -> None:
    wanted = value.shape
    for shape in shapes:
        if wanted is None:
            continue
        if len(wanted) != len(shape) or any(isinstance(d, int) and d != n for d, n in zip(wanted, shape, strict=True)):
            raise InputError(
                f"--shapes {text!r} does not fit {value.name!r}, which is {[str(d) for d in wanted]}".replace("'", ""),
                fix="give every dimension; those that the model fixes must be the same",
            )
    if not all(a <= b <= c for a, b, c in zip(*shapes, strict=True)):
        raise InputError(f"--shapes {text!r}: not min <= opt <= max", fix="give the three shapes in this order")


def samples_in(
    graph: Graph,
    paths: Sequence[Path],
    script: str | None,
    ranges: Mapping[str, Range],
    store: ArrayStore | None = None,
) -> list[Sample]:
    """`samples.load_samples`, and the first of them again at the ends of the ranges. Raises InputError."""
    samples = load_samples(
        graph, paths, script=script, shapes={n: sizes[1] for n, sizes in ranges.items()}, store=store
    )
    open_ended = {name: sizes for name, sizes in ranges.items() if sizes[0] != sizes[2]}
    ends = enumerate(("min", "opt", "max")) if open_ended else ()
    return [*samples, *(resized(graph, samples[0], {n: s[i] for n, s in open_ended.items()}, end) for i, end in ends)]


def ranges_of(samples: Sequence[Sample]) -> dict[str, Range]:
    """Smallest, usual and largest size of every dimension over the samples; usual is the middle sample."""
    ordered = sorted(samples, key=element_count)
    middle = ordered[len(ordered) // 2]
    found: dict[str, Range] = {}
    for name, usual in middle.shapes.items():
        shapes = [sample.shapes[name] for sample in samples]
        found[name] = (
            tuple(min(sizes) for sizes in zip(*shapes, strict=True)),
            usual,
            tuple(max(sizes) for sizes in zip(*shapes, strict=True)),
        )
    return found


def recorded_ranges(evidence: Mapping[str, Any], graph: Graph) -> dict[str, Range]:
    """The sizes that `locate` saw and wrote into the config; what does not fit the model is left out."""
    recorded = evidence.get("shapes")
    ranks = {value.name: len(value.shape) for value in graph.inputs if value.shape is not None}
    found: dict[str, Range] = {}
    for name, shapes in recorded.items() if isinstance(recorded, Mapping) else ():
        try:
            low, usual, high = (tuple(int(size) for size in shape) for shape in shapes)
        except (TypeError, ValueError):
            continue
        if len(low) == len(usual) == len(high) == ranks.get(name, -1):
            found[name] = (low, usual, high)
    return found


def profile(graph: Graph, known: Mapping[str, Range]) -> tuple[dict[str, Range], tuple[str, ...]]:
    """The optimisation profile of the dynamic inputs, and the inputs whose size had to be made up."""
    symbols = _symbol_ranges(graph, known)
    ranges: dict[str, Range] = {}
    guessed: list[str] = []
    for value in graph.inputs:
        name, shape = value.name or "", value.shape
        if shape is not None and all(isinstance(d, int) for d in shape):
            continue
        if name in known:
            ranges[name] = known[name]
            continue
        names = [str(d) for d in shape or ()]  # a fixed size is its own name
        sizes = [symbols.get(d, (DEFAULT_DIMENSION,) * 3) for d in names]
        low, usual, high = (tuple(size[which] for size in sizes) for which in range(3))
        ranges[name] = (low, usual, high)
        if shape is None or any(d not in symbols for d in names):
            guessed.append(name)
    return ranges, tuple(guessed)


def _symbol_ranges(graph: Graph, known: Mapping[str, Range]) -> dict[str, Shape]:
    """Smallest, usual and largest size of every dimension: by its symbol where it is dynamic, else by itself."""
    found: dict[str, Shape] = {}
    for value in graph.inputs:
        for dimension in value.shape or ():
            if isinstance(dimension, int):
                found[str(dimension)] = (dimension,) * 3
        sizes_of = known.get(value.name or "", ((), (), ()))
        if value.shape is not None and len(value.shape) == len(sizes_of[0]):
            for dimension, *sizes in zip(value.shape, *sizes_of, strict=True):
                if not isinstance(dimension, int) and dimension.value is not None:
                    found[str(dimension)] = tuple(sizes)
    return found
