"""Refuse programs that would do more than compute tensors, before PyTorch loads them.

Loading a `torch.export` program evaluates text from the file: sizes as sympy expressions, operators by their dotted
names, and in old files pickles. Loading a TorchScript file compiles its code and runs `__setstate__` of it; exporting
either runs its operators. Some of PyTorch's operators read and write files (`aten::save`, `aten::from_file`). So only
what torch.export and torch.jit write for computations on tensors is let through; everything else is refused by name.
"""

from __future__ import annotations

import ast
import json
import re
import zipfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from trt_helper.errors import ModelError
from trt_helper.export.archive import AGAIN, TRUST

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
# Namespaces of operators that compute. Others communicate, profile, or belong to a compiler.
COMPUTING = frozenset({"aten", "prim", "prims", "quantized", "_quantized", "mkldnn_prepacked", "sparse"})
# Types and names of arguments of operators that reach beyond tensors: files, memory of others, other machines.
BEYOND_TENSORS = re.compile(r"Storage|Stream|RRef|Future|Await|str\b.* \w*(file|path)")
HIGHER_ORDER = frozenset({"cond", "while_loop", "scan", "map_impl", "wrap_with_set_grad_enabled", "wrap_with_autocast"})
# What TorchScript's compiler has besides operators (torch/jit/_builtins.py, script/module.cpp, python_sugared_value).
BUILTINS = frozenset(
    {
        *("annotate", "uninitialized", "unchecked_cast", "getattr", "hasattr", "isinstance", "tuple", "list", "dict"),
        *("len", "range", "zip", "enumerate", "print", "int", "float", "bool", "complex", "str", "min", "max", "abs"),
        *("ord", "chr", "hex", "oct", "bin", "round", "pow", "divmod", "sum", "all", "any", "sorted", "slice"),
        *("AssertionError", "Exception", "ValueError", "RuntimeError", "NotImplementedError", "IndexError", "KeyError"),
        *("TypeError", "Error", "device", "super", "__new__", "object", "iter", "rangelist", "inferTupleAttr"),
    }
)
BOUND_CLASSES = frozenset({b"quantized", b"rnn", b"sparse"})  # C++ classes that hold weights
LARGEST_MEMBER = 1 << 24  # bytes of a file of code; a network of thousands of layers has less than 2 MiB


