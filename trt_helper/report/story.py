"""A run record goes in; what broke, why, what was done and how sure that is comes out, in sentences."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trt_helper.report.read import errors_of, tolerance_of
from trt_helper.text import figure, plain
from trt_helper.values import Statistic, TensorError, Tolerance

Record = Mapping[str, Any]
RANDOM = "random (seed"  # how samples.py calls what it made up
MOST_NAMED = 3  # layers that a sentence spells out
CAUSES = {
    "overflow": "values pass 65504, where FP16 ends, and become infinite",
    "underflow": "values are too small for FP16 and become 0",
    "constant": "weights pass 65504, where FP16 ends",
    "cancellation": "nearly equal numbers are subtracted, and what is left is rounding error",
    "coordinate": "positions or phases are so large that FP16 cannot tell neighbours apart",
    "rounding": "plain rounding to 11 bits, which the layers behind amplify",
    "": "exact by itself, but next to a layer whose values FP16 would spoil",
}
SURE = {
    "honoured": "the engine layer reads or holds it in FP32",
    "fused": "it shares a kernel with FP16 layers; the kernel's border does not show the precision inside",
    "demoted": "TensorRT undid the casts and reads it in FP16",
    "gone": "no engine layer names it: folded, or moved without arithmetic",
    "unknown": "TensorRT does not state the types",
}


@dataclass(frozen=True, slots=True)
class Card:
    """One of the four answers on the first screen."""

    title: str
    lines: tuple[str, ...]


def headline(record: Record) -> str:
    """The answer in one sentence."""
    pins, of = len(record["fp32_layers"]), _candidates(record)
    passed = record["verdict"] == "pass"
    if not pins:
        return "FP16 is accurate as it is" if passed else "FP16 misses the tolerance; no layer is pinned"
    kept = f"{pins} of {of} layers {'stays' if pins == 1 else 'stay'} in FP32"
    return f"{kept}; the outputs are {'then' if passed else 'still not'} within tolerance"


def cards(record: Record, engine: Record | None = None) -> list[Card]:
    """What broke, why, what was done, how sure that is; those that the record can tell."""
    found = {
        "What broke": _broke(record),
        "Why": _why(record),
        "What was done": _done(record),
        "How sure that is": _sure(record, engine),
    }
    return [Card(title, lines) for title, text in found.items() if (lines := tuple(text))]


def warnings(record: Record, engine: Record | None = None) -> list[str]:
    """What should keep the reader from trusting the answer."""
    found = [plain(text, 2000) for text in record.get("warnings", ())]
    if any(source.startswith(RANDOM) for source in sources(record)):
        found.insert(0, "Judged by made-up random inputs: they blame the wrong layers. Give real ones with --inputs.")
    if record.get("minimal") is False:
        found.append(f"The plan may not be the smallest: {plain(record.get('because', 'the search was cut short'))}.")
    if engine:
        unproven = [pin for pin in engine["pins"] if pin["state"] != "honoured"]
        if unproven:
            found.append(f"{len(unproven)} of {len(engine['pins'])} pins are not proven in the engine; see below.")
    return found


def sources(record: Record) -> list[str]:
    """Where the samples came from."""
    return [sample if isinstance(sample, str) else sample["source"] for sample in record.get("samples", ())]


def first_overflow(record: Record) -> int | None:
    """Index of the first layer that FP16 itself makes infinite, in topological order."""
    found = (
        index
        for index, layer in enumerate(record["layers"])
        if layer["overflow"] or layer["weights_overflow"] or layer["isolated"]["non_finite"]
    )
    return next(found, None)


def after(record: Record) -> list[TensorError]:
    """Each output with the plan, worst sample."""
    if "after" in record:
        return list(errors_of(record["after"]))
    tolerance = tolerance_of(record)
    every = [list(errors_of(sample["outputs"])) for sample in record.get("samples", ()) if not isinstance(sample, str)]
    return [max(column, key=lambda error: error.excess(tolerance)) for column in zip(*every, strict=False)]


def allowed(tolerance: Tolerance, name: str) -> str:
    """What an output may be off, in words."""
    atol, rtol = tolerance.of(name)
    return f"{tolerance.stat.value} ≤ {atol:g}" + (f" or {rtol:g} relative" if rtol else "")


def shown(error: TensorError, stat: Statistic = Statistic.MAX) -> str:
    """An output's error in one figure."""
    if error.non_finite:
        return f"{error.non_finite} of {error.total} values not finite"
    if stat is Statistic.ELEMWISE:
        return f"{error.outside} of {error.total} elements outside"
    return figure(getattr(error, stat.value))


def short(names: Sequence[str]) -> list[str]:
    """Layer names without the folders that all of them share, for sentences."""
    shared = os.path.commonprefix([name.split("/")[:-2] for name in names]) if names else []
    cut = len("/".join(shared)) + 1 if shared else 0
    return [plain(f"…/{name[cut:]}" if cut > 1 else name, 60) for name in names]


def _candidates(record: Record) -> int:
    share = record.get("share")
    return int(share["layers"]) if share else sum(layer["role"] == "compute" for layer in record["layers"])


