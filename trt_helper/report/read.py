"""Read and check run records, the proofs of engines and the results of `bench`.

All other code of the report relies on these checks: keys are there and have the right type.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import fastjsonschema

from trt_helper.errors import InputError
from trt_helper.values import Statistic, TensorError, Tolerance

SCHEMA = 1
FIGURES = {  # field of TensorError: key in a record
    **{key: key for key in ("max", "mean", "median", "max_rel", "mean_rel", "median_rel")},
    "reference_max": "spread",
}
AGAIN = "give the file that `trt-helper locate` wrote beside the plan, or write it again"
Json = dict[str, Any]


def schema() -> Json:
    """The published JSON schema (draft 7) of the run record."""
    text = files("trt_helper").joinpath(f"schemas/run-{SCHEMA}.schema.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


@cache
def _validator() -> Any:
    return fastjsonschema.compile(schema())


def read_record(path: Path) -> Json:
    """The run record in the file `path`.

    Raises:
        InputError: The file cannot be read, or is no run record of this schema.
    """
    record = _read_object(path)
    found = record.get("schema")
    if isinstance(found, int) and found > SCHEMA:
        raise InputError(
            f"{path} has schema {found:.6g}, this trt-helper knows {SCHEMA}", fix="use the trt-helper that wrote it"
        )
    if record.get("command") == "gate":
        raise InputError(f"{path} is what gate said", fix="gate has its own summary: --summary FILE.md; " + AGAIN)
    try:
        _validator()(record)
    except fastjsonschema.JsonSchemaException as error:
        raise InputError(f"{path} is no run record: {_first(str(error))}", fix=AGAIN) from error
    return record


def find_engine(record: Mapping[str, Any], near: Path) -> Path | None:
    """The first proof (`*.trt.json`) of an engine of this model and plan in the folder of the file `near`, or None."""
    return _find(near, "*.trt.json", lambda path: read_engine(path, record))


def find_bench(record: Mapping[str, Any], near: Path) -> Path | None:
    """The first result of `bench` (`*.bench.json`) of this model and plan in the folder of the file `near`, or None."""
    return _find(near, "*.bench.json", lambda path: read_bench(path, record))


def _find(near: Path, names: str, read: Callable[[Path], Json]) -> Path | None:
    for path in sorted(near.absolute().parent.glob(names)):
        with contextlib.suppress(InputError):
            read(path)
            return path
    return None


def read_engine(path: Path, record: Mapping[str, Any]) -> Json:
    """The proof in `path`, which `convert` wrote beside an engine.

    Args:
        path: Of the `.trt.json` file.
        record: The run record that the engine must belong to: same model, same plan, except for pins that convert
            added.

    Raises:
        InputError: The file is no proof, or of another model or plan.
    """
    proof = _read_object(path)
    try:
        _proof_validator()(proof)
    except fastjsonschema.JsonSchemaException as error:
        raise InputError(
            f"{path} is no proof of an engine: {_first(str(error))}", fix="give the ENGINE.trt.json of convert"
        ) from error
    if not _belongs(proof, record):
        raise InputError(f"{path} belongs to another model or plan", fix="convert this plan, or leave --engine away")
    return proof


def _belongs(found: Mapping[str, Any], record: Mapping[str, Any]) -> bool:
    """Whether `found` is of this record's model and plan, except for pins that convert added."""
    pins, built = set(record["fp32_layers"]), set(found["fp32_layers"])
    same_plan = pins <= built and built - set(found.get("added", {})) <= pins
    return same_plan and bool(found["model"]["sha256"] == record["model"]["sha256"])


def read_bench(path: Path, record: Mapping[str, Any]) -> Json:
    """The result of `bench --json` in `path`.

    Args:
        path: Of the file.
        record: The run record that it must belong to: same model and plan.

    Raises:
        InputError: The file is no result of bench, or of another model or plan.
    """
    bench = _read_object(path)
    try:
        _bench_validator()(bench)
    except fastjsonschema.JsonSchemaException as error:
        raise InputError(
            f"{path} is not what bench says: {_first(str(error))}",
            fix="write it again: trt-helper bench -c FILE.yaml --json > FILE.bench.json",
        ) from error
    if not _belongs(bench, record):
        raise InputError(
            f"{path} belongs to another model or plan", fix="bench this plan: trt-helper bench -c FILE.yaml --json"
        )
    return bench


