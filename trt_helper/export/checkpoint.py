"""Read a checkpoint: its tensors, or the module that it contains, on the CPU.

No code from the file is run: torch's restricted unpickler accepts only tensors and plain containers. With `trust` a
pickle may create any object, which can run any code.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from unittest import mock

import numpy as np
import torch

from trt_helper.errors import MachineError, ModelError, first_line
from trt_helper.export.archive import AGAIN, TRUST, Kind, kind_of
from trt_helper.export.untrusted import require_plain_program, require_plain_script
from trt_helper.system.files import sha256_of
from trt_helper.system.memory import at_most

PATHS = ("Path", "PosixPath", "PurePath", "PurePosixPath", "PureWindowsPath", "WindowsPath")
TIMES_ITS_SIZE, SPARE = 4, 1 << 30  # reading a pickle may take so many times its size, and 1 GiB (torch's threads)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A checkpoint that was read.

    Attributes:
        path: The file.
        sha256: Hash of the file.
        kind: How it is stored.
        content: An nn.Module, a ScriptModule, an ExportedProgram, or the object that torch.save was given.
    """

    path: Path
    sha256: str
    kind: Kind
    content: Any


def read_checkpoint(path: Path, *, trust: bool = False) -> Checkpoint:
    """Read the checkpoint `path`; its suffix does not matter.

    Args:
        path: The file.
        trust: Allow the file to run code.

    Raises:
        ModelError: The file is damaged, or would run code.
        MachineError: The file needs safetensors, which is not installed.
    """
    kind = kind_of(path)
    read = {
        Kind.WEIGHTS: _read_pickle,
        Kind.SCRIPT: _read_script,
        Kind.PROGRAM: _read_program,
        Kind.SAFETENSORS: _read_safetensors,
    }[kind]
    return Checkpoint(path, sha256_of(path), kind, read(path, trust))


def _read_pickle(path: Path, trust: bool) -> Any:
    try:
        if trust:
            return torch.load(path, map_location="cpu", weights_only=False)
        with torch.serialization.safe_globals(_non_tensors()), at_most(TIMES_ITS_SIZE * path.stat().st_size + SPARE):
            return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError as error:
        if trust:
            raise
        raise ModelError(
            f"{path} was refused: reading it takes far more memory than its {path.stat().st_size} bytes", fix=AGAIN
        ) from error
    except UnpicklingError as error:
        raise _refused(path, error) from error
    except Exception as error:  # a damaged file makes the unpickler and the zip and tar readers raise anything
        if trust and isinstance(error, (AttributeError, ImportError)):
            raise ModelError(
                f"{path} holds objects of classes that cannot be imported: {first_line(error)}",
                fix="run where they can be, name their file with --model, or save model.state_dict() instead",
            ) from error
        raise ModelError(f"{path} is truncated or damaged: {first_line(error)}", fix=AGAIN) from error


class NonTensor:
    """Stands for an object of a training script: an option, a path, a NumPy array. It accepts any data and keeps none.

    Nothing but tensors is needed of a checkpoint. NumPy's own classes must not be called with data of a stranger:
    `np.ndarray((1,), "O", bytearray(...))` makes pointers out of bytes.
    """

    def __init__(self, *_arguments: object, **_named: object) -> None:
        pass

    def __setstate__(self, _state: object) -> None:
        pass


def _non_tensors() -> list[tuple[type[NonTensor], str]]:
    """The names of classes and functions that training scripts leave in checkpoints, for `safe_globals`."""
    numpy_names = ("core.multiarray.scalar", "core.multiarray._reconstruct", "core.numeric._frombuffer")
    dtypes = {type(np.dtype(kind)).__name__ for kind in np.typecodes["All"]}
    return [
        (NonTensor, name)
        for name in (
            "argparse.Namespace",
            *(f"{module}.{kind}" for module in ("pathlib", "pathlib._local") for kind in PATHS),
            "numpy.ndarray",
            "numpy.dtype",
            *(f"numpy.dtypes.{name}" for name in dtypes),
            *(f"numpy.{underscore}{name}" for underscore in ("", "_") for name in numpy_names),
        )
    ]


def _refused(path: Path, error: UnpicklingError) -> ModelError:
    """Return the error for an object that the restricted unpickler refuses, or for a file that is no pickle."""
    text = str(error)
    found = re.search(r"GLOBAL ([A-Za-z_][\w.]*)|(Trying to call reduce for unrecognized function .*)", text)
    if found is None:
        reason = re.search(r"WeightsUnpickler error:\s*(.*)", text)
        return ModelError(
            f"{path} is truncated or damaged: {reason.group(1)[:200] if reason else first_line(error)}", fix=AGAIN
        )
    return ModelError(
        f"{path} was refused, and nothing in it was run: besides tensors it asks for {found[1] or found[2]}",
        fix=f"save model.state_dict() instead; or {TRUST}",
    )


def _read_script(path: Path, trust: bool) -> Any:
    if not trust:
        require_plain_script(path)
    try:
        return torch.jit.load(str(path), map_location="cpu").eval()
    except (RuntimeError, ValueError, OSError) as error:
        raise ModelError(
            f"{path} is a TorchScript file that cannot be loaded: {first_line(error)}", fix=AGAIN
        ) from error


def _read_program(path: Path, trust: bool) -> Any:
    if not trust:
        require_plain_program(path)
    force = {} if trust else {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1"}
    try:
        with mock.patch.dict(os.environ, force), _suffix(path) as source:
            return torch.export.load(source)
    except UnpicklingError as error:
        raise _refused(path, error) from error
    except MemoryError:
        raise
    except Exception as error:  # an inconsistent file makes torch raise anything
        raise ModelError(
            f"{path} cannot be loaded by PyTorch {torch.__version__}: {first_line(error)}",
            fix="load it with the version that wrote it, and export from there",
        ) from error


@contextlib.contextmanager
def _suffix(path: Path) -> Iterator[str | io.BytesIO]:
    """Yield the path, or a stream if its suffix is not the one that torch.export.load requires."""
    yield str(path) if path.suffix == ".pt2" else io.BytesIO(path.read_bytes())


def _read_safetensors(path: Path, _: bool) -> Any:
    try:
        from safetensors.torch import load_file  # noqa: PLC0415 - optional
    except ImportError:
        raise MachineError(f"{path} is a safetensors file", fix="pip install safetensors") from None
    try:
        return load_file(str(path))
    except Exception as error:  # safetensors' own exception type cannot be imported in all versions
        raise ModelError(f"{path} is truncated or damaged: {first_line(error)}", fix=AGAIN) from error
