"""What a build leaves behind: the engine file, whole or not at all, and what is known about it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex

from trt_helper.builder.layer_info import EngineLayer
from trt_helper.errors import OutputError


@dataclass(frozen=True, slots=True)
class EngineBuild:
    """A finished engine. `layers` is empty where the builder's log held no layer dump."""

    path: Path
    bytes: int
    sha256: str
    seconds: float  # wall clock, start of the building process included
    builder: str  # product and version, e.g. "TensorRT-RTX 1.7.1.116"
    layers: tuple[EngineLayer, ...]
    warnings: tuple[str, ...]  # each once, in the order of the log


@contextmanager
def partial_file(out: Path) -> Iterator[Path]:
    """Hold a temporary file beside `out`: it becomes `out` when the block ends well, and vanishes otherwise.

    Raises `OutputError` at once where the folder cannot be written, before anything slow has run.
    """
    if out.is_dir():
        raise OutputError(f"{out} is a folder", fix="name a file in it: -o FOLDER/model.trt")
    partial = out.parent / f".trt-helper-{token_hex(6)}.partial"
    try:
        os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # 0o666: the umask decides
    except OSError as error:
        raise cannot_write(out, error) from error
    try:
        yield partial
        try:
            partial.replace(out)
        except OSError as error:
            raise cannot_write(out, error) from error
    finally:
        partial.unlink(missing_ok=True)


def cannot_write(out: Path, error: OSError) -> OutputError:
    """Say why a file cannot be written: no space, no folder, no permission."""
    return OutputError(
        f"{out} cannot be written: {error.strerror or error}",
        fix="make room there, or name another folder with -o; nothing was left behind",
    )
