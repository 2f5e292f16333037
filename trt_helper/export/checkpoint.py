"""Read a checkpoint: its tensors, or the module that it contains, on the CPU.

No code from the file is run: torch's restricted unpickler accepts only tensors and plain containers. With `trust` a
pickle may create any object, which can run any code.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import pathlib
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
from trt_helper.export.archive import AGAIN, TRUST, Kind, kind_of, require_plain_program
from trt_helper.system.files import sha256_of


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
        with torch.serialization.safe_globals(_harmless()):
            return torch.load(path, map_location="cpu", weights_only=not trust)
    except MemoryError:
        raise
    except UnpicklingError as error:
        raise _refused(path, error) from error
    except Exception as error:  # a damaged file makes the unpickler and the zip and tar readers raise anything
        if trust and isinstance(error, (AttributeError, ImportError)):
            raise ModelError(
                f"{path} holds objects of classes that cannot be imported: {first_line(error)}",
                fix="run where they can be, name their file with --model, or save model.state_dict() instead",
            ) from error
        raise ModelError(f"{path} is truncated or damaged: {first_line(error)}", fix=AGAIN) from error


def _harmless() -> list[Any]:
    """Return classes that training scripts leave in checkpoints and whose construction has no side effect."""
    scalar = type(np.float64(0)).__reduce__(np.float64(0))[0]
    dtypes = {type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "?")}
    return [
        argparse.Namespace,
        pathlib.PosixPath,
        pathlib.PurePosixPath,
        np.dtype,
        np.ndarray,
        *dtypes,
        scalar,
        (scalar, "numpy.core.multiarray.scalar"),
        (np.zeros(0).__reduce__()[0], "numpy.core.multiarray._reconstruct"),
        np.zeros(0).__reduce__()[0],
    ]


def _refused(path: Path, error: UnpicklingError) -> ModelError:
    """Return the error for an object that the restricted unpickler refuses, or for a file that is no pickle."""
    text = str(error)
    found = re.search(r"GLOBAL ([A-Za-z_][\w.]*)|(Trying to call reduce for unrecognized function .*)", text)
    if found is None:
        reason = re.search(r"WeightsUnpickler error: (.*)", text)
        return ModelError(
            f"{path} is truncated or damaged: {reason.group(1)[:200] if reason else first_line(error)}", fix=AGAIN
        )
    return ModelError(
        f"{path} was refused, and nothing in it was run: besides tensors it asks for {found[1] or found[2]}",
        fix=f"save model.state_dict() instead; or {TRUST}",
    )


def _read_script(path: Path, _: bool) -> Any:
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
