"""Run the user's code in our process: its imports work, stdout stays ours, and the network is blocked.

Every exception of the user's code becomes a ModelError that shows only the user's frames.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import os
import socket
import sys
import traceback
from collections.abc import Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

from trt_helper.errors import ModelError, TrtHelperError, UsageError, nearest

OURS = Path(__file__).resolve().parents[1]
LIBRARIES = ("torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "numpy", "sympy", "safetensors")
WHERE = "--model is FILE.py:CALLABLE or PACKAGE.MODULE:CALLABLE"


@contextlib.contextmanager
def user_code(what: str, *, fix: str) -> Iterator[None]:
    """Run the user's code in the block.

    Args:
        what: What is run, as the subject of the error message.
        fix: What the user can do about an error.

    Raises:
        ModelError: The code raised an exception or called sys.exit.
    """
    try:
        with stdout_to(), _no_network():
            yield
    except (TrtHelperError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        raise ModelError(f"{what} {_raised(error)}", fix=fix) from error


@contextlib.contextmanager
def stdout_to(place: str | None = None) -> Iterator[None]:
    """Redirect the block's stdout to the file `place`, or to stderr if it is None.

    File descriptor 1 is redirected too, for C code and child processes.
    """
    target = 2 if place is None else os.open(place, os.O_WRONLY)
    try:
        kept = os.dup(1)
        os.dup2(target, 1)
    except OSError:  # no stdout at all
        kept = -1
    try:
        with contextlib.ExitStack() as stack:
            stream = sys.stderr if place is None else stack.enter_context(Path(place).open("w", encoding="utf-8"))
            with contextlib.redirect_stdout(stream):
                yield
    finally:
        if kept >= 0:
            os.dup2(kept, 1)
            os.close(kept)
        if place is not None:
            os.close(target)


class _NoNetworkError(Exception):
    """The user's code tried to open a connection."""


@contextlib.contextmanager
def _no_network() -> Iterator[None]:
    def refuse(*_: object, **__: object) -> None:
        raise _NoNetworkError("no network here: the weights come from the checkpoint (pretrained=False?)")

    sockets = mock.patch.multiple(socket.socket, connect=refuse, connect_ex=refuse)
    with sockets, mock.patch.object(socket, "getaddrinfo", refuse):
        yield


def _raised(error: BaseException) -> str:
    """Return `raises KeyError: 'x' (net.py, line 12, in build; blocks.py, line 3, in __init__)`."""
    lines = str(error).strip().splitlines()
    if lines and "TorchScript interpreter" in lines[0]:
        return f"raises {lines[-1].removeprefix('builtins.').removeprefix('RuntimeError: ')}"  # the module's own words
    said = f": {lines[0]}" if lines else ""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(frame.filename)]
    if isinstance(error, SyntaxError) and error.filename:
        return f"is not Python: {error.msg} ({Path(error.filename).name}, line {error.lineno})"
    where = "; ".join(f"{Path(f.filename).name}, line {f.lineno}, in {f.name}" for f in frames[-6:])
    kind = "calls sys.exit" if isinstance(error, SystemExit) else f"raises {type(error).__name__.lstrip('_')}"
    return f"{kind}{said}{f' ({where})' if where else ''}"


def _imports_relatively(file: Path) -> bool:
    """Whether a file says `from .other import name`, which only works in a package."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):
        return False
    return any(isinstance(node, ast.ImportFrom) and node.level for node in ast.walk(tree))


def _is_users(file: str) -> bool:
    if file.startswith("<") or Path(file).is_relative_to(OURS) or file in (contextlib.__file__, mock.__file__):
        return False
    return not _is_of_a_library(file)


def _is_of_a_library(file: str) -> bool:
    """Whether code in `file` belongs to a library that is between the user's code and ours."""
    files = (getattr(sys.modules.get(name), "__file__", None) for name in LIBRARIES)
    folders = [str(Path(path).parent) + os.sep for path in files if path]
    return _is_importlib(file) or any(file.startswith(folder) for folder in folders)


