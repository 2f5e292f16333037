"""Keep arrays in memory while there is room, and in a temporary file beyond that."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Lock
from typing import IO, Any

import numpy as np

from trt_helper.errors import OutputError
from trt_helper.values import Array

SHARE = 2  # without a limit, 1/SHARE of the free memory is used
BLOCK = 1 << 26  # bytes: the file grows by at least this much
PART = 8  # the file grows by at least 1/PART of its size
ALIGNED = 64  # bytes: a cache line, the alignment that vector instructions prefer
_CGROUPS = (  # (limit, usage) of a container's memory, cgroup versions 2 and 1
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


class ArrayStore:
    """Keeps arrays: up to `room` bytes in memory, the others in a file. Thread-safe.

    The file has no name, so it disappears with the last of its arrays, however the process ends.
    """

    def __init__(
        self, room: int, folder: Path | None = None, on_file: Callable[[str], None] = lambda _text: None
    ) -> None:
        """Make an empty store.

        Args:
            room: Bytes that are kept in memory.
            folder: Folder of the file; None is the system's temporary folder.
            on_file: Called once with a message when the file is made.
        """
        self._room = room
        self._folder = folder
        self._on_file = on_file
        self._file: IO[bytes] | None = None
        self._block: Array = np.empty(0, np.uint8)  # the unused rest of one part of the file
        self._lock = Lock()

    @classmethod
    def within(cls, limit: int | None, folder: Path | None = None, **options: Any) -> ArrayStore:
        """Return a store whose memory, with all that the process already uses, stays within `limit`.

        Memory that the process needs later for other work is not considered.

        Args:
            limit: Bytes; None uses half of the memory that is free on the machine.
            folder: For the file.
            **options: The other arguments of the constructor.
        """
        return cls(available() // SHARE if limit is None else max(0, limit - resident()), folder, **options)

    def keep(self, array: Array) -> Array:
        """Return `array` itself, or a read-only copy of it in the file.

        Raises:
            OutputError: The disk is full.
        """
        if array.dtype.hasobject or not array.nbytes:
            return array
        with self._lock:
            if array.nbytes <= self._room:
                self._room -= array.nbytes
                return array
            place = self._place(array.nbytes)
        copy: Array = place[: array.nbytes].view(array.dtype).reshape(array.shape)
        copy[...] = array
        copy.flags.writeable = False
        return copy

    def keep_all(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Apply `keep` to every array."""
        return {name: self.keep(array) for name, array in arrays.items()}

    def reserve(self, most: int) -> int:
        """Reserve up to `most` bytes of the room, at most half of it, for a use that limits itself.

        Returns:
            The bytes that were reserved.
        """
        with self._lock:
            taken = min(most, self._room // 2)
            self._room -= taken
        return taken

    def part(self) -> ArrayStore:
        """Return a store for short-lived arrays.

        It has the room of this store and does not reduce it.
        """
        return ArrayStore(self._room, self._folder, self._report_once)

    def _report_once(self, text: str) -> None:
        on_file, self._on_file = self._on_file, lambda _text: None
        on_file(text)

    def _place(self, size: int) -> Array:
        """Return `size` bytes of the file, rounded up to `ALIGNED`."""
        size = -(-size // ALIGNED) * ALIGNED
        if self._block.size < size:
            part = self._grown(size)
            place, rest = part[:size], part[size:]
            self._block = max(self._block, rest, key=len)
            return place
        place, self._block = self._block[:size], self._block[size:]
        return place

    def _grown(self, size: int) -> Array:
        """Grow the file and map the new part: at least `size` bytes.

        The disk space is allocated now, because a full disk could not be reported when the memory is written. Each part
        needs an open file descriptor, so parts grow with the file: 20 more parts make it ten times as large.
        """
        folder = self._folder or Path(tempfile.gettempdir())
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=folder, prefix="trt-helper-")  # noqa: SIM115 - stays open
                self._report_once(f"more than fits into memory is kept in a file in {folder}")
            number, step = self._file.fileno(), mmap.ALLOCATIONGRANULARITY
            start = -(-os.fstat(number).st_size // step) * step
            size = max(size, BLOCK, start // PART)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(number, start, size)
            else:
                os.truncate(number, start + size)
            return np.frombuffer(mmap.mmap(number, size, offset=start), np.uint8)
        except OSError as error:
            raise OutputError(
                f"no room in {folder} for what does not fit into memory: {error.strerror}",
                fix="free some disk space, raise --memory-limit, or give fewer samples",
            ) from error


def available() -> int:
    """Return the bytes of memory that this process can still use, on the machine and in its container.

    Only Linux states it; elsewhere the result is 1 GiB.
    """
    found = [proc_value("meminfo", "MemAvailable"), *(_left(*files) for files in _CGROUPS)]
    return min((size for size in found if size is not None), default=1 << 30)


def resident() -> int:
    """Return the bytes of anonymous memory that this process has, without mapped files.

    0 on systems other than Linux, which do not state it.
    """
    return proc_value("self/status", "RssAnon") or 0


def proc_value(file: str, key: str) -> int | None:
    """Return a value of a file under /proc in bytes; None if it is not there.

    `getrusage` is no alternative: it includes the peak of the process that started this one.

    Args:
        file: Path below /proc, such as `self/status`.
        key: Start of the line, such as `VmRSS`.
    """
    try:
        lines = Path("/proc", file).read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(f"{key}:")), None)


def _left(allowed: str, used: str) -> int | None:
    try:
        return max(0, int(Path(allowed).read_text()) - int(Path(used).read_text()))
    except (OSError, ValueError):  # no such container, or "max": no limit
        return None
