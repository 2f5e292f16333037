"""Read the facts about an engine file without a GPU.

TensorRT can open an engine only on a GPU. Without one, the first bytes, the size and the hash can be read; the layer
table, the types and the proof of the pins come from the JSON file that `convert` writes beside the engine.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trt_helper.builder.convert import sidecar
from trt_helper.errors import ModelError
from trt_helper.system.files import sha256_of

MAGIC = {b"vtrt": "TensorRT-RTX", b"ftrt": "TensorRT", b"ptrt": "TensorRT"}  # vtrt seen on RTX 1.7.1


def is_engine(path: Path) -> bool:
    """Return whether the file starts with the magic bytes of a TensorRT or TensorRT-RTX engine."""
    try:
        with path.open("rb") as stream:
            return stream.read(4) in MAGIC
    except OSError:
        return False


def read_engine(path: Path) -> dict[str, Any]:
    """Return the facts about an engine file.

    Args:
        path: A file for which `is_engine` is true.

    Returns:
        `path`, `product`, `bytes`, `sha256`, and `proof`: the content of the JSON file beside the engine, empty if
        there is none or if it belongs to another engine.

    Raises:
        ModelError: The JSON file beside the engine is not readable.
    """
    with path.open("rb") as stream:
        product = MAGIC[stream.read(4)]
    sha256 = sha256_of(path)
    facts: dict[str, Any] = {
        "path": str(path),
        "product": product,
        "bytes": path.stat().st_size,
        "sha256": sha256,
        "proof": {},
    }
    beside = sidecar(path)
    if beside.is_file():
        try:
            record = json.loads(beside.read_text(encoding="utf-8"))
            belongs = record["engine"]["sha256"] == sha256
            complete = all(isinstance(record[key], list) for key in ("pins", "layers")) and record["model"]["path"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{beside} cannot be read", fix="remove it, or convert the model again") from error
        if belongs and complete:
            facts["proof"] = record
    return facts
