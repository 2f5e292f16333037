"""A cache on disk of results that are slow to compute: FP32 outputs, and JSON values about a model and its inputs.

The folder is `$TRT_HELPER_CACHE`, else `$XDG_CACHE_HOME/trt-helper`, else `~/.cache/trt-helper`. It may be deleted at
any time. An entry that cannot be read is computed again, and a folder that cannot be written is no error.

A folder inside the working folder's git checkout is not used: whoever can commit a file there could give `gate` its
references.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from trt_helper.errors import OutputError
from trt_helper.inputs.references import references
from trt_helper.inputs.sample import Sample, digest
from trt_helper.onnx_model.graph import Graph
from trt_helper.system.files import write_atomically
from trt_helper.system.versions import versions
from trt_helper.values import Tensors

LARGEST_ENTRY = 256 << 20  # bytes
LARGEST_CACHE = 1 << 30  # bytes; the least recently used entries are deleted first


def folder() -> Path | None:
    """The folder of the cache; None where there is none that only this user writes."""
    own = os.environ.get("TRT_HELPER_CACHE")
    try:
        found = Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trt-helper"
        here = Path.cwd()
        checkout = next((one for one in (here, *here.parents) if (one / ".git").exists()), None)
        inside = checkout is not None and found.resolve().is_relative_to(checkout.resolve())
    except (OSError, RuntimeError):  # no home: containers with a uid that has no name
        return None
    return None if inside else found


def reference_key(graph: Graph, samples: Sequence[Sample]) -> dict[str, Any]:
    """The cache key of the FP32 outputs: the model, the samples, the versions of the libraries and the machine."""
    return {
        "model": graph.source.sha256,
        "samples": digest([sample.feed for sample in samples]),
        "versions": versions(),
        "machine": platform.machine(),
    }


def cached_references(graph: Graph, samples: Sequence[Sample], key: Mapping[str, Any]) -> list[Tensors]:
    """The FP32 outputs of the samples, from the cache if they are there: see `references.references`.

    Args:
        graph: Of the model.
        samples: The samples.
        key: The cache key, from `reference_key`.
    """
    path = _path(key, "npz")
    if path is None:
        return references(graph, samples)
    with suppress(Exception):  # a damaged file raises any error of zipfile and numpy
        return _read(path, graph, len(samples))
    found = references(graph, samples)
    if sum(array.nbytes for values in found for array in values.values()) <= LARGEST_ENTRY:
        stream = io.BytesIO()
        with suppress(ValueError):  # arrays of strings cannot be stored without pickling
            np.savez(
                stream, allow_pickle=False, **{f"{i}.{j}": a for i, v in enumerate(found) for j, a in _numbered(v)}
            )
            _write(path, stream.getvalue())
    return found


def cached_value(key: Mapping[str, Any]) -> Any:
    """The JSON value that `cache_value` stored under the cache key, or None."""
    path = _path(key, "json")
    with suppress(OSError, ValueError):
        return json.loads(path.read_bytes()) if path else None
    return None


def cache_value(key: Mapping[str, Any], value: Any) -> None:
    """Store a JSON value under a cache key."""
    if path := _path(key, "json"):
        _write(path, json.dumps(value).encode())


def _numbered(values: Tensors) -> list[tuple[int, np.ndarray[Any, Any]]]:
    return list(enumerate(values.values()))


def _read(path: Path, graph: Graph, count: int) -> list[Tensors]:
    outputs = graph.model.graph.outputs
    with np.load(path, allow_pickle=False) as archive:
        if set(archive.files) != {f"{i}.{j}" for i in range(count) for j in range(len(outputs))}:
            raise ValueError("other arrays than outputs")
        found = [{name: archive[f"{i}.{j}"] for j, name in enumerate(graph.outputs)} for i in range(count)]
    for values in found:
        for output in outputs:
            _require_like(values[str(output.name)], output)
    os.utime(path)
    return found


def _require_like(array: np.ndarray[Any, Any], output: ir.Value) -> None:
    """Raise ValueError for an array that cannot be this output."""
    shape = output.shape and [size if isinstance(size, int) else None for size in output.shape]
    if output.dtype is not None and array.dtype not in (output.dtype.numpy(), np.dtype(np.float32)):
        raise ValueError("another dtype")
    if shape and (len(shape) != array.ndim or any(b not in (None, a) for a, b in zip(array.shape, shape, strict=True))):
        raise ValueError("another shape")


def _path(key: Mapping[str, Any], kind: str) -> Path | None:
    where = folder()
    text = json.dumps(key, sort_keys=True)
    return where and where / f"{hashlib.sha256(text.encode()).hexdigest()}.{kind}"


def _write(path: Path, data: bytes) -> None:
    """Write one entry, then delete old ones until the cache is small enough."""
    with suppress(OutputError, OSError):
        write_atomically(path, data)
        entries = sorted(path.parent.glob("*.*"), key=lambda file: file.stat().st_mtime)
        too_many = sum(file.stat().st_size for file in entries) - LARGEST_CACHE
        for file in entries:
            if too_many <= 0:
                break
            too_many -= file.stat().st_size
            file.unlink(missing_ok=True)
