"""Limit what this process may allocate while it reads a file from somewhere else."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

try:
    import resource
except ImportError:  # Windows has no such limit
    resource = None  # type: ignore[assignment]

STATUS = Path("/proc/self/status")


@contextlib.contextmanager
def at_most(more: int) -> Iterator[None]:
    """Let the process allocate at most `more` bytes in the block, beyond what it has; then MemoryError.

    Linux only: elsewhere nothing is limited. The limit is on the address space of the whole process, so that threads
    beside this one are under it too.
    """
    now = _address_space()
    if resource is None or now is None:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    allowed = [now + more, *(limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_AS, (min(allowed), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _address_space() -> int | None:
    """The address space of this process in bytes; None where the system does not say."""
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmSize:")), None)
