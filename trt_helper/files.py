"""Files appear whole or not at all: written under a temporary name in the same folder, then renamed."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from trt_helper.errors import OutputError

PREFIX = ".trt-helper-"  # of files that are not whole yet


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path`. Raises OutputError; the old file, if any, is then still there."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=PREFIX, delete=False) as stream:
            temporary = Path(stream.name)
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def require_writable(path: Path, *, keep: Iterable[Path | None] = ()) -> None:
    """Say before the work, not after it, that `path` cannot be written; `keep` are the user's own files.

    Leaves nothing behind: a missing folder is made when there is something to put into it.
    """
    try:
        there = _exists(path)
        folder = next(parent for parent in path.absolute().parents if _exists(parent))
        with tempfile.NamedTemporaryFile(dir=folder, prefix=PREFIX):
            pass
        overwritten = next((file for file in keep if file and there and file.exists() and file.samefile(path)), None)
    except OSError as error:
        raise _cannot_write(path, error) from error
    if overwritten:
        raise OutputError(f"{path} is what the result is made from", fix="give the name of another file")
    if there and not path.is_file():
        what = "is a folder" if path.is_dir() else "is not a regular file"
        raise OutputError(f"{path} {what}", fix="give the name of a file with -o")


def make_folder_of(path: Path) -> None:
    """Make the folder that `path` is to be written into. Raises OutputError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(path, error) from error


def _exists(path: Path) -> bool:
    """Whether something is there. Raises OSError where nothing can be: below a file, under too long a name."""
    try:
        path.stat()
    except FileNotFoundError:
        return False
    return True


def _cannot_write(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{path} cannot be written: {error.strerror or error}",
        fix="choose another place with -o, or make room",
    )


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
