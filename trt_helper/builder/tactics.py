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

from trt_helper.errors import BuildError, ConfigError, nearest

Exclusion = Mapping[str, str]
"""One entry of TRT_EXCLUDE_TACTIC: `layer`, and a `tactic` (hash) or a `kernel` (name), or both."""

_OPERATION = re.compile(r"Autotuning op (?P<name>.+)\(key: ?(?P<key>0x[0-9a-fA-F]{32})\):")
_HEADER = "tactic_id, cost(in ms)"
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
    for exclusion in exclusions:
        _require_known(exclusion, operations)
    found = []
    for operation in operations:
        ours = [exclusion for exclusion in exclusions if _names(operation.name, exclusion["layer"])]
        banned = {one.tactic for one in operation.candidates if any(is_excluded(one, entry) for entry in ours)}
        if not banned or (operation.selected is not None and operation.selected not in banned):
            continue
        left = [one for one in operation.candidates if one.tactic not in banned]
        if not left:
            raise BuildError(
                f"every tactic of {operation.name!r} is excluded: {len(operation.candidates)} were timed",
                fix="exclude fewer of them in TRT_EXCLUDE_TACTIC, or pin the layer instead",
            )
        found.append(Replacement(operation, min(left, key=lambda one: one.milliseconds)))
    return tuple(found)


def is_excluded(candidate: Candidate, exclusion: Exclusion) -> bool:
    """Whether an entry means this kernel: all that it says of it must agree."""
    tactic, kernel = exclusion.get("tactic"), exclusion.get("kernel")
    said = [int(str(tactic), 0) == candidate.tactic] if tactic else []
    return all([*said, kernel == candidate.kernel] if kernel else said) and bool(tactic or kernel)


def _names(operation: str, layer: str) -> bool:
    """An operation is a layer by itself, or several fused: "conv1 + relu1"."""
    return operation == layer or layer in operation.split(" + ")


def _require_known(exclusion: Exclusion, operations: Sequence[Operation]) -> None:
    if any(_names(operation.name, exclusion["layer"]) for operation in operations):
        return
    names = [operation.name for operation in operations]
    near = nearest(exclusion["layer"], names)
    raise ConfigError(
        f"TRT_EXCLUDE_TACTIC names {exclusion['layer']!r}, for which TensorRT timed no tactics",
        fix=f"did you mean {near!r}?" if near else f"{len(names)} operations were timed; take it out of the list",
    )
