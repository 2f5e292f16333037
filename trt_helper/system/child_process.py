"""Run one function in a fresh Python process, so that a crash, hang or memory leak does not affect this one.

TensorRT can crash, hang or use up the machine's memory; the caller then gets a `ChildDiedError`. If the function
raises a `TrtHelperError`, the same error is raised in the parent process.

The child is a new interpreter, not a fork and not `multiprocessing`: the caller's `__main__` is not imported again, and
the terminal's Ctrl-C reaches only the parent.

Protocol: the parent writes one JSON line to the child's stdin (module, request, sys.path) and keeps stdin open; when
it closes, the child knows that the parent is gone and ends. The child writes one JSON line per event to a pipe. The
last event is `done` (with the result), `error` (a TrtHelperError), `import` (the module cannot be imported) or `bug`
(any other exception).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from io import FileIO
from multiprocessing.connection import wait as ready
from pathlib import Path
from time import monotonic
from typing import IO, Any, NoReturn

from trt_helper import errors

Event = dict[str, Any]

# -I: the child imports from the parent's sys.path, regardless of the working folder and PYTHON* variables.
# -B: it writes no bytecode. On a full disk, Python 3.11 keeps a module that was cut off and fails at each later import.
_BOOT = (
    "import json, sys; boot = json.loads(sys.stdin.buffer.readline()); sys.path[:] = boot['path']; "
    "from trt_helper.system.child_process import serve; serve(boot)"
)
_MEMORY_INTERVAL = 0.02  # seconds between two checks of the child's memory
_CHUNK = 1 << 16  # bytes
_TAIL = 2000  # characters of the child's own output that are kept for the error


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a child process; None is no limit."""

    seconds: float | None = None  # wall clock
    memory: int | None = None  # bytes of resident memory


class ChildDiedError(Exception):
    """The child process ended without an answer, or was killed because of a limit.

    Attributes:
        how: `signal`, `exit`, `time` or `memory`.
        code: The signal, the exit status, or the bytes in use; 0 for `time`.
        output: The end of the child's stdout and stderr.
    """

    def __init__(self, how: str, code: int, output: str) -> None:
        super().__init__(f"{how} {code}: {output}")
        self.how = how
        self.code = code
        self.output = output


class NotImportableError(Exception):
    """The child process could not import its module; the text is the reason."""


def run(
    module: str,
    request: Mapping[str, Any],
    *,
    limits: Limits,
    on_event: Callable[[Event], None],
    leftover: Path,
    environment: Mapping[str, str] = {},
) -> Event:
    """Run `module.run(request, send)` in a child process and return its result.

    However this call ends, also by KeyboardInterrupt, the child is gone afterwards.

    Args:
        module: Dotted name of the module.
        request: JSON values.
        limits: The child is killed if it exceeds one.
        on_event: Called with every event that the child sends before its answer.
        leftover: A file that the child deletes if this process is killed.
        environment: Environment variables in addition to this process's.

    Raises:
        ChildDiedError: The child crashed, exited or exceeded a limit.
        NotImportableError: The child cannot import the module.
        TrtHelperError: The error that the function raised.
        RuntimeError: The function raised any other exception; the text has its traceback.
    """
    reading, writing = os.pipe()
    with tempfile.TemporaryFile() as output, os.fdopen(reading, "rb", buffering=0) as events:
        boot = {
            "path": [entry or str(Path.cwd()) for entry in sys.path],
            "module": module,
            "request": dict(request),
            "events": writing,
            "leftover": str(leftover),
        }
        try:
            child = _started(writing, output, environment)
        finally:
            os.close(writing)
        try:
            _send_boot(child, boot)
            answer = _last(_events(child, events, limits, output), on_event)
            return _result(answer, child, output)
        finally:
            child.kill()
            child.communicate()


def _started(writing: int, output: IO[bytes], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 - our own interpreter and our own text
        [sys.executable, "-IB", "-c", _BOOT],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=output,
        pass_fds=(writing,),
        env={**os.environ, **environment},
        start_new_session=True,
    )


