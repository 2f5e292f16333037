"""Determine the kind of a checkpoint file from its bytes, without loading it.

Loading a `torch.export` program evaluates text from the file: sizes as sympy expressions, operators by their dotted
names, and in old files pickles. `require_plain_program` accepts only what torch.export itself writes.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

from trt_helper.errors import ModelError

AGAIN = (
    "copy or download it again; export reads what torch.save, torch.jit.save, torch.export.save and safetensors write"
)
TRUST = "if you trust whoever made it, --trust-checkpoint lets it run any code on this machine, as you"

# Names that may occur in sympy.srepr of a size; besides them numbers and quoted symbols are allowed.
SYMPY = {
    *("Symbol", "Integer", "Rational", "Float", "Add", "Mul", "Pow", "Max", "Min", "Mod", "Abs", "Identity", "Where"),
    *("PythonMod", "FloorDiv", "CeilDiv", "CleanDiv", "ModularIndexing", "IntTrueDiv", "FloatTrueDiv", "FloatPow"),
    *("PowByNatural", "ToFloat", "TruncToInt", "TruncToFloat", "CeilToInt", "FloorToInt", "RoundToInt", "LShift"),
    *("RShift", "Eq", "Ne", "Lt", "Le", "Gt", "Ge", "Equality", "Unequality", "StrictLessThan", "LessThan", "And"),
    *("StrictGreaterThan", "GreaterThan", "Or", "Not", "true", "false", "True", "False", "None", "oo", "int_oo"),
    *("positive", "nonnegative", "negative", "integer", "real", "finite", "zero", "even", "odd", "precision"),
}
PLAIN_TEXT = re.compile(r"[\w\s()=,.+\-*/%<>!&|~]*")
TARGET = re.compile(
    r"torch\.ops\.(?!load)(?!\w*__)[A-Za-z]\w*(\.(?!_*load)(?!\w*__)[A-Za-z_]\w*){1,2}"
    r"|_operator\.(?!call|methodcaller|attrgetter)[a-z]\w*|math\.[a-z]\w*|torch\.sym_\w+|[a-z]\w*"
)


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


def require_plain_program(path: Path) -> None:
    """Check that a `torch.export` program contains only what torch.export writes.

    Raises:
        ModelError: The program could run other code when it is loaded.
    """
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if len(set(names)) < len(names):
            raise _refused(path, "it holds two files of one name")
        for name in names:
            if "opaque_obj" in name or "custom_obj" in name or "aotinductor" in name:
                raise _refused(path, f"it holds a Python object or compiled code, {name!r}")
            if not name.endswith(".json"):
                continue
            try:
                content = json.loads(archive.read(name))
            except (ValueError, RecursionError, zipfile.BadZipFile, OSError) as error:
                raise ModelError(f"{path}: {name} is damaged", fix=AGAIN) from error
            for key, text in _texts(content):
                if key == "expr_str" and not _is_plain_size(text):
                    raise _refused(path, f"a size is the expression {text!r:.80}")
                if key == "target" and not TARGET.fullmatch(text):
                    raise _refused(path, f"it calls {text!r:.80}, which is no operator")


def _refused(path: Path, why: str) -> ModelError:
    return ModelError(f"{path} was refused, and nothing in it was run: {why}", fix=TRUST)


def _texts(content: Any) -> Iterator[tuple[str, str]]:
    """Yield (key, text) for every text in a JSON value."""
    queue: list[tuple[str, Any]] = [("", content)]
    while queue:
        key, value = queue.pop()
        if isinstance(value, dict):
            queue.extend((str(inner), item) for inner, item in value.items())
        elif isinstance(value, list):
            queue.extend((key, item) for item in value)
        elif isinstance(value, str):
            yield key, value


def _is_plain_size(text: str) -> bool:
    unquoted = re.sub(r"'[A-Za-z]\w*'", "", text)
    names = re.findall(r"[A-Za-z_]\w*", re.sub(r"\b[0-9]+(\.[0-9]*)?(e[+-]?[0-9]+)?\b", "", unquoted))
    symbols = re.compile(r"[suzf][0-9]+")
    return bool(PLAIN_TEXT.fullmatch(unquoted)) and all(n in SYMPY or symbols.fullmatch(n) for n in names)
