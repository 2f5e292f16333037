"""A path goes in; what an engine file tells without a GPU comes out.

TensorRT can open an engine only on a GPU. The file's first bytes, its size and its hash can be read
anywhere, and `convert` leaves the layer table, the types and the proof of pins beside it.
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
    """Whether the file begins as an engine does."""
    try:
        with path.open("rb") as stream:
            return stream.read(4) in MAGIC
    except OSError:
        return False


def read_engine(path: Path) -> dict[str, Any]:
    """What can be read of the engine; `proof` is empty when there is no sidecar that belongs to it."""
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