def _send_boot(child: subprocess.Popen[bytes], boot: Mapping[str, Any]) -> None:
    if child.stdin is None:
        raise RuntimeError("the child has no stdin")
    with contextlib.suppress(BrokenPipeError):  # it died at once: the missing answer is reported later
        child.stdin.write(json.dumps(boot).encode() + b"\n")
        child.stdin.flush()


def _events(child: subprocess.Popen[bytes], events: FileIO, limits: Limits, output: IO[bytes]) -> Iterator[Event]:
    """Yield the child's events until it closes the pipe; kill it and raise ChildDiedError beyond a limit."""
    deadline = None if limits.seconds is None else monotonic() + limits.seconds
    rest = b""
    while True:
        left = None if deadline is None else deadline - monotonic()
        if left is not None and left <= 0:
            raise _killed(child, "time", 0, output)
        used = 0 if limits.memory is None else resident(child.pid)
        if limits.memory is not None and used > limits.memory:
            raise _killed(child, "memory", used, output)
        wait = left if limits.memory is None else min(_MEMORY_INTERVAL, left or _MEMORY_INTERVAL)
        if not ready([events.fileno()], wait):
            continue
        chunk = events.read(_CHUNK)
        if not chunk:
            return
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (json.loads(line) for line in lines)


def _last(events: Iterator[Event], on_event: Callable[[Event], None]) -> Event | None:
    """Pass events on and return the answer; None if the child ended without one."""
    for event in events:
        if event["event"] in {"done", "error", "bug", "import"}:
            return event
        on_event(event)
    return None


def _result(answer: Event | None, child: subprocess.Popen[bytes], output: IO[bytes]) -> Event:
    if answer is None:
        status = child.wait()
        raise ChildDiedError("signal" if status < 0 else "exit", abs(status), _tail(output))
    if answer["event"] == "error":
        kind = getattr(errors, answer["kind"])
        raise kind(answer["message"], fix=answer["fix"])
    if answer["event"] == "import":
        raise NotImportableError(answer["reason"])
    if answer["event"] == "bug":
        raise RuntimeError(f"in the building process:\n{answer['traceback']}")
    result: Event = answer["result"]
    return result


def _killed(child: subprocess.Popen[bytes], how: str, code: int, output: IO[bytes]) -> ChildDiedError:
    child.kill()
    child.wait()
    return ChildDiedError(how, code, _tail(output))


def _tail(output: IO[bytes]) -> str:
    output.seek(0)
    return output.read().decode(errors="replace")[-_TAIL:].strip()


def resident(pid: int) -> int:
    """Return the resident memory of a process in bytes; 0 if it is gone. Linux only."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def signal_name(number: int) -> str:
    """Return "SIGSEGV" for 11, or "signal N" for a number without a name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def serve(boot: Event) -> NoReturn:
    """Run the function, answer, and exit; this is the child process's side.

    The exit skips the exit handlers of all libraries, which may crash.
    """
    channel = os.fdopen(boot["events"], "w", encoding="utf-8")
    leftover = Path(boot["leftover"])
    lock = threading.Lock()
    threading.Thread(target=_leave_with_parent, args=(leftover,), daemon=True).start()

    def send(event: Event) -> None:
        with lock:
            try:
                channel.write(json.dumps(event) + "\n")
                channel.flush()
            except BrokenPipeError:
                _leave(leftover)

    send(_answer(boot, send))
    os._exit(0)


def _answer(boot: Event, send: Callable[[Event], None]) -> Event:
    try:
        module = import_module(boot["module"])
    except (ImportError, OSError) as error:
        return {"event": "import", "reason": f"{type(error).__name__}: {error}"}
    try:
        return {"event": "done", "result": module.run(boot["request"], send)}
    except errors.TrtHelperError as error:
        return {
            "event": "error",
            "kind": type(error).__name__,
            "message": error.message,
            "fix": error.fix,
        }
    except Exception:  # a bug of ours: its traceback must not be lost with the process
        return {"event": "bug", "traceback": traceback.format_exc()}


def _leave_with_parent(leftover: Path) -> None:
    """End this process when the parent ends: only then does stdin close."""
    sys.stdin.buffer.read()
    _leave(leftover)


def _leave(leftover: Path) -> NoReturn:
    leftover.unlink(missing_ok=True)
    os._exit(1)
