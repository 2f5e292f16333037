"""Files appear whole or not at all: written under a temporary name in the same folder, then renamed."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from trt_helper.errors import OutputError


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path`. Raises OutputError; the old file, if any, is then still there."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as stream:
            temporary = Path(stream.name)
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written: {error.strerror or error}",
            fix="choose another place with -o, or make room",
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def require_writable(path: Path) -> None:
    """Say before the work, not after it, that `path` cannot be written."""
    folder = path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{path.name}."):
            pass
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written: {error.strerror or error}",
            fix="choose another place with -o, or make room",
        ) from error
    if path.is_dir():
        raise OutputError(f"{path} is a folder", fix="give the name of a file with -o")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
