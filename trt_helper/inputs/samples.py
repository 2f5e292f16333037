"""Samples: arrays for the model's inputs, read from the user's files or made up.

They come from `.npz` files or folders of them (keys = input names), from Polygraphy's saved inputs, or from a
Polygraphy data loader script. Without any of these a sample has seeded random values, and the user is warned.
"""

from __future__ import annotations

import json
import traceback
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import onnx_ir as ir

from trt_helper.errors import InputError, first_line, nearest
from trt_helper.inputs.made_up import random_sample
from trt_helper.inputs.sample import Sample, numpy_type, shape_text, stored
from trt_helper.inputs.user_code import load_function, running
from trt_helper.onnx_model.graph import Graph
from trt_helper.system.array_store import ArrayStore
from trt_helper.values import Array, Feed

RANDOM_WARNING = (
    "no --inputs given: judging by seeded random values. Random data blames the wrong layers; "
    "give real inputs before you trust this answer"
)


def load_samples(
    graph: Graph,
    paths: Sequence[Path | str],
    *,
    script: str | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    store: ArrayStore | None = None,
) -> list[Sample]:
    """The samples from `paths` and `script`, or one random sample if there are none.

    Args:
        graph: Of the model. Every sample must fit its inputs.
        paths: `.npz` files, Polygraphy's `.json` files, or folders of them.
        script: A data loader script, `FILE.py[:function]`.
        shapes: Of the inputs of a random sample, as far as they are given.
        store: Keeps the arrays. By default they stay in memory.

    Raises:
        InputError: A file or script cannot be read, or a sample does not fit the model.
    """
    store = store or ArrayStore.within(None)
    found = chain.from_iterable((*map(_read_path, map(Path, paths)), _run_script(script) if script else ()))
    samples = [Sample(source, store.keep_all(_fit(graph, feed, source))) for source, feed in found]
    samples = samples or [random_sample(graph, shapes or {})]
    for sample in samples:
        _require_one_size_per_symbol(graph, sample)
    return samples


def _read_path(path: Path) -> Iterator[tuple[str, Feed]]:
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in (".npz", ".json"))
        if not files:
            raise InputError(f"{path} holds no .npz file", fix="one sample per file; its keys are the input names")
        for file in files:
            yield from _read_path(file)
    elif not path.is_file():
        raise InputError(f"{path} does not exist", fix="--inputs takes .npz files, or folders of them")
    elif path.suffix == ".json":
        yield from _read_polygraphy(path)
    else:
        yield str(path), _read_npz(path)


def _read_npz(path: Path) -> Feed:
    again = "save it again with numpy.savez(path, INPUT_NAME=array)"
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path} is not an .npz file, or it is truncated ({path.stat().st_size} bytes)", fix=again)
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: np.asarray(archive[name]) for name in archive.files}
    except Exception as error:  # a damaged file raises any error of zipfile, its decompressors and numpy
        raise InputError(f"{path} is not a sound .npz file: {first_line(error)}", fix=again) from error


def _read_polygraphy(path: Path) -> Iterator[tuple[str, Feed]]:
    """`polygraphy run --save-inputs`: a JSON list of dictionaries of arrays."""
    try:
        from polygraphy.json import load_json  # noqa: PLC0415 - optional and slow to import

        feeds = load_json(str(path))
    except ImportError as error:
        raise InputError(
            f"{path} is in Polygraphy's format", fix="pip install polygraphy, or save the inputs as .npz"
        ) from error
    except (json.JSONDecodeError, KeyError, TypeError, ValueError, OSError) as error:
        raise InputError(f"{path} does not hold Polygraphy inputs", fix="save them with --save-inputs") from error
    if not isinstance(feeds, list):
        raise InputError(f"{path} does not hold Polygraphy inputs", fix="save them with --save-inputs")
    for index, feed in enumerate(feeds):
        yield f"{path}[{index}]", _arrays(feed, f"{path}[{index}]")


def _run_script(script: str) -> list[tuple[str, Feed]]:
    """The feeds of a Polygraphy data loader script, with their sources.

    The function yields one dictionary of arrays per sample. As in Polygraphy, the script can import files of its own
    folder, and its output to stdout goes to stderr.
    """
    file, _, function = script.partition(":") if not script.endswith(".py") else (script, "", "")
    function = function or "load_data"
    if not Path(file).is_file():
        raise InputError(f"{file} does not exist", fix="--data-loader-script takes FILE.py or FILE.py:function")
    try:
        with running(Path(file)):
            feeds = _script_feeds(file, function)
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
        where = f", line {lines[-1]}" if lines else ""
        raise InputError(
            f"{file}{where} raises {type(error).__name__}: {first_line(error)}",
            fix=f"mend the script; {function}() takes no arguments and yields a dictionary of arrays by input name",
        ) from error
    if not feeds:
        raise InputError(f"{function!r} of {file} yields no sample", fix="yield a dictionary of arrays by input name")
    return feeds