def require_plain_script(path: Path) -> None:
    """Check that the code of a TorchScript file calls only its own functions and operators that compute tensors.

    PyTorch's reader finds members of the archive whatever the case of their letters, so this does, too.

    Raises:
        ModelError: It calls something else, or its code cannot be read.
    """
    with zipfile.ZipFile(path) as archive:
        _require_distinct(path, archive)
        for info in archive.infolist():
            if info.filename.lower().endswith(".pkl"):
                # A pickle names a class by a module and a name, on two lines that may part it anywhere.
                found = re.findall(rb"torch[.\n]classes[.\n](\w+)", _member(path, archive, info))
                _require_plain_classes(path, found)
        trees = [_code(path, archive, info) for info in archive.infolist() if info.filename.lower().endswith(".py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    own = {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    own |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    if sum(isinstance(node, ast.Name) and node.id == "ops" for node in nodes) > sum(bool(_named(n)[1]) for n in nodes):
        raise _refused(path, "it hides which operators it names behind another name for 'ops'")
    for node in nodes:
        name, namespace = _named(node)
        # Also where it is not called: a variable can hold a function. An own function of this name excuses nothing.
        if name and (_reaches_out(name) or (namespace and not computes(name, namespace))):
            raise _refused(path, f"it names {name!r:.80}, which does more than compute tensors")
        if isinstance(node, ast.Attribute) and _named(node.value)[0] == "classes":
            _require_plain_classes(path, [node.attr.encode()])
        if isinstance(node, ast.Call):
            called, _ = _named(node.func)
            if not (called in own or called in BUILTINS or computes(called)):
                raise _refused(path, f"it calls {called or ast.unparse(node.func)!r:.80}, which is no operator")


def computes(name: str, namespace: str = "") -> bool:
    """Whether PyTorch's operators of this name only compute tensors and numbers.

    Args:
        name: The operator without its overload.
        namespace: Its namespace; empty for any that computes.
    """
    if namespace:
        return _operators().get(f"{namespace}::{name}", False)
    return any(computes(name, one) for one in COMPUTING)


def _reaches_out(name: str) -> bool:
    """Whether TorchScript finds an operator by this name alone that does more than compute."""
    return any(not _operators().get(f"{namespace}::{name}", True) for namespace in ("aten", "prim"))


@cache
def _operators() -> dict[str, bool]:
    """The operators of this PyTorch, and whether they only compute: no overload has an argument of another kind."""
    found: dict[str, bool] = {}
    for schema in torch._C._jit_get_all_schemas():  # the only list of them
        texts = [f"{argument.type} {argument.name}" for argument in (*schema.arguments, *schema.returns)]
        harmless = schema.name.partition("::")[0] in COMPUTING and not any(map(BEYOND_TENSORS.search, texts))
        found[schema.name] = harmless and found.get(schema.name, True)
    return found


def _require_plain_classes(path: Path, namespaces: Sequence[bytes]) -> None:
    for namespace in namespaces:
        if namespace not in BOUND_CLASSES:
            raise _refused(path, f"it has an object of torch.classes.{namespace.decode('ascii', 'replace'):.80}")


def _member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    if info.file_size > LARGEST_MEMBER:
        raise _refused(path, f"{info.filename!r:.80} is {info.file_size} bytes of code")
    try:
        return archive.read(info)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ModelError(f"{path}: {info.filename!r:.80} is damaged", fix=AGAIN) from error


def _code(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> ast.Module:
    try:
        return ast.parse(_member(path, archive, info).decode())
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ModelError(f"{path}: {info.filename!r:.80} is damaged", fix=AGAIN) from error


def _named(node: ast.AST) -> tuple[str, str]:
    """The function or attribute that an expression names, and the namespace of `ops.NAMESPACE.NAME`; else empty."""
    if isinstance(node, ast.Name):
        return node.id, ""
    if isinstance(node, ast.Attribute):
        owner = node.value
        if isinstance(owner, ast.Attribute) and isinstance(owner.value, ast.Name) and owner.value.id == "ops":
            return node.attr, owner.attr
        return node.attr, ""
    if isinstance(node, ast.Call) and _named(node.func)[0] == "getattr" and node.args:
        name = node.args[-1]
        return (name.value, "") if isinstance(name, ast.Constant) and isinstance(name.value, str) else ("", "")
    return "", ""


def _require_distinct(path: Path, archive: zipfile.ZipFile) -> None:
    """Refuse two members of one name: two readers may take different ones. PyTorch's ignores the case of letters."""
    names = [name.lower() for name in archive.namelist()]
    if len(set(names)) < len(names):
        raise _refused(path, "it holds two files of one name")


def require_plain_program(path: Path) -> None:
    """Check that a `torch.export` program contains only what torch.export writes.

    Raises:
        ModelError: The program could run other code when it is loaded.
    """
    with zipfile.ZipFile(path) as archive:
        _require_distinct(path, archive)
        for name in archive.namelist():
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
                if key == "target" and not _is_operator(text):
                    raise _refused(path, f"it calls {text!r:.80}, which is no operator")


def _is_operator(target: str) -> bool:
    if not TARGET.fullmatch(target):
        return False
    torch_operator = re.fullmatch(r"torch\.ops\.(\w+)\.(\w+)(\.\w+)?", target)
    if torch_operator is None:
        return True
    namespace, name = torch_operator[1], torch_operator[2]
    return computes(name, namespace) or (namespace == "higher_order" and name in HIGHER_ORDER)


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