def _broke(record: Record) -> Iterator[str]:
    if why := record.get("not_computed", {}).get("before"):
        yield f"With every layer in FP16 the model cannot be computed: {plain(why)}."
        return
    tolerance = tolerance_of(record)
    before = list(errors_of(record.get("before", {})))
    if not before:
        return
    if record.get("metric"):
        if record["search"] and not record["fp32_layers"]:
            yield "Nothing: the metric stays above its threshold in FP16."
        else:
            yield "In FP16 the metric falls below its threshold."
        return
    missed = [error for error in before if not error.passes(tolerance)]
    if not missed:
        yield "Nothing: with every layer in FP16 each output is within tolerance."
        return
    worst = max(missed, key=lambda error: (error.excess(tolerance), error.max))
    times = worst.excess(tolerance)
    so = f", {times:.3g} times too much" if times < float("inf") and tolerance.stat is not Statistic.ELEMWISE else ""
    yield (
        f"With every layer in FP16, output {plain(worst.name, 60)} is off: {shown(worst, tolerance.stat)}"
        f" (allowed: {allowed(tolerance, worst.name)}){so}."
    )
    yield f"{len(missed)} of {len(before)} {'output' if len(before) == 1 else 'outputs'} out of tolerance" + _samples(
        record, tolerance
    )


def _samples(record: Record, tolerance: Tolerance) -> str:
    found = [list(errors_of(sample["before"])) for sample in record.get("per_sample", ()) if sample["before"]]
    if not found:
        return "."
    missed = sum(not all(error.passes(tolerance) for error in errors) for errors in found)
    return f", on {missed} of {len(found)} samples."


def _why(record: Record) -> Iterator[str]:
    groups: dict[str, list[Record]] = {}
    for pin in record.get("pins", ()):
        groups.setdefault(pin["cause"], []).append(pin)
    labels = dict(zip(record["fp32_layers"], short(record["fp32_layers"]), strict=True))
    for cause, pins in groups.items():
        named = ", ".join(labels.get(pin["name"], plain(pin["name"], 60)) for pin in pins[:MOST_NAMED])
        more = f" and {len(pins) - MOST_NAMED} more" if len(pins) > MOST_NAMED else ""
        evidence = f" ({plain(pins[0]['cause_evidence'])})" if len(pins) == 1 and pins[0]["cause_evidence"] else ""
        name = f"{cause.capitalize()}: " if cause else ""
        yield f"{name}{CAUSES.get(cause, plain(cause))}{evidence}. In {named}{more}."
    first = first_overflow(record)
    if first is not None and record.get("pins"):
        layer = record["layers"][first]
        if not layer["pinned"]:
            label = short([layer["name"], *record["fp32_layers"]])[0]
            yield f"FP16 overflows first in {label}, which does no harm to the outputs."


def _done(record: Record) -> Iterator[str]:
    pins, of = len(record["fp32_layers"]), _candidates(record)
    tolerance = tolerance_of(record)
    if pins:
        yield f"{pins} of {of} layers pinned to FP32; the other {100 * (of - pins) / max(of, 1):.3g} % compute in FP16."
    else:
        yield f"No layer is pinned: all {of} compute in FP16."
    errors = after(record)
    if errors and not record.get("metric"):
        worst = max(errors, key=lambda error: (error.excess(tolerance), error.max))
        yield (
            f"The worst output is now {plain(worst.name, 60)}: {shown(worst, tolerance.stat)}"
            f" (allowed: {allowed(tolerance, worst.name)})."
        )
    traffic = record.get("share", {}).get("traffic")
    if traffic and traffic["plan"] and traffic["fp16"]:
        best, now = traffic["fp32"] / traffic["fp16"], traffic["fp32"] / traffic["plan"]
        yield (
            f"Estimate, not measured: {now:.3g} times as fast as FP32 where memory traffic decides"
            f" (all FP16: {best:.3g} times)."
        )


def _sure(record: Record, engine: Record | None) -> Iterator[str]:
    pins = record.get("pins", ())
    proofs = [pin for pin in pins if pin["without"] or pin["not_computed"]]
    if pins and record.get("minimal"):
        excess = [pin["without_excess"] for pin in proofs]
        least = min((e for e in excess if e is not None), default=None)
        so = f": without it the error is at least {least:.3g} times the tolerance" if least is not None else ""
        yield f"Each pin was taken out once more and the result did not pass{so}."
    found = sources(record)
    held = len(record.get("held_out", ()))
    unseen = f", {held} of which the search did not see" if held else ""
    yield f"Judged on {len(found)} {'sample' if len(found) == 1 else 'samples'}{unseen}; the worst sample decides."
    if record["runner"] == "emulate":
        yield "FP16 was emulated on a CPU: every rounding of the plan, but not the kernels of an engine."
    else:
        yield f"FP16 was run with {plain(record['runner'])}."
    if engine:
        honoured = sum(pin["state"] == "honoured" for pin in engine["pins"])
        yield (
            f"In the engine ({plain(engine['engine']['builder'])}) {honoured} of {len(engine['pins'])} pins are"
            f" honoured and {100 * engine['half_share']:.3g} % of the float work is FP16."
        )
