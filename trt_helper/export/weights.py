"""Load a checkpoint's weights into a module.

The state dict is searched at any nesting; of several, the one that fits the module best is used. Prefixes that
wrappers add are removed. It is an error if a tensor of the module is missing or a tensor of the file is unused, unless
that is allowed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trt_helper.errors import ModelError, UsageError, nearest

# Names of entries in the order of preference, if several fit equally well.
USUAL = ("", "state_dict", "model_state_dict", "net_state_dict", "model", "net", "network", "params", "weights", "ema")
WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
COUNTER = "num_batches_tracked"  # of BatchNorm; old files lack it, and evaluation does not use it
SHOWN = 5  # names in a list
State = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Fit:
    """How one state dict fits one module.

    Attributes:
        entry: Place in the file, dotted; empty for the file itself.
        prefix: Prefix that was removed from the file's names.
        state: The file's tensors that the module has too, by the module's names.
        missing: The module's tensors that the file does not have.
        unexpected: The file's tensors that the module does not have, by the file's names.
        shapes: Names of tensors whose shapes differ.
        foreign: The file's tensors without the prefix, by the file's names; they belong to another module.
    """

    entry: str
    prefix: str
    state: State
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    shapes: tuple[str, ...]
    foreign: tuple[str, ...]

    @property
    def matched(self) -> int:
        """Number of tensors that fit by name and shape."""
        return len(self.state) - len(self.shapes)

    @property
    def exact(self) -> bool:
        """Whether nothing is missing, unexpected or of another shape."""
        return not (self.missing or self.unexpected or self.shapes)


def load_weights(
    module: torch.nn.Module, content: Any, path: Path, *, key: str | None = None, allow_missing: bool = False
) -> tuple[Fit, list[str]]:
    """Load the weights in `content` into `module`, in place.

    Args:
        module: The module.
        content: The content of the checkpoint.
        path: The checkpoint, for messages.
        key: The entry that has the weights, dotted; None searches.
        allow_missing: Accept missing and unexpected tensors.

    Returns:
        The state dict that was loaded, and warnings.

    Raises:
        ModelError: There is no state dict, or it does not fit.
        UsageError: There is no entry `key`.
    """
    expected = {**module.state_dict(keep_vars=True)}
    expected = {name: value for name, value in expected.items() if isinstance(value, torch.Tensor)}
    found = [_fit(entry, state, expected) for entry, state in _entries(content, path, key)]
    found.sort(key=lambda fit: (-fit.matched, len(fit.missing) + len(fit.unexpected), _usual(fit.entry)))
    best = found[0]
    if best.shapes or (not best.exact and not allow_missing):
        raise _does_not_fit(best, expected, path)
    if not best.matched and expected:
        raise _does_not_fit(best, expected, path)
    module.load_state_dict(dict(best.state), strict=False)
    return best, _notes(best, found[1:], path)


def _notes(best: Fit, others: list[Fit], path: Path) -> list[str]:
    notes = []
    if best.missing:
        notes.append(
            f"{len(best.missing)} of the module's tensors are not in {path} and stay random: {_some(best.missing)}"
        )
    if best.unexpected:
        notes.append(f"{len(best.unexpected)} tensors of {path} were left out: {_some(best.unexpected)}")
    if best.foreign:
        notes.append(
            f"{len(best.foreign)} tensors outside {best.prefix!r} belong to another module: {_some(best.foreign)}"
        )
    equal = [fit.entry for fit in others if fit.exact and fit.matched == best.matched]
    if equal:
        notes.append(f"weights from {best.entry!r}; {_some(equal)} would fit as well: choose with --key")
    return notes


def _entries(content: Any, path: Path, key: str | None) -> list[tuple[str, State]]:
    """Return every state dict in the file, or the one that `key` names.

    Raises:
        ModelError: There is none.
        UsageError: There is no entry `key`.
    """
    found = dict(_nested(content, ""))
    if key is not None:
        if key not in found:
            raise UsageError(
                f"--key {key!r}: {path} has no weights there",
                fix=f"it has weights in {_some(list(found))}" if found else "it holds no state dict at all",
            )
        return [(key, found[key])]
    if not found:
        raise ModelError(
            f"{path} holds no state dict, but {_described(content)}",
            fix="save model.state_dict() with torch.save",
        )
    return list(found.items())


def _nested(content: Any, entry: str, depth: int = 4) -> Iterator[tuple[str, State]]:
    if isinstance(content, torch.nn.Module):
        yield entry, content.state_dict()
        return
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content) or not depth:
        return
    tensors = {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}
    inner = [name for name, value in content.items() if isinstance(value, (Mapping, torch.nn.Module))]
    if tensors:
        yield entry, tensors
    for name in inner:
        yield from _nested(content[name], f"{entry}.{name}" if entry else name, depth - 1)


def _usual(entry: str) -> int:
    last = entry.rpartition(".")[2]
    return USUAL.index(last) if last in USUAL else len(USUAL)


def _fit(entry: str, state: State, expected: Mapping[str, torch.Tensor]) -> Fit:
    plain = {_unwrapped(name, expected): name for name in state}
    taken, added = _prefix(plain, expected)
    own: dict[str, torch.Tensor] = {}
    unexpected, foreign = [], []
    for name, original in plain.items():
        mine = added + name[len(taken) :]
        if not name.startswith(taken):
            foreign.append(original)
        elif mine in expected:
            own[mine] = state[original]
        else:
            unexpected.append(original)
    missing = tuple(n for n in expected if n not in own and not n.endswith(COUNTER))
    shapes = tuple(n for n, value in own.items() if value.shape != expected[n].shape)
    return Fit(entry, taken, own, missing, tuple(unexpected), shapes, tuple(foreign))


def _unwrapped(name: str, expected: Mapping[str, torch.Tensor]) -> str:
    """Return `name` without the parts that torch.compile and distributed wrappers insert."""
    if name in expected:
        return name
    own = {part for known in expected for part in known.split(".")} & set(WRAPPERS)
    return ".".join(part for part in name.split(".") if part not in WRAPPERS or part in own)


def _prefix(names: Mapping[str, str], expected: Mapping[str, torch.Tensor]) -> tuple[str, str]:
    """Return the prefix to remove from the file's names and the one to add, so that most become the module's names.

    One of the two is empty.
    """

    def heads(keys: Mapping[str, Any]) -> list[str]:
        found = {
            ".".join(key.split(".")[:depth]) + "." for key in keys for depth in range(1, min(4, key.count(".") + 1))
        }
        return ["", *sorted(found, key=lambda head: (len(head), head))]

    def matches(pair: tuple[str, str]) -> int:
        taken, added = pair
        return sum(name.startswith(taken) and added + name[len(taken) :] in expected for name in names)

    pairs = [(head, "") for head in heads(names)] + [("", head) for head in heads(expected)]
    return max(pairs, key=matches)


def _does_not_fit(fit: Fit, expected: Mapping[str, torch.Tensor], path: Path) -> ModelError:
    where = f"{path}, entry {fit.entry!r}," if fit.entry else f"{path}"
    if fit.shapes:
        shown = _some(
            [f"{n} {_size(fit.state[n])} in the file, {_size(expected[n])} in the module" for n in fit.shapes]
        )
        return ModelError(
            f"{where} has {len(fit.shapes)} tensors of another shape: {shown}",
            fix="build the module as it was trained: --model-arg NAME=VALUE gives its constructor's arguments",
        )
    said = []
    if fit.missing:
        said.append(f"lacks {len(fit.missing)} of the module's {len(expected)} tensors: {_some(fit.missing)}")
    if fit.unexpected:
        said.append(f"has {len(fit.unexpected)} that the module lacks: {_some(fit.unexpected)}")
    return ModelError(f"{where} {' and '.join(said)}", fix=_try(fit))


def _try(fit: Fit) -> str:
    near = nearest(fit.missing[0], fit.unexpected) if fit.missing and fit.unexpected else None
    likely = f"is {fit.missing[0]!r} called {near!r} in the file? " if near else ""
    if not fit.matched:
        return likely + "nothing fits: name the right module with --model, or the right entry with --key"
    if not fit.missing:
        return "build the module as it was trained (--model-arg), or leave them out with --allow-missing"
    return likely + "build the module as it was trained (--model-arg); --allow-missing leaves what is missing random"


def _some(names: Any) -> str:
    shown = ", ".join(str(name) or "the file itself" for name in list(names)[:SHOWN])
    return shown + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _size(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"


def _described(content: Any) -> str:
    if isinstance(content, Mapping):
        return f"a dictionary of {_some(list(content))}" if content else "an empty dictionary"
    return f"a {type(content).__name__}"
