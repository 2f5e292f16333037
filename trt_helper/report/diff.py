"""Compute the differences between two run records, A and B."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trt_helper.report.read import errors_of, tolerance_of
from trt_helper.report.story import after, sources
from trt_helper.values import TensorError, Tolerance

SCHEMA = 1
Record = Mapping[str, Any]
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Fact:
    """One fact with its values in A and in B. None means that the record does not have it."""

    what: str  # the name of the fact, as the table shows it
    a: Any
    b: Any


@dataclass(frozen=True, slots=True)
class Pin:
    """One layer that the plan of A or B keeps out of FP16. Every pair is (A, B)."""

    name: str
    precision: tuple[str, str]  # fp32 or bf16; fp16 if it is no pin; empty if the model has no such layer
    cause: tuple[str | None, str | None]  # None if the record does not have it
    without: tuple[float | None, float | None]  # error ratio without this pin; None if that was not tried

    @property
    def change(self) -> str:
        """What changed from A to B: kept, changed (another precision), added or removed."""
        before, after_ = (precision in ("fp32", "bf16") for precision in self.precision)
        if before and after_:
            return "kept" if self.precision[0] == self.precision[1] else "changed"
        return "added" if after_ else "removed"


@dataclass(frozen=True, slots=True)
class Output:
    """The errors of one output, worst sample. Every pair is (A, B), None if the record does not have the output."""

    name: str
    fp16: tuple[TensorError | None, TensorError | None]  # with every layer in FP16
    plan: tuple[TensorError | None, TensorError | None]  # with the plan


@dataclass(frozen=True, slots=True)
class Difference:
    """The differences between run A and run B. The date and the seconds always differ and are left out."""

    verdict: str  # of B
    tolerances: tuple[Tolerance, Tolerance]  # of A and of B
    facts: tuple[Fact, ...]  # that differ: settings, versions, inputs and results
    pins: tuple[Pin, ...]  # of both plans, kept ones included
    outputs: tuple[Output, ...]  # all, also without a difference
    causes: tuple[Fact, ...]  # layers of both models for which the cause of FP16's harm differs
    gone: tuple[str, ...]  # layers that only A's model has
    new: tuple[str, ...]  # layers that only B's model has

    @property
    def same(self) -> bool:
        """Whether nothing differs, errors included."""
        pins = all(pin.change == "kept" and pin.without[0] == pin.without[1] for pin in self.pins)
        outputs = all(o.fp16[0] == o.fp16[1] and o.plan[0] == o.plan[1] for o in self.outputs)
        return pins and outputs and not (self.facts or self.causes or self.gone or self.new)


def difference(a: Record, b: Record) -> Difference:
    """The differences between two records, which `read_record` has checked."""
    layers_a, layers_b = ({layer["name"]: layer["cause"] for layer in record["layers"]} for record in (a, b))
    both = {name: cause for name, cause in layers_a.items() if name in layers_b}
    comparable = a["command"] == b["command"]  # locate measures layers with all in FP16, compare with the plan
    return Difference(
        verdict=b["verdict"],
        tolerances=(tolerance_of(a), tolerance_of(b)),
        facts=tuple(_changed(_facts(a), _facts(b))),
        pins=tuple(_pins(a, b)),
        outputs=tuple(_outputs(a, b)),
        causes=tuple(_changed(both, {name: layers_b[name] for name in both})) if comparable else (),
        gone=tuple(name for name in layers_a if name not in layers_b) if layers_b else (),
        new=tuple(name for name in layers_b if name not in layers_a) if layers_a else (),
    )


def _changed(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Fact]:
    for what in _union(a, b):
        if a.get(what) != b.get(what):
            yield Fact(what, a.get(what), b.get(what))


def _union(*found: Mapping[str, Any]) -> list[str]:
    """Every key once, in the order in which the mappings have them."""
    return list(dict.fromkeys(name for names in found for name in names))


def _facts(record: Record) -> dict[str, Any]:
    """The settings of a run and its results, by the name that the table shows."""
    tolerance, metric = record["tolerance"], record.get("metric") or {}
    held_out = set(record.get("held_out", ()))
    single = {
        "verdict": record["verdict"],
        "command": record["command"],
        "runner": record["runner"],
        "model": record["model"]["path"],
        "model sha256": record["model"]["sha256"],
        "model layers": record["model"]["layers"],
        "opset": record.get("opset"),
        **{key: tolerance[key] for key in ("atol", "rtol", "check-error-stat")},
        "metric": metric.get("function"),
        "metric threshold": metric.get("threshold"),
        "samples": len(sources(record)),
        "each pin needed": record.get("minimal"),
        "trials": record.get("trials"),
        "platform": record.get("platform"),
    }
    grouped = {
        "tolerance of": {n: f"{p['atol']:g} or {p['rtol']:g} rel" for n, p in tolerance.get("per-output", {}).items()},
        "sample": {source: "held out" if source in held_out else "used" for source in sources(record)},
        "cure of": dict.fromkeys(map(_rewrite, record.get("cures", ())), "yes"),
        "input": {value["name"]: _typed(value) for value in record.get("inputs", ())},
        "output": {value["name"]: _typed(value) for value in record.get("outputs", ())},
        "version of": record["versions"],
    }
    return single | {f"{kind} {name}": value for kind, found in grouped.items() for name, value in found.items()}


def _rewrite(rewrite: Mapping[str, Any]) -> str:
    """A rewrite of the graph as text."""
    return ", ".join(f"{key} {value}" for key, value in rewrite.items() if isinstance(value, str))


def _typed(value: Mapping[str, Any]) -> str:
    shape = "?" if value["shape"] is None else " x ".join("?" if d is None else str(d) for d in value["shape"])
    return f"{value['type'] or '?'} {shape}".strip()


def _pins(a: Record, b: Record) -> Iterator[Pin]:
    plans, precisions, causes, without = [], [], [], []
    for record in (a, b):
        plan = dict.fromkeys(record["fp32_layers"], "fp32") | dict.fromkeys(record.get("bf16_layers", ()), "bf16")
        named = {layer["name"]: layer["cause"] for layer in record["layers"]}
        plans.append(plan)
        precisions.append(dict.fromkeys(named, "fp16") | plan)
        causes.append(named if record["command"] == "locate" else {})
        without.append({pin["name"]: _without(pin) for pin in record.get("pins", ())})
    for name in _union(*plans):
        yield Pin(
            name,
            precision=(_of(precisions[0], name), _of(precisions[1], name)),
            cause=(causes[0].get(name), causes[1].get(name)),
            without=(without[0].get(name), without[1].get(name)),
        )


def _of(precisions: Mapping[str, str], name: str) -> str:
    """The precision of a layer. A record without layers has only the pins, and any other layer counts as fp16."""
    return precisions.get(name, "" if precisions else "fp16")


def _without(pin: Mapping[str, Any]) -> float | None:
    """Error ratio without this pin; inf if the error was not finite or could not be computed, None if not tried."""
    if pin["without_excess"] is None:
        return math.inf if pin["without"] or pin["not_computed"] else None
    return float(pin["without_excess"])


def _outputs(a: Record, b: Record) -> Iterator[Output]:
    fp16 = [{error.name: error for error in errors_of(record.get("before", {}))} for record in (a, b)]
    plan = [{error.name: error for error in after(record)} for record in (a, b)]
    for name in _union(*plan, *fp16):
        yield Output(name, (fp16[0].get(name), fp16[1].get(name)), (plan[0].get(name), plan[1].get(name)))


def difference_json(found: Difference, a: Record, b: Record) -> Json:
    """The differences as JSON, for `compare A.json B.json --json`."""
    return {
        "schema": SCHEMA,
        "same": found.same,
        **{side: {key: record[key] for key in ("command", "date", "verdict")} for side, record in (("a", a), ("b", b))},
        "changes": {fact.what: {"a": fact.a, "b": fact.b} for fact in found.facts},
        "pins": [
            {"name": pin.name, "change": pin.change, "a": _pin_json(pin, 0), "b": _pin_json(pin, 1)}
            for pin in found.pins
        ],
        "outputs": {
            output.name: {
                side: {
                    "fp16": _error_json(output.fp16[index], found.tolerances[index]),
                    "plan": _error_json(output.plan[index], found.tolerances[index]),
                }
                for index, side in enumerate("ab")
            }
            for output in found.outputs
        },
        "causes": {fact.what: {"a": fact.a, "b": fact.b} for fact in found.causes},
        "layers": {"gone": list(found.gone), "new": list(found.new)},
    }


def _pin_json(pin: Pin, side: int) -> Json:
    without = pin.without[side]
    return {
        "precision": pin.precision[side],
        "cause": pin.cause[side],
        "without_excess": None if without is None else _finite(without),
    }


def _error_json(error: TensorError | None, tolerance: Tolerance) -> Json | None:
    """The error of one output of one run; null if the record does not have the output."""
    if error is None:
        return None
    return {
        "max": _finite(error.max),
        "mean": _finite(error.mean),
        "median": _finite(error.median),
        "non_finite": error.non_finite,
        "excess": _finite(error.error_ratio(tolerance)),
        "passes": error.passes(tolerance),
    }


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
