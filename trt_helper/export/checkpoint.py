"""A checkpoint's path goes in; its tensors, or the module that it holds, come out, on the CPU.

Nothing in the file is run: pickles are read by torch's restricted unpickler, which knows tensors and plain
containers. Only with `trust` may a pickle make whatever objects it likes.
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
    """`content` is an nn.Module, a ScriptModule, an ExportedProgram, or what torch.save was given."""

    path: Path
    sha256: str
    kind: Kind
    content: Any


def read_checkpoint(path: Path, *, trust: bool = False) -> Checkpoint:
    """Read `path`, whatever its suffix. Raises ModelError for what is damaged, or would run code."""
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
    except Exception as error:  # the unpickler, zip and tar readers raise what the first wrong byte makes them
        if trust and isinstance(error, (AttributeError, ImportError)):
            raise ModelError(
                f"{path} holds objects of classes that cannot be imported: {first_line(error)}",
                fix="run where they can be, name their file with --model, or save model.state_dict() instead",
            ) from error
        raise ModelError(f"{path} is truncated or damaged: {first_line(error)}", fix=AGAIN) from error


def _harmless() -> list[Any]:
    """Classes that training scripts leave in checkpoints and that do nothing when made."""
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
    """The restricted unpickler has met something that is no tensor, or the file is no pickle."""
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
    except Exception as error:  # whatever the first inconsistency makes torch raise
        raise ModelError(
            f"{path} cannot be loaded by PyTorch {torch.__version__}: {first_line(error)}",
            fix="load it with the version that wrote it, and export from there",
        ) from error


@contextlib.contextmanager
def _suffix(path: Path) -> Iterator[str | io.BytesIO]:
    """torch.export.load wants its own suffix, or a stream."""
    yield str(path) if path.suffix == ".pt2" else io.BytesIO(path.read_bytes())


def _read_safetensors(path: Path, _: bool) -> Any:
    try:
        from safetensors.torch import load_file  # noqa: PLC0415 - optional
    except ImportError:
        raise MachineError(f"{path} is a safetensors file", fix="pip install safetensors") from None
    try:
        return load_file(str(path))
    except Exception as error:  # safetensors has its own error, which is no Python class to import in all versions
        raise ModelError(f"{path} is truncated or damaged: {first_line(error)}", fix=AGAIN) from error
