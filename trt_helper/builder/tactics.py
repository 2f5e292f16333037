"""Exclude tactics: choose replacements from the autotuning tables of a build log. Does not import TensorRT.

TensorRT 10.8 and later cannot exclude a tactic, only force one: an editable timing cache has one tactic per operation,
under a key that is written only to the log. The format is documented in NVIDIA's
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
"""One entry of TRT_EXCLUDE_TACTIC: `layer`, and `tactic` (hash) or `kernel` (name) or both; `config` checks this."""

_OPERATION = re.compile(r"Autotuning op (?P<name>.+)\(key: ?(?P<key>0x[0-9a-fA-F]{32})\):")
_HEADER = "tactic_id, cost(in ms)"
_MYELIN = re.compile(r"_myl\d+_\d+$")
_SELECTED = re.compile(r"The selected tactic is .*:\s*(?P<tactic>0x[0-9a-fA-F]+)\s*,")


@dataclass(frozen=True, slots=True)
class Candidate:
    """One tactic that was timed for an operation: its hash, its kernel's name and its time."""

    tactic: int  # hash
    kernel: str
    milliseconds: float


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation that TensorRT timed tactics for.

    Attributes:
        name: TensorRT's name: one layer, or several that are fused, "conv1 + relu1".
        key: The operation's key in the timing cache of this build.
        candidates: The tactics that were timed.
        selected: Hash of the tactic that TensorRT selected; None if the log does not say.
    """

    name: str
    key: str
    candidates: tuple[Candidate, ...]
    selected: int | None


@dataclass(frozen=True, slots=True)
class Replacement:
    """The tactic to use for an operation instead of an excluded one."""

    operation: Operation
    candidate: Candidate


def read_tables(lines: Iterable[str]) -> tuple[Operation, ...]:
    """Parse every autotuning table of a log, in order. Other lines and malformed rows are skipped."""
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
    """Parse "tactic_id, cost, cost/fastest_cost, prediction_correlation, kernel_name, tactic_hash, parameter"."""
    fields = [field.strip() for field in line.split(",")]
    try:
        milliseconds, kernel, tactic = float(fields[1]), ",".join(fields[4:-2]), int(fields[-2], 16)
    except (ValueError, IndexError):
        return None
    return Candidate(tactic, kernel, milliseconds) if kernel and math.isfinite(milliseconds) else None


def replacements(operations: Sequence[Operation], exclusions: Sequence[Exclusion]) -> tuple[Replacement, ...]:
    """Return the fastest allowed tactic for each operation whose selected tactic is excluded.

    Raises:
        ConfigError: An exclusion names a layer for which no tactics were timed.
        BuildError: All tactics of an operation are excluded.
    """
    require_known(exclusions, [operation.name for operation in operations])
    found = []
    for operation in operations:
        banned = _excluded(operation, exclusions)
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
    """Raise ConfigError for an exclusion whose layer is in none of the operations `names`."""
    for exclusion in exclusions:
        if any(in_operation(exclusion["layer"], name) for name in names):
            continue
        near = nearest(exclusion["layer"], names)
        raise ConfigError(
            f"TRT_EXCLUDE_TACTIC names {exclusion['layer']!r}, for which TensorRT timed no tactics",
            fix=f"did you mean {near!r}?" if near else f"{len(names)} operations were timed; take it out of the list",
        )


def in_operation(layer: str, operation: str) -> bool:
    """Return whether an operation is this layer or fuses it with others: "conv1 + relu1"."""
    return operation == layer or layer in operation.split(" + ")


def without_effect(
    operations: Sequence[Operation], exclusions: Sequence[Exclusion], tensorrt: str, gpu: str
) -> list[str]:
    """Return a warning for each entry that excludes nothing here, because its tactic was not timed.

    Hashes and kernel names belong to one TensorRT version and one GPU. If the entry states another one, the warning
    says so.

    Args:
        operations: The operations of the build log.
        exclusions: The entries of TRT_EXCLUDE_TACTIC.
        tensorrt: Version that builds here.
        gpu: Name of the GPU here.
    """
    warnings = []
    for entry in exclusions:
        ours = [operation for operation in operations if in_operation(entry["layer"], operation.name)]
        if any(_excluded(operation, [entry]) for operation in ours):
            continue
        kernel = entry.get("kernel") or entry.get("tactic")
        elsewhere = [
            f"{there} there, {here} here"
            for there, here in ((entry.get("tensorrt"), tensorrt), (entry.get("gpu"), gpu))
            if there and here and there != here
        ]
        why = f": {'; '.join(elsewhere)}" if elsewhere else ""
        warnings.append(f"TRT_EXCLUDE_TACTIC: {kernel} was not among the tactics timed for {entry['layer']!r}{why}")
    return warnings


def prove_gone(
    layers: Sequence[EngineLayer],
    operations: Sequence[Operation],
    exclusions: Sequence[Exclusion],
    taken: Sequence[Replacement],
) -> list[str]:
    """Check in the finished engine that excluded tactics are gone and that replacements were used.

    Args:
        layers: The engine's layers.
        operations: The operations of the build log.
        exclusions: The entries of TRT_EXCLUDE_TACTIC.
        taken: The replacements that were requested.

    Returns:
        A warning for each operation for which this cannot be proven: the engine has no layer of that name, or an
        excluded tactic has the same kernel name, which is all that an engine states.

    Raises:
        BuildError: The engine has an excluded kernel, or another kernel than the replacement.
    """
    wanted = {one.operation.name: one.candidate.kernel for one in taken}
    unproven = []
    for operation in operations:
        excluded = _excluded(operation, exclusions)
        if not excluded:
            continue
        banned = {one.kernel for one in excluded}
        shared = banned & {one.kernel for one in operation.candidates if one not in excluded}
        used = {layer.tactic for layer in layers if _is_of(layer, operation.name)}
        if not used:
            unproven.append(
                f"TRT_EXCLUDE_TACTIC: the engine names no layer {operation.name!r}, its kernel is not proven"
            )
        elif used & (banned - shared) or (operation.name in wanted and wanted[operation.name] not in used):
            raise BuildError(
                f"TensorRT took {', '.join(sorted(used))} for {operation.name!r}"
                + (f" instead of {wanted[operation.name]}" if operation.name in wanted else ", which is excluded"),
                fix="exclude another tactic in TRT_EXCLUDE_TACTIC, or pin the layer instead",
            )
        elif used & shared and operation.name in wanted:  # otherwise the log states the selected tactic's hash
            unproven.append(
                f"TRT_EXCLUDE_TACTIC: {operation.name!r} took {', '.join(sorted(used & shared))}, and an excluded "
                "tactic has the same kernel: which of the two it was is not proven"
            )
    return unproven


def means(entry: Exclusion, tactic: int, kernel: str) -> bool:
    """Return whether an entry matches this tactic: hash and kernel must match if stated. 0 is a valid hash."""
    if entry.get("tactic") is not None and int(str(entry["tactic"]), 0) != tactic:
        return False
    return not entry.get("kernel") or entry["kernel"] == kernel


def _is_of(layer: EngineLayer, operation: str) -> bool:
    """Return whether the engine layer has the operation's name, with or without Myelin's suffix (matMul1_myl0_0)."""
    return layer.name == operation or _MYELIN.sub("", layer.name) == operation


def _excluded(operation: Operation, exclusions: Sequence[Exclusion]) -> list[Candidate]:
    ours = [entry for entry in exclusions if in_operation(entry["layer"], operation.name)]
    return [one for one in operation.candidates if any(means(entry, one.tactic, one.kernel) for entry in ours)]