@cache
def _bench_validator() -> Any:
    text, texts = {"type": "string"}, {"type": "array", "items": {"type": "string"}}
    times = ("median", "p90", "p99", "samples_per_second")
    rows = {
        "measured": ("what", "batch", *times, "streams", "at_once", "runs", "host_bytes", "device_bytes"),
        "not_run": ("what", "why", "how"),
        "estimated": ("gpu", "batch", "fp32", "fp16", "plan"),
    }
    kinds: Json = dict.fromkeys(("what", "why", "how", "gpu"), text)
    kinds |= {key: {"type": ["integer", "null"], "minimum": 0} for key in ("batch", "host_bytes", "device_bytes")}
    kinds |= {key: {"type": "integer", "minimum": 0} for key in ("streams", "at_once", "runs")}
    tables = {
        name: {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {key: kinds.get(key, {"type": "number", "minimum": 0}) for key in keys},
                "required": list(keys),
            },
        }
        for name, keys in rows.items()
    }
    keys: Json = {
        "model": {"type": "object", "properties": {"sha256": text}, "required": ["sha256"]},
        "fp32_layers": texts,
        "added": texts,
        "platform": text,
        **tables,
    }
    return fastjsonschema.compile({"type": "object", "properties": keys, "required": list(keys)})


@cache
def _proof_validator() -> Any:
    """Checks the keys of an engine's proof that the report shows."""
    text, texts = {"type": "string"}, {"type": "array", "items": {"type": "string"}}
    pin: Json = {"layer": text, "state": text, "evidence": text}
    pin |= dict.fromkeys(("engine_layers", "inputs", "weights", "outputs"), texts)
    keys = {
        "engine": {
            "type": "object",
            "properties": {"file": text, "builder": text, "sha256": text, "bytes": {"type": "integer"}},
            "required": ["file", "builder", "sha256", "bytes"],
        },
        "model": {"type": "object", "properties": {"sha256": text}, "required": ["sha256"]},
        "fp32_layers": texts,
        "half_share": {"type": "number", "minimum": 0, "maximum": 1},
        "pins": {"type": "array", "items": {"type": "object", "properties": pin, "required": list(pin)}},
        "warnings": texts,
        "added": {"type": "object", "additionalProperties": text},
    }
    return fastjsonschema.compile(
        {"type": "object", "properties": keys, "required": [key for key in keys if key != "added"]}
    )


def _read_object(path: Path) -> Json:
    """The JSON object in a file. NaN and Infinity are refused: they are no JSON."""
    try:
        data = json.loads(path.read_bytes(), parse_constant=_refuse, object_pairs_hook=dict)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}", fix=AGAIN) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {_first(str(error) or type(error).__name__)}", fix=AGAIN) from error
    if not isinstance(data, dict):
        raise InputError(f"{path} holds no JSON object", fix=AGAIN)
    return data


def _refuse(word: str) -> float:
    raise ValueError(f"{word} is no number")


def _first(text: str) -> str:
    return " ".join(text.split())[:200]


def tolerance_of(record: Mapping[str, Any]) -> Tolerance:
    """The tolerance in a run record."""
    found = record["tolerance"]
    own = {name: (pair["atol"], pair["rtol"]) for name, pair in found.get("per-output", {}).items()}
    return Tolerance(found["atol"], found["rtol"], Statistic(found["check-error-stat"]), own)


def errors_of(outputs: Mapping[str, Mapping[str, Any]]) -> Iterator[TensorError]:
    """The errors in a run record, from a mapping by output name. A null becomes inf: the figure was not finite."""
    for name, found in outputs.items():
        figures = {field: float("inf") if found[key] is None else float(found[key]) for field, key in FIGURES.items()}
        yield TensorError(
            name=name,
            worst=tuple(found["worst"]),
            outside=found["outside"],
            non_finite=found["non_finite"],
            total=found["elements"],
            resized=str(found.get("resized", "")),
            **figures,
        )
