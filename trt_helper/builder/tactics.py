"""The build log's autotuning tables and the excluded tactics go in, what to use instead comes out. No TensorRT import.

TensorRT 10.8 and later cannot be told to leave a tactic out, only which one to take: an editable timing cache holds one
tactic for each operation, under a key that is written to the log alone. The format is that of NVIDIA's
`samples/sampleEditableTimingCache/README.md` (TensorRT 11.1).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from trt_helper.builder.layer_info import EngineLayer
from trt_helper.errors import BuildError, ConfigError, nearest

Exclusion = Mapping[str, str]
"""One entry of TRT_EXCLUDE_TACTIC: `layer`, and a `tactic` (hash) or a `kernel` (name), or both, as `config` checks."""

_OPERATION = re.compile(r"Autotuning op (?P<name>.+)\(key: ?(?P<key>0x[0-9a-fA-F]{32})\):")
_HEADER = "tactic_id, cost(in ms)"
_MYELIN = re.compile(r"_myl\d+_\d+$")
_SELECTED = re.compile(r"The selected tactic is .*:\s*(?P<tactic>0x[0-9a-fA-F]+)\s*,")


@dataclass(frozen=True, slots=True)
class Candidate:
    """One kernel that was timed for an operation."""

    tactic: int
    kernel: str
    milliseconds: float


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation that TensorRT timed kernels for; `key` is its key in the timing cache of this build."""

    name: str
    key: str
    candidates: tuple[Candidate, ...]
    selected: int | None


@dataclass(frozen=True, slots=True)
class Replacement:
    """What to take for an operation instead of what is excluded."""

    operation: Operation
    candidate: Candidate


def read_tables(lines: Iterable[str]) -> tuple[Operation, ...]:
    """Read every autotuning table of a log, in its order. Other lines and rows that make no sense are passed over."""
    found: list[Operation] = []
    name, key, rows, selected = "", "", list[Candidate](), None
    for line in (part for text in lines for part in text.splitlines()):
        if start := _OPERATION.search(line):
            if name:
                found.append(Operation(name, key, tuple(rows), selected))
            name, key, rows, selected = start["name"].strip(), start["key"], [], None
        elif name and (chosen := _SELECTED.search(line)):
            selected = int(chosen["tactic"], 16)
        elif name and _HEADER not in line and (row := _row(line)):
            rows.append(row)
    if name:
        found.append(Operation(name, key, tuple(rows), selected))
    return tuple(found)


def _row(line: str) -> Candidate | None:
    """Read "tactic_id, cost, cost/fastest_cost, prediction_correlation, kernel_name, tactic_hash, parameter"."""
    fields = [field.strip() for field in line.split(",")]
    try:
        milliseconds, kernel, tactic = float(fields[1]), ",".join(fields[4:-2]), int(fields[-2], 16)
    except (ValueError, IndexError):
        return None
    return Candidate(tactic, kernel, milliseconds) if kernel and math.isfinite(milliseconds) else None


def replacements(operations: Sequence[Operation], exclusions: Sequence[Exclusion]) -> tuple[Replacement, ...]:
    """For each operation whose chosen kernel is excluded, the fastest that is not.

    Raises ConfigError for a layer that was not timed, BuildError where nothing is left to take.
    """
    require_known(exclusions, [operation.name for operation in operations])
    found = []
    for operation in operations:
        banned = _banned(operation, exclusions)
        if not banned or operation.selected not in {None, *(one.tactic for one in banned)}:
            continue
        left = [one for one in operation.candidates if one not in banned]
        if not left:
            raise BuildError(
                f"every tactic of {operation.name!r} is excluded: {len(operation.candidates)} were timed",
                fix="exclude fewer of them in TRT_EXCLUDE_TACTIC, or pin the layer instead",
            )
        found.append(Replacement(operation, min(left, key=lambda one: one.milliseconds)))
    return tuple(found)


def require_known(exclusions: Sequence[Exclusion], names: Sequence[str]) -> None:
    """Raise ConfigError for a layer that is in none of the operations `names`."""
    for exclusion in exclusions:
        if any(in_operation(exclusion["layer"], name) for name in names):
            continue
        near = nearest(exclusion["layer"], names)
        raise ConfigError(
            f"TRT_EXCLUDE_TACTIC names {exclusion['layer']!r}, for which TensorRT timed no tactics",
            fix=f"did you mean {near!r}?" if near else f"{len(names)} operations were timed; take it out of the list",
        )


