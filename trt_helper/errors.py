"""Every error that a user can meet, with its exit status (DESIGN: 3 input or environment, 4 build, ...).

An error says what is wrong, with the value, and what to do about it. Anything that is not a
`TrtHelperError` is a bug in trt-helper and shows its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class TrtHelperError(Exception):
    """Something the user can mend: `message` says what is wrong, `fix` what to do."""

    exit_status = 3

    def __init__(self, message: str, *, fix: str) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __reduce__(self) -> tuple[object, ...]:
        """Survive the way from a child process."""
        return (_rebuild, (type(self), self.message, self.fix))


def _rebuild(kind: type[TrtHelperError], message: str, fix: str) -> TrtHelperError:
    error = kind.__new__(kind)
    TrtHelperError.__init__(error, message, fix=fix)
    return error


class ModelError(TrtHelperError):
    """The model file cannot be read, is not valid ONNX, or holds what trt-helper cannot judge."""


class InputError(TrtHelperError):
    """Sample inputs are missing or do not fit the model."""


class ConfigError(TrtHelperError):
    """The YAML file is not what it should be, or does not belong to this model."""


class UsageError(ConfigError):
    """An option on the command line has a value that it cannot have."""

    exit_status = 2


class OutputError(TrtHelperError):
    """A result cannot be written."""


class MachineError(TrtHelperError):
    """The machine lacks what the command needs."""


class BuildError(TrtHelperError):
    """The engine could not be built."""

    exit_status = 4


class RunError(TrtHelperError):
    """The engine or the typed model could not be executed on this machine's GPU."""


class ControlError(TrtHelperError):
    """The model in FP32 already misses the tolerance: precision is not the cause."""

    exit_status = 1


class DisagreementError(TrtHelperError):
    """Repeats of the same trial disagree where nothing can be decided without it."""

    exit_status = 5


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name`, or None when nothing is near."""
    found = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return found[0] if found else None


def first_line(error: BaseException) -> str:
    """What a library's error says in one line of at most 300 characters; its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
