"""The errors that a user can act on, each with the exit status of the command.

Such an error states what is wrong, with the value, and what to do. It is shown without a traceback. Any other
exception is a bug in trt-helper and shows its traceback. DESIGN.md section 5 lists the exit statuses.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

INTERRUPTED = 130  # exit status after Ctrl-C


class TrtHelperError(Exception):
    """An error that the user can act on.

    Attributes:
        message: What is wrong, with the value, in one line.
        fix: What to do about it, in one line.
        exit_status: Of the command that ends with this error. 3: input or environment must change.
    """

    exit_status = 3

    def __init__(self, message: str, *, fix: str) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle with `fix`, so that a child process can send the error to its parent."""
        return (_rebuild, (type(self), self.message, self.fix))


def _rebuild(kind: type[TrtHelperError], message: str, fix: str) -> TrtHelperError:
    error = kind.__new__(kind)
    TrtHelperError.__init__(error, message, fix=fix)
    return error


class ModelError(TrtHelperError):
    """The model file cannot be read, is not valid ONNX, or contains something that trt-helper cannot judge."""


class InputError(TrtHelperError):
    """Sample inputs are missing or do not fit the model."""


class ConfigError(TrtHelperError):
    """The YAML file is not a valid config, or does not belong to this model."""


class UsageError(ConfigError):
    """An option on the command line has an invalid value."""

    exit_status = 2


class OutputError(TrtHelperError):
    """A result cannot be written."""


class MachineError(TrtHelperError):
    """The machine lacks a device or a library that the command needs."""


class BuildError(TrtHelperError):
    """The engine could not be built."""

    exit_status = 4


class RunError(TrtHelperError):
    """The engine or the typed model could not be executed on this machine's GPU."""


class ControlError(TrtHelperError):
    """The model misses the tolerance already with all layers in FP32, so precision is not the cause."""

    exit_status = 1


class DisagreementError(TrtHelperError):
    """Repeats of a trial disagree, and nothing can be decided without its verdict."""

    exit_status = 5


class NoVerdictError(TrtHelperError):
    """A trial was begun several times, and each time the process ended before it did."""

    exit_status = 5


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most similar to `name`, or None if none is similar."""
    found = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return found[0] if found else None


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 300 characters; the name of its class if the message is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