def _script_feeds(file: str, function: str) -> list[tuple[str, Feed]]:
    loader = load_function(Path(file), function)
    if loader is None:
        raise InputError(f"{file} has no function {function!r}", fix="name it: --data-loader-script FILE.py:function")
    return [(f"{file}[{index}]", _arrays(feed, f"{file}[{index}]")) for index, feed in enumerate(loader())]


def _arrays(feed: object, source: str) -> Feed:
    """One sample of a script or a file, as arrays."""
    if not isinstance(feed, Mapping) or not all(isinstance(name, str) for name in feed):
        raise InputError(
            f"{source} is no dictionary of arrays by input name, but {feed!r:.60}",
            fix="one sample is {'INPUT_NAME': array, ...}",
        )
    return {name: np.asarray(array) for name, array in feed.items()}


def _fit(graph: Graph, feed: Feed, source: str) -> Feed:
    """The arrays in the order of the model's inputs: contiguous, floats in FP32."""
    wanted = {value.name or "": value for value in graph.inputs}
    for name in feed:
        if name not in wanted:
            near = nearest(name, wanted)
            hint = f"did you mean {near!r}? " if near else ""
            raise InputError(
                f"{source} has {name!r}, which is no input of the model",
                fix=f"{hint}its inputs: {', '.join(wanted)}",
            )
    missing = [name for name in wanted if name not in feed]
    if missing:
        raise InputError(f"{source} lacks the input {missing[0]!r}", fix=f"its keys must be: {', '.join(wanted)}")
    return {name: _fit_array(graph, value, feed[name], source) for name, value in wanted.items()}


def _fit_array(graph: Graph, value: ir.Value, array: Array, source: str) -> Array:
    wanted = numpy_type(value)
    if array.dtype != wanted and not (array.dtype.kind == wanted.kind == "f"):
        raise InputError(
            f"{source}: input {value.name!r} is {array.dtype}, the model wants {wanted}",
            fix="convert it before saving",
        )
    shape = value.shape
    if shape is not None and (
        len(shape) != array.ndim or any(isinstance(d, int) and d != n for d, n in zip(shape, array.shape, strict=True))
    ):
        raise InputError(
            f"{source}: input {value.name!r} has shape {list(array.shape)}, the model wants {shape_text(shape)}",
            fix="reshape it before saving; one file is one sample, batch dimension included",
        )
    exact = stored(graph, value, array)
    if exact.dtype.kind == "f" and not (usable := np.isfinite(exact) | np.isneginf(exact)).all():
        index = tuple(int(i) for i in np.argwhere(~usable)[0])
        raise InputError(
            f"{source}: input {value.name!r} holds {array[index]} at {list(index)}",
            fix="give finite numbers in the range of the input's type, or -inf in a mask: others judge no precision",
        )
    return exact


def _require_one_size_per_symbol(graph: Graph, sample: Sample) -> None:
    """Refuse a sample in which dynamic dimensions of one name have different sizes."""
    sizes: dict[str, tuple[int, str]] = {}
    for value in graph.inputs:
        array = sample.feed[value.name or ""]
        for dimension, size in zip(value.shape or (), array.shape, strict=False):
            symbol = None if isinstance(dimension, int) else dimension.value
            if not symbol:
                continue
            known, owner = sizes.setdefault(symbol, (size, value.name or ""))
            if known != size:
                raise InputError(
                    f"{sample.source}: {symbol!r} is {known} in {owner!r} and {size} in {value.name!r}",
                    fix="give arrays whose dynamic dimensions agree",
                )


def resized(graph: Graph, sample: Sample, shapes: Mapping[str, tuple[int, ...]], label: str) -> Sample:
    """`sample` in another size: its arrays are cut or repeated along each axis, so values stay real ones.

    Args:
        graph: Of the model.
        sample: The sample to resize.
        shapes: Of inputs, by name. The other inputs follow in dimensions of the same name.
        label: Ends the source of the new sample: min, opt or max.

    Raises:
        InputError: Dynamic dimensions of one name would have different sizes.
    """
    wanted: dict[str, int] = {}
    for value in graph.inputs:
        for dimension, size in zip(value.shape or (), shapes.get(value.name or "", ()), strict=False):
            wanted[str(dimension)] = size
    feed = dict(sample.feed)
    for value in graph.inputs:
        name, array = value.name or "", feed[value.name or ""]
        sizes = shapes.get(name) or [
            wanted.get(str(d), n) for d, n in zip(value.shape or (), array.shape, strict=False)
        ]
        for axis, size in enumerate(sizes):
            array = np.take(array, np.arange(size), axis=axis, mode="wrap")
        feed[name] = np.ascontiguousarray(array).reshape(array.shape)
    other = Sample(f"{sample.source} at {label}", feed)
    _require_one_size_per_symbol(graph, other)
    return other