def in_operation(layer: str, operation: str) -> bool:
    """Whether an operation is this layer, or has it among those it fuses: "conv1 + relu1"."""
    return operation == layer or layer in operation.split(" + ")


def without_effect(
    operations: Sequence[Operation], exclusions: Sequence[Exclusion], tensorrt: str, gpu: str
) -> list[str]:
    """What to tell of entries that exclude nothing here: their kernel was not among those that were timed.

    A tactic's hash and its kernel's name are those of one TensorRT on one GPU, so where the entry says that it was
    found with another one, that is named.
    """
    told = []
    for entry in exclusions:
        ours = [operation for operation in operations if in_operation(entry["layer"], operation.name)]
        if any(_banned(operation, [entry]) for operation in ours):
            continue
        kernel = entry.get("kernel") or entry.get("tactic")
        elsewhere = [
            f"{there} there, {here} here"
            for there, here in ((entry.get("tensorrt"), tensorrt), (entry.get("gpu"), gpu))
            if there and here and there != here
        ]
        why = f": {'; '.join(elsewhere)}" if elsewhere else ""
        told.append(f"TRT_EXCLUDE_TACTIC: {kernel} was not among the tactics timed for {entry['layer']!r}{why}")
    return told


def prove_gone(
    layers: Sequence[EngineLayer],
    operations: Sequence[Operation],
    exclusions: Sequence[Exclusion],
    taken: Sequence[Replacement],
) -> list[str]:
    """Look in the finished engine that no excluded kernel is left and that the wanted ones were taken.

    Returns for which operations that cannot be seen: the engine has no layer of that name, or the kernel's name, all
    that an engine shows, is also that of an excluded tactic. Raises BuildError where an excluded kernel stayed or
    another one than the wanted came.
    """
    wanted = {one.operation.name: one.candidate.kernel for one in taken}
    unseen = []
    for operation in operations:
        excluded = _banned(operation, exclusions)
        if not excluded:
            continue
        banned = {one.kernel for one in excluded}
        shared = banned & {one.kernel for one in operation.candidates if one not in excluded}
        used = {layer.tactic for layer in layers if _is_of(layer, operation.name)}
        if not used:
            unseen.append(f"TRT_EXCLUDE_TACTIC: the engine names no layer {operation.name!r}, its kernel is not proven")
        elif used & (banned - shared) or (operation.name in wanted and wanted[operation.name] not in used):
            raise BuildError(
                f"TensorRT took {', '.join(sorted(used))} for {operation.name!r}"
                + (f" instead of {wanted[operation.name]}" if operation.name in wanted else ", which is excluded"),
                fix="exclude another tactic in TRT_EXCLUDE_TACTIC, or pin the layer instead",
            )
        elif used & shared and operation.name in wanted:  # else the log says by its hash what was selected
            unseen.append(
                f"TRT_EXCLUDE_TACTIC: {operation.name!r} took {', '.join(sorted(used & shared))}, and an excluded "
                "tactic has the same kernel: which of the two it was is not proven"
            )
    return unseen


def means(entry: Exclusion, tactic: int, kernel: str) -> bool:
    """Whether an entry means this tactic: all that it says must agree. A hash of 0 is one like any other."""
    if entry.get("tactic") is not None and int(str(entry["tactic"]), 0) != tactic:
        return False
    return not entry.get("kernel") or entry["kernel"] == kernel


def _is_of(layer: EngineLayer, operation: str) -> bool:
    """The engine's layer has the operation's name, or that with Myelin's ending: matMul1 is in matMul1_myl0_0."""
    return layer.name == operation or _MYELIN.sub("", layer.name) == operation


def _banned(operation: Operation, exclusions: Sequence[Exclusion]) -> list[Candidate]:
    ours = [entry for entry in exclusions if in_operation(entry["layer"], operation.name)]
    return [one for one in operation.candidates if any(means(entry, one.tactic, one.kernel) for entry in ours)]
