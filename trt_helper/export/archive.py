"""Determine the kind of a checkpoint file from its bytes, without loading it."""

from __future__ import annotations

import zipfile
from enum import Enum
from pathlib import Path

from trt_helper.errors import ModelError

AGAIN = (
    "copy or download it again; export reads what torch.save, torch.jit.save, torch.export.save and safetensors write"
)
TRUST = "if you trust whoever made it, --trust-checkpoint lets it run any code on this machine, as you"


class Kind(Enum):
    """How a checkpoint is stored."""

    WEIGHTS = (
        "a torch.save file"  # zip or legacy format; a state dict, something that contains one, or a pickled module
    )
    SCRIPT = "a TorchScript file"
    PROGRAM = "a torch.export program"
    SAFETENSORS = "a safetensors file"


def kind_of(path: Path) -> Kind:
    """Determine the kind of the checkpoint `path` from its content; the file's suffix does not matter.

    Raises:
        ModelError: The file is missing, truncated or not a checkpoint.
    """
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise ModelError(f"{path} {what}", fix="give the path of a checkpoint file")
    try:
        with path.open("rb") as stream:
            head = stream.read(512)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}", fix="check its permissions") from error
    if head.startswith(b"PK"):
        return _kind_of_zip(path)
    if head.startswith(b"\x80") or head[257:262] == b"ustar":
        return Kind.WEIGHTS
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size:  # noqa: PLR2004
        return Kind.SAFETENSORS
    what = "is empty" if not head else f"is no checkpoint: it begins with {head[:8]!r}"
    hint = "" if path.suffix != ".onnx" else "; an ONNX model needs no export: trt-helper locate takes it as it is"
    raise ModelError(f"{path} {what}", fix=AGAIN + hint)


def _kind_of_zip(path: Path) -> Kind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        size = path.stat().st_size
        raise ModelError(
            f"{path} begins as a zip archive and is truncated or damaged ({size} bytes)", fix=AGAIN
        ) from error
    inner = {name.partition("/")[2] for name in names} | set(names)
    if "constants.pkl" in inner and any(name.startswith("code/") for name in inner):
        return Kind.SCRIPT
    if "archive_format" in inner or "serialized_exported_program.json" in inner:
        return Kind.PROGRAM
    if "data.pkl" in inner:
        return Kind.WEIGHTS
    shown = ", ".join(sorted(names)[:3]) or "nothing"
    raise ModelError(f"{path} is a zip archive, but no checkpoint: it holds {shown}", fix=AGAIN)
