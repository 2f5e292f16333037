"""Arrays go in; the same arrays come out, in memory while there is room, from a file beyond that."""

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

SHARE = 2  # one in so many bytes of the memory that is free is used where no limit is given
BLOCK = 1 << 26  # bytes by which the file grows at least
PART = 8  # it grows by one in so many of its bytes, too
ALIGNED = 64  # bytes: a cache line, and what vector instructions like
_CGROUPS = (  # of a container, version 2 and 1: what it may have, what it has
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


class ArrayStore:
    """Keeps arrays: `room` bytes of them in memory, the others in a file under `folder`. Thread-safe.

    The file has no name and goes with the last of its arrays, however the process ends. `on_file` is told, once, that
    there is one.
    """

    def __init__(
        self, room: int, folder: Path | None = None, on_file: Callable[[str], None] = lambda _text: None
    ) -> None:
        self._room = room
        self._folder = folder
        self._tell = on_file
        self._file: IO[bytes] | None = None
        self._block: Array = np.empty(0, np.uint8)  # what is left of the file's last part
        self._lock = Lock()

    @classmethod
    def within(cls, limit: int | None, folder: Path | None = None, **how: Any) -> ArrayStore:
        """With room for what `limit`, in bytes, leaves beside all that the process holds now.

        Without a limit that is half of what is free on the machine. What the process needs for its work afterwards is
        not foreseen.
        """
        return cls(available() // SHARE if limit is None else max(0, limit - resident()), folder, **how)

    def keep(self, array: Array) -> Array:
        """`array`, or a copy of it in the file. Raises OutputError where the disk is full."""
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
        """`hold` for each of them."""
        return {name: self.keep(array) for name, array in arrays.items()}

    def reserve(self, most: int) -> int:
        """Take `most` bytes of the room, or half of what there is, for a use that keeps to it by itself."""
        with self._lock:
            taken = min(most, self._room // 2)
            self._room -= taken
        return taken

    def part(self) -> ArrayStore:
        """A store for what is not kept for long: it has what room there is now, and takes none of it away."""
        return ArrayStore(self._room, self._folder, self._say_once)

    def _say_once(self, text: str) -> None:
        tell, self._tell = self._tell, lambda _text: None
        tell(text)

    def _place(self, size: int) -> Array:
        """That many bytes of the file."""
        size = -(-size // ALIGNED) * ALIGNED
        if self._block.size < size:
            part = self._grown(size)
            place, rest = part[:size], part[size:]
            self._block = max(self._block, rest, key=len)
            return place
        place, self._block = self._block[:size], self._block[size:]
        return place

    def _grown(self, size: int) -> Array:
        """A new part of the file, mapped: at least `size` bytes.

        The disk gives the space now: later nobody could say that it is full. Each part holds a file descriptor open,
        so parts grow with the file: 20 of them make it ten times as large.
        """
        folder = self._folder or Path(tempfile.gettempdir())
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=folder, prefix="trt-helper-")  # noqa: SIM115 - stays open
                self._say_once(f"more than fits into memory is kept in a file in {folder}")
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
    """Bytes of memory that are free for this process: of the machine's, and of its container's. Linux; else 1 GiB."""
    found = [proc_value("meminfo", "MemAvailable"), *(_left(*files) for files in _CGROUPS)]
    return min((size for size in found if size is not None), default=1 << 30)


def resident() -> int:
    """Bytes of memory that this process has now, what it maps from files left out. 0 where nobody says: not Linux."""
    return proc_value("self/status", "RssAnon") or 0


def proc_value(file: str, key: str) -> int | None:
    """What a line of a file under /proc says, in bytes. `getrusage` would count what the process' starter had."""
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
