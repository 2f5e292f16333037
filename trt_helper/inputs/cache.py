"""A cache on disk of results that are slow to compute: FP32 outputs, and JSON values about a model and its inputs.

The folder is `$TRT_HELPER_CACHE`, else `$XDG_CACHE_HOME/trt-helper`, else `~/.cache/trt-helper`. It may be deleted at
any time. An entry that cannot be read is computed again, and a folder that cannot be written is no error.
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

from trt_helper.errors import OutputError
from trt_helper.inputs.references import references
from trt_helper.inputs.samples import Sample, digest
from trt_helper.onnx_model.graph import Graph
from trt_helper.system.files import write_atomically
from trt_helper.system.versions import versions
from trt_helper.values import Tensors

LARGEST_ENTRY = 256 << 20  # bytes
LARGEST_CACHE = 1 << 30  # bytes; the least recently used entries are deleted first


def folder() -> Path:
    """The folder of the cache."""
    own = os.environ.get("TRT_HELPER_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trt-helper"


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
    with suppress(Exception):  # a damaged file raises any error of zipfile and numpy
        return _read(path, graph.outputs, len(samples))
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
    with suppress(OSError, ValueError):
        return json.loads(_path(key, "json").read_bytes())
    return None


def cache_value(key: Mapping[str, Any], value: Any) -> None:
    """Store a JSON value under the cache key `about`."""
    _write(_path(key, "json"), json.dumps(value).encode())


def _numbered(values: Tensors) -> list[tuple[int, np.ndarray[Any, Any]]]:
    return list(enumerate(values.values()))


def _read(path: Path, names: Sequence[str], count: int) -> list[Tensors]:
    with np.load(path, allow_pickle=False) as archive:
        found = [{name: archive[f"{i}.{j}"] for j, name in enumerate(names)} for i in range(count)]
    os.utime(path)
    return found


def _path(key: Mapping[str, Any], kind: str) -> Path:
    text = json.dumps(key, sort_keys=True)
    return folder() / f"{hashlib.sha256(text.encode()).hexdigest()}.{kind}"


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
