"""Write files atomically: under a temporary name in the same folder, then renamed."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex

from trt_helper.errors import OutputError

PREFIX = ".trt-helper-"  # of the names of incomplete files


@contextmanager
def partial_file(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside `path` that becomes `path` if the block succeeds, and is deleted otherwise.

    An old file `path` stays until then.

    Raises:
        OutputError: The folder cannot be written (raised before the block runs), or the rename failed.
    """
    if path.is_dir():
        raise OutputError(f"{path} is a folder", fix="name a file in it: -o FOLDER/FILE")
    partial = path.parent / f"{PREFIX}{token_hex(6)}.partial"
    try:
        os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # 0o666: the umask decides
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        yield partial
        try:
            partial.replace(path)
        except OSError as error:
            raise cannot_write(path, error) from error
    finally:
        partial.unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path`; missing folders are made.

    Raises:
        OutputError: The file cannot be written.
    """
    make_folder_of(path)
    with partial_file(path) as partial:
        try:
            with partial.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise cannot_write(path, error) from error


def require_writable(path: Path, *, keep: Iterable[Path | None] = ()) -> None:
    """Check before slow work that `path` can be written. Nothing is left behind, not even a missing folder.

    Args:
        path: The file to write later.
        keep: The user's own files, which must not be overwritten.

    Raises:
        OutputError: `path` cannot be written, is not a file, or is one of `keep`.
    """
    try:
        there = _exists(path)
        folder = next(parent for parent in path.absolute().parents if _exists(parent))
        with tempfile.NamedTemporaryFile(dir=folder, prefix=PREFIX):
            pass
        overwritten = next((file for file in keep if file and there and file.exists() and file.samefile(path)), None)
    except OSError as error:
        raise cannot_write(path, error) from error
    if overwritten:
        raise OutputError(f"{path} is what the result is made from", fix="give the name of another file")
    if there and not path.is_file():
        what = "is a folder" if path.is_dir() else "is not a regular file"
        raise OutputError(f"{path} {what}", fix="give the name of a file with -o")


def make_folder_of(path: Path) -> None:
    """Make the folder of `path`, with its parents.

    Raises:
        OutputError: It cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error


def _exists(path: Path) -> bool:
    """Return whether `path` exists. Raises OSError if it cannot exist: below a file, or with too long a name."""
    try:
        path.stat()
    except FileNotFoundError:
        return False
    return True


def cannot_write(path: Path, error: OSError) -> OutputError:
    """Return the error for a path that the system refuses to write: no space, no folder, no permission."""
    return OutputError(
        f"{path} cannot be written: {error.strerror or error}",
        fix="choose another place with -o, or make room",
    )


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits; the file is read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def tidy(path: Path) -> Path:
    """Return `configs/../models/m.onnx` as `models/m.onnx`, unless a symbolic link makes that another file."""
    short = Path(os.path.normpath(path))
    return short if short.exists() and path.exists() and short.samefile(path) else path