def _is_importlib(file: str) -> bool:
    return file.startswith(("<frozen importlib", str(Path(importlib.__file__).parent) + os.sep))


@contextlib.contextmanager
def importable(text: str | None, *, by_libraries: bool = False) -> Iterator[None]:
    """Make the user's modules importable in the block, behind all that is installed.

    Args:
        text: FILE_OR_MODULE:CALLABLE, or None for nothing. For a FILE, its folder and the folder above its packages
            are importable; for a MODULE, the working folder.
        by_libraries: Whether PyTorch and its libraries may import them, too, as a pickled module needs it. They try
            imports of packages that are not installed; a stranger's file of such a name must not run.
    """
    if text is None:
        yield
        return
    file = _file_of(text)
    folders = [str(_root_and_name(file)[0]), str(file.resolve().parent)] if file else [str(Path.cwd())]
    finder = _UsersModules(folders, by_libraries)
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _UsersModules(MetaPathFinder):
    """Finds modules in the user's folders for the user's code. It is asked last, for what nobody else has found."""

    def __init__(self, folders: Sequence[str], by_libraries: bool) -> None:
        self._folders = folders
        self._by_libraries = by_libraries

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if path is not None or not (self._by_libraries or self._is_for_the_user()):
            return None
        return PathFinder.find_spec(name, self._folders, target)

    @staticmethod
    def _is_for_the_user() -> bool:
        frame = sys._getframe(2)
        while frame.f_back and _is_importlib(frame.f_code.co_filename):
            frame = frame.f_back
        return not _is_of_a_library(frame.f_code.co_filename)


def load_callable(text: str) -> Any:
    """Return the object that `FILE_OR_MODULE:CALLABLE` names; call it within `importable(text)`.

    Raises:
        UsageError: The text is malformed or the file does not exist.
        ModelError: The import failed, or the module has no such name.
    """
    where, colon, name = text.rpartition(":")
    if not (where and colon and name):
        raise UsageError(f"--model {text!r} names no callable", fix=WHERE)
    file = _file_of(text)
    if file is None and (where.endswith(".py") or os.sep in where):
        raise UsageError(f"--model: {where} does not exist", fix=WHERE)
    fix = "mend the file: it is imported to define the network, and needs what it imports"
    if file is not None and file.resolve().parent.name.isidentifier() and _imports_relatively(file):
        called = f"{file.resolve().parent.name}.{file.stem}:{name}"
        fix = f"it is a part of a package: from the folder above it, --model {called} (an __init__.py makes a package)"
    with user_code(f"{where}", fix=fix):
        module = _import_file(file) if file else importlib.import_module(where)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            near = nearest(part, [key for key in vars(found) if not key.startswith("_")])
            raise ModelError(
                f"{where} has no {name!r}",
                fix=f"did you mean {near!r}?" if near else "name a class or function in it that gives the module",
            )
        found = getattr(found, part)
    return found


def _file_of(text: str) -> Path | None:
    where = Path(text.rpartition(":")[0])
    return where if where.suffix == ".py" and where.is_file() else None


def _root_and_name(file: Path) -> tuple[Path, str]:
    """Return the folder above the outermost package of `file`, and the dotted module name from there."""
    folder, names = file.resolve().parent, [file.stem]
    while (folder / "__init__.py").is_file():
        names.insert(0, folder.name)
        folder = folder.parent
    return folder, ".".join(names)


def _import_file(file: Path) -> ModuleType:
    """Import `file` under its own module name, which its pickles and other modules use.

    Underscores are appended if another module has that name.
    """
    name = _root_and_name(file)[1]
    if "." in name:
        return importlib.import_module(name)
    while (known := sys.modules.get(name)) is not None:
        if getattr(known, "__file__", None) and Path(str(known.__file__)).resolve() == file.resolve():
            break
        name += "_"
    spec = importlib.util.spec_from_file_location(name, file.resolve())
    if spec is None or spec.loader is None:
        raise ModelError(f"{file} cannot be imported", fix=WHERE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
