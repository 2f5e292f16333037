"""Shapes of the model's inputs and TensorRT optimisation profiles, from --shapes, samples or a config."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from trt_helper.errors import InputError, nearest
from trt_helper.inputs.sample import Sample, element_count
from trt_helper.inputs.samples import load_samples, resized
from trt_helper.onnx_model.graph import PROVENANCE, Graph
from trt_helper.onnx_model.roles import SHAPE_INPUTS
from trt_helper.system.array_store import ArrayStore

DEFAULT_DIMENSION = 1  # in a profile, of a dynamic dimension whose size is not known

Shape = tuple[int, ...]
Range = tuple[Shape, Shape, Shape]  # min, opt and max shape of one input, as in a TensorRT profile


def parse_shapes(texts: Sequence[str], graph: Graph) -> dict[str, Range]:
    """The ranges that --shapes gives, by input name.

    Args:
        texts: Each is `NAME:1x3x64x64` or `NAME:MIN,OPT,MAX`.
        graph: Of the model.

    Raises:
        InputError: A text is no shape, or does not fit the model.
    """
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
        low, opt, high = sizes * 3 if len(sizes) == 1 else sizes
        _require_fit(known[name], (low, opt, high), text)
        ranges[name] = (low, opt, high)
    return ranges


def _require_fit(value: ir.Value, shapes: Range, text: str) -> None:
    wanted = value.shape
    for shape in shapes:
        if wanted is None or _are_values(value, shape):
            continue
        if len(wanted) != len(shape) or any(isinstance(d, int) and d != n for d, n in zip(wanted, shape, strict=True)):
            raise InputError(
                f"--shapes {text!r} does not fit {value.name!r}, which is {[str(d) for d in wanted]}".replace("'", ""),
                fix="give every dimension; those that the model fixes must be the same",
            )
    if not all(a <= b <= c for a, b, c in zip(*shapes, strict=True)):
        raise InputError(f"--shapes {text!r}: not min <= opt <= max", fix="give the three shapes in this order")


def _are_values(value: ir.Value, shape: Shape) -> bool:
    """Whether these are values of an input that sets shapes, one for each of its elements, and not its shape."""
    return sets_shapes(value) and value.shape is not None and [len(shape)] == list(value.shape)


def sets_shapes(value: ir.Value) -> bool:
    """Whether a graph input holds sizes that layers read as such: the new shape of a Reshape, the ends of a Slice."""
    static = value.shape is not None and len(value.shape) == 1 and isinstance(value.shape[0], int)
    whole = value.dtype in (ir.DataType.INT64, ir.DataType.INT32)
    return static and whole and any(use.idx in SHAPE_INPUTS.get(use.node.op_type, ()) for use in value.uses())


def samples_in(
    graph: Graph,
    paths: Sequence[Path],
    script: str | None,
    ranges: Mapping[str, Range],
    store: ArrayStore | None = None,
) -> list[Sample]:
    """The samples of `samples.load_samples`, and the first one resized to the min, opt and max shapes of `ranges`.

    Args:
        graph: Of the model.
        paths: See `load_samples`.
        script: See `load_samples`.
        ranges: From `parse_shapes`. Without a range that has min and max apart, nothing is resized.
        store: Keeps the arrays. By default they stay in memory.

    Raises:
        InputError: A sample cannot be read, does not fit the model, or cannot be resized.
    """
    values = {value.name for value in graph.inputs if sets_shapes(value)}  # of these no sample can be made
    ranges = {name: sizes for name, sizes in ranges.items() if name not in values}
    samples = load_samples(
        graph, paths, script=script, shapes={n: sizes[1] for n, sizes in ranges.items()}, store=store
    )
    dynamic = {name: sizes for name, sizes in ranges.items() if sizes[0] != sizes[2]}
    labels = enumerate(("min", "opt", "max")) if dynamic else ()
    return [
        *samples,
        *(resized(graph, samples[0], {n: s[i] for n, s in dynamic.items()}, label) for i, label in labels),
    ]


def ranges_of(graph: Graph, samples: Sequence[Sample]) -> dict[str, Range]:
    """The range of each input over the samples: min and max per dimension, opt from the sample of middle size.

    An input that sets shapes has a range of its values, as TensorRT's profiles have.
    """
    ordered = sorted(samples, key=element_count)
    found: dict[str, Range] = {}
    for value in graph.inputs:
        name = value.name or ""
        arrays = [sample.feed[name] for sample in ordered]
        rows = [tuple(map(int, array if sets_shapes(value) else array.shape)) for array in arrays]
        low, high = (tuple(pick(sizes) for sizes in zip(*rows, strict=True)) for pick in (min, max))
        found[name] = (low, rows[len(rows) // 2], high)
    return found


def recorded_ranges(evidence: Mapping[str, Any], graph: Graph) -> dict[str, Range]:
    """The ranges that `locate` recorded in the config, without those that do not fit the model.

    Args:
        evidence: The config's `evidence`, which a user may have edited.
        graph: Of the model.
    """
    recorded = evidence.get("shapes")
    lengths = {
        value.name: value.shape[0] if sets_shapes(value) else len(value.shape)
        for value in graph.inputs
        if value.shape is not None
    }
    found: dict[str, Range] = {}
    for name, shapes in recorded.items() if isinstance(recorded, Mapping) else ():
        try:
            low, opt, high = (tuple(int(size) for size in shape) for shape in shapes)
        except (TypeError, ValueError):
            continue
        if len(low) == len(opt) == len(high) == lengths.get(name, -1):
            found[name] = (low, opt, high)
    return found


def exported_ranges(graph: Graph) -> dict[str, Range]:
    """The ranges that `export --dynamic` wrote into the model; none where a dynamic size is not among them."""
    try:
        written = json.loads(graph.source.ir_model.metadata_props.get(PROVENANCE, "{}")).get("ranges", {})
        given = {name: [tuple(map(int, shape)) for shape in shapes] for name, shapes in written.items()}
    except (AttributeError, TypeError, ValueError):
        return {}
    found: dict[str, Range] = {}
    for value in graph.inputs:
        shapes, wanted = given.get(value.name or "", []), value.shape
        if wanted is None or [len(shape) for shape in shapes] != [len(wanted)] * 3:
            continue
        low, opt, high = (
            tuple(size if isinstance(size, int) else n for n, size in zip(shape, wanted, strict=True))
            for shape in shapes
        )
        if all(0 < a <= b <= c for a, b, c in zip(low, opt, high, strict=True)):
            found[value.name or ""] = (low, opt, high)
    return found


def widened(ranges: Mapping[str, Range], by: Mapping[str, Range]) -> dict[str, Range]:
    """`ranges`, with the smallest and largest sizes of both; the usual ones stay."""
    found = dict(by)
    for name, (low, opt, high) in ranges.items():
        other = by.get(name, (low, opt, high))
        found[name] = (tuple(map(min, low, other[0])), opt, tuple(map(max, high, other[2])))
    return found


def frozen(graph: Graph, ranges: Mapping[str, Range]) -> dict[str, list[str]]:
    """The dynamic dimensions of which a profile has one size only: input name -> texts such as `batch = 1`."""
    found: dict[str, list[str]] = {}
    for value in graph.inputs:
        name = value.name or ""
        for axis, size in enumerate(value.shape or ()):
            if not isinstance(size, int) and name in ranges and ranges[name][0][axis] == ranges[name][2][axis]:
                found.setdefault(name, []).append(f"{size.value or f'axis {axis}'} = {ranges[name][0][axis]}")
    return found


def profile(graph: Graph, known: Mapping[str, Range]) -> tuple[dict[str, Range], tuple[str, ...]]:
    """The optimisation profile of the dynamic inputs.

    Args:
        graph: Of the model.
        known: Ranges of inputs. Other inputs take over the sizes of dimensions of the same name.

    Returns:
        The ranges by input name, and the names of the inputs with a dimension of unknown size, which is taken as 1.
    """
    symbols = _symbol_ranges(graph, known)
    ranges: dict[str, Range] = {}
    guessed: list[str] = []
    for value in graph.inputs:
        name, shape = value.name or "", value.shape
        if shape is not None and all(isinstance(d, int) for d in shape):
            if name in known and sets_shapes(value):
                ranges[name] = known[name]
            continue
        if name in known:
            ranges[name] = known[name]
            continue
        names = [str(d) for d in shape or ()]  # a fixed size is its own name
        sizes = [symbols.get(d, (DEFAULT_DIMENSION,) * 3) for d in names]
        low, opt, high = (tuple(size[which] for size in sizes) for which in range(3))
        ranges[name] = (low, opt, high)
        if shape is None or any(d not in symbols for d in names):
            guessed.append(name)
    return ranges, tuple(guessed)


def _symbol_ranges(graph: Graph, known: Mapping[str, Range]) -> dict[str, Shape]:
    """The min, opt and max size of every dimension, by its symbol if it is dynamic, else by its size as text."""
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
