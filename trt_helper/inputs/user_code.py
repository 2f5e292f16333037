"""Run files of the user: a metric, or a data loader script, named as FILE.py:function."""

from __future__ import annotations

import contextlib
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def running(file: Path) -> Iterator[None]:
    """Run code of `file` in the block: it can import files of its own folder, and prints to stderr."""
    before = list(sys.path)
    sys.path.insert(0, str(file.resolve().parent))
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        sys.path[:] = before


def load_function(file: Path, name: str) -> Callable[..., Any] | None:
    """Run a file, and return one of its functions.

    The file does not become a module of this process, so that Ray sends its functions to other machines by value.

    Args:
        file: the file; it exists.
        name: the function's name.

    Returns:
        The function; None where the file has none of that name.

    Raises:
        Exception: whatever the file raises.
    """
    with running(file):
        found = runpy.run_path(str(file)).get(name)
    return found if callable(found) else None
