"""The sentences and figures of a report: what broke, why, what was done, and how sure that is.

Page and tables show the same texts. All of them are derived from the run record alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trt_helper.format.text import figure, plain
from trt_helper.report.read import errors_of, tolerance_of
from trt_helper.values import READINGS, Statistic, TensorError, Tolerance

Record = Mapping[str, Any]
RANDOM = "random (seed"  # the start of the source of a random sample, see inputs/samples.py
HALF_MAX = 65504.0
MOST_NAMED = 3  # layers that a sentence lists by name
CAUSES = {
    "overflow": "values pass 65504, where FP16 ends, and become infinite",
    "underflow": "values are too small for FP16 and become 0",
    "constant": "weights pass 65504, where FP16 ends",
    "mask": "a mask value below -65504 becomes -inf, and 0 times that, or a row of nothing else, is NaN",
    "division": "FP16 makes 0 of a divisor, or keeps few of its digits",
    "logarithm": "FP16 makes 0 of a small number, and its logarithm is -inf",
    "epsilon": "a small constant that keeps other numbers away from 0 is 0 in FP16",
    "integer": "not every whole number beyond 2048 is an FP16 number",
    "cancellation": "nearly equal numbers are subtracted, and what is left is rounding error",
    "coordinate": "positions or phases are so large that FP16 cannot tell neighbours apart",
    "rounding": "plain rounding to 11 bits, which the layers behind amplify",
    "": "exact by itself, but next to a layer whose values FP16 would spoil",
}


@dataclass(frozen=True, slots=True)
class Card:
    """One of the four answers on the first screen of the page."""

    title: str
    lines: tuple[str, ...]


def headline(record: Record) -> str:
    """The answer of the run in one sentence."""
    pins, bf16, rewrites = (len(record.get(key, ())) for key in ("fp32_layers", "bf16_layers", "cures"))
    passed = record["verdict"] == "pass"
    done = [f"{pins} of {_candidates(record)} layers {'stays' if pins == 1 else 'stay'} in FP32"] if pins else []
    done += [f"{bf16} in BF16"] if bf16 else []
    done += [f"{rewrites} {'part' if rewrites == 1 else 'parts'} of the graph rewritten"] if rewrites else []
    if not done:
        return "FP16 is accurate as it is" if passed else "FP16 misses the tolerance; no layer is pinned"
    return f"{', '.join(done)}; the outputs are {'then' if passed else 'still not'} within tolerance"


def cards(record: Record, engine: Record | None = None) -> list[Card]:
    """The four answers, without those that the record has no facts for.

    Args:
        record: The run record.
        engine: The proof of the engine that was built with its plan, if there is one.
    """
    found = {
        "What broke": _broke(record),
        "Why": _why(record),
        "What was done": _done(record),
        "How sure that is": _sure(record, engine),
    }
    return [Card(title, lines) for title, text in found.items() if (lines := tuple(text))]


def numbers(record: Record) -> list[tuple[str, str]]:
    """The most important figures as text, each with its label."""
    pins, of = len(record["fp32_layers"]), _candidates(record)
    tolerance = tolerance_of(record)
    half = of - pins - len(record.get("bf16_layers", ()))
    found = [(f"{pins} of {of}", "layers in FP32"), (f"{100 * half / max(of, 1):.3g} %", "of the layers in FP16")]
    before = {error.name: error for error in errors_of(record.get("before", {}))}
    errors = after(record)
    if errors and not record.get("metric"):
        was = [before.get(error.name, error) for error in errors]
        _, worst = max(zip(was, errors, strict=True), key=lambda pair: tuple(e.error_ratio(tolerance) for e in pair))
        old = f"{_brief(before[worst.name], tolerance)} → " if worst.name in before and changed(record) else ""
        label = f"{plain(worst.name, 40)}: error, allowed {allowed(tolerance, worst.name)}"
        found.insert(0, (old + _brief(worst, tolerance), label))
    if speed := _speed(record):
        found.append((f"{speed[0]:.3g} x", f"FP32's speed on {plain(speed[2], 20)}: estimate, not measured"))
    return found


def _brief(error: TensorError, tolerance: Tolerance) -> str:
    return (error.resized or "not finite") if error.non_finite else shown(error, tolerance.stat)


def _speed(record: Record) -> tuple[float, float, str] | None:
    """The estimated speed over that of FP32, with the plan and with all FP16, and the name of the GPU."""
    estimate = record.get("share", {}).get("estimate")
    if not estimate or not estimate["plan"] or not estimate["fp16"]:
        return None
    return estimate["fp32"] / estimate["plan"], estimate["fp32"] / estimate["fp16"], estimate["gpu"]


def warnings(record: Record, engine: Record | None = None) -> list[str]:
    """The reasons not to trust the answer, each in one sentence."""
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
    """The sources of the samples."""
    return [sample if isinstance(sample, str) else sample["source"] for sample in record.get("samples", ())]


def first_overflow(record: Record) -> int | None:
    """The index of the first layer in topological order that overflows in FP16 by itself, if there is one."""
    found = (
        index
        for index, layer in enumerate(record["layers"])
        if layer["overflow"] or layer["weights_overflow"] or layer["isolated"]["non_finite"]
    )
    return next(found, None)


def changed(record: Record) -> bool:
    """Whether the plan changes anything: it has pins, BF16 layers or rewrites."""
    return any(record.get(key) for key in ("fp32_layers", "bf16_layers", "cures"))


def after(record: Record) -> list[TensorError]:
    """The error of each output with the plan, worst sample."""
    if "after" in record:
        return list(errors_of(record["after"]))
    tolerance = tolerance_of(record)
    every = [list(errors_of(sample["outputs"])) for sample in record.get("samples", ()) if not isinstance(sample, str)]
    return [max(column, key=lambda error: error.error_ratio(tolerance)) for column in zip(*every, strict=False)]


def allowed(tolerance: Tolerance, name: str) -> str:
    """The tolerance of one output as text."""
    atol, rtol = tolerance.of(name)
    return f"{tolerance.stat.value} ≤ {atol:g}" + (f" or {rtol:g} relative" if rtol else "")


def shown(error: TensorError, stat: Statistic = Statistic.MAX) -> str:
    """The error of one output as text: the figure that `stat` names, or a count of elements."""
    if error.resized:
        return error.resized
    if error.non_finite:
        return f"{error.non_finite} of {error.total} not finite"
    if stat is Statistic.ELEMWISE:
        return f"{error.outside} of {error.total} elements outside"
    return figure(getattr(error, stat.value))


def times(number: float) -> str:
    """A factor with three significant digits: 1,000 rather than 1e+03."""
    return f"{float(f'{number:.3g}'):,.0f}" if 1e3 <= number < 1e6 else figure(number)  # noqa: PLR2004


def short(names: Sequence[str]) -> list[str]:
    """Layer names for sentences: the folders at their start that all of them share are replaced by an ellipsis."""
    folders = [name.split("/")[:-2] for name in names]
    shared = 0
    while folders and all(len(parts) > shared and parts[shared] == folders[0][shared] for parts in folders):
        shared += 1
    return [plain("/".join(["…", *name.split("/")[shared:]]) if shared else name, 60) for name in names]


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
        if not record["fp32_layers"] and record["verdict"] == "pass":
            yield "Nothing: the metric stays above its threshold in FP16."
        else:
            yield "In FP16 the metric falls below its threshold."
        return
    missed = [error for error in before if not error.passes(tolerance)]
    if not missed:
        yield "Nothing: with every layer in FP16 each output is within tolerance."
        return
    worst = max(missed, key=lambda error: (error.error_ratio(tolerance), error.max))
    over = worst.error_ratio(tolerance)
    so = f" ({times(over)} times too much)" if over < float("inf") and tolerance.stat is not Statistic.ELEMWISE else ""
    yield (
        f"With every layer in FP16, the output {plain(worst.name, 60)} {_off(worst, tolerance.stat)}{so};"
        f" allowed is {allowed(tolerance, worst.name)}."
    )
    of = "" if len(before) == 1 else f"{len(missed)} of {len(before)} outputs are out of tolerance. "
    yield of + _samples(record, tolerance)


def cure_words(rewrite: Mapping[str, Any]) -> str:
    """A rewrite of the graph as a sentence."""
    if "norms" in rewrite:
        label = short([rewrite["norms"]])[0]
        return f"The norm that ends in {label} is one {plain(rewrite.get('as', 'operator'), 40)} again, at no cost"
    if "logs" in rewrite:
        return f"The logarithm {short([rewrite['logs']])[0]} is computed without underflow, at next to no cost"
    if "rows" in rewrite:
        return f"The product {short([rewrite['rows']])[0]} is computed with two rows, at next to no cost"
    constant = plain(rewrite.get("constants", ""), 60)
    if "as" in rewrite:
        return f"The epsilon {constant} is raised to {plain(rewrite['as'], 20)}, which FP16 holds, at no cost"
    return f"The constant {constant} is brought into FP16's range, at no cost"


def worst_without(outputs: Mapping[str, Any]) -> str:
    """The largest error of several outputs as text."""
    broken = [error.get("resized") or "not finite" for error in outputs.values() if error["non_finite"]]
    if broken:
        return str(broken[0])
    return figure(max((error["max"] or 0.0 for error in outputs.values()), default=0.0))


def _off(error: TensorError, stat: Statistic) -> str:
    """The error of an output as the end of a sentence."""
    counted = error.non_finite or stat is Statistic.ELEMWISE
    return f"has {shown(error, stat)}" if counted else f"is off by {shown(error, stat)}"


def _samples(record: Record, tolerance: Tolerance) -> str:
    found = [list(errors_of(sample["before"])) for sample in record.get("per_sample", ()) if sample["before"]]
    found += [list(errors_of(s["outputs"])) for s in record.get("samples", ()) if not isinstance(s, str)]
    missed = sum(not all(error.passes(tolerance) for error in errors) for errors in found)
    return f"{missed} of {len(found)} samples fail." if found else ""


def _why(record: Record) -> Iterator[str]:
    groups: dict[str, list[Record]] = {}
    for pin in record.get("pins", ()):
        groups.setdefault(pin["cause"], []).append(pin)
    labels = dict(zip(record["fp32_layers"], short(record["fp32_layers"]), strict=True))
    for cause, pins in groups.items():
        named = ", ".join(labels.get(pin["name"], plain(pin["name"], 60)) for pin in pins[:MOST_NAMED])
        more = f" and {len(pins) - MOST_NAMED} more" if len(pins) > MOST_NAMED else ""
        name = f"{cause.capitalize()}: " if cause else ""
        yield f"{name}{CAUSES.get(cause, plain(cause))}{_shown_by(record, cause, pins)}. In {named}{more}."
    first = first_overflow(record)
    if first is not None and record.get("pins"):
        layer = record["layers"][first]
        if not layer["pinned"] and record["verdict"] == "pass":
            label = short([layer["name"], *record["fp32_layers"]])[0]
            yield f"FP16 overflows first in {label}, which does no harm: it stays FP16 and the outputs pass."


def _shown_by(record: Record, cause: str, pins: Sequence[Record]) -> str:
    """The figure that shows a cause: of a single pin, or the largest one of several pins that overflow."""
    if cause == "overflow":
        names = {pin["name"] for pin in pins}
        peaks = [max(x["read"] or 0.0, x["written"] or 0.0) for x in record["layers"] if x["name"] in names]
        if peaks and max(peaks) > HALF_MAX:
            return f" (here up to {max(peaks):.3g})"
    return f" ({plain(pins[0]['cause_evidence'])})" if len(pins) == 1 and pins[0]["cause_evidence"] else ""


def _done(record: Record) -> Iterator[str]:
    pins, of = len(record["fp32_layers"]), _candidates(record)
    tolerance = tolerance_of(record)
    if pins:
        yield f"{pins} of {of} layers pinned to FP32; the other {100 * (of - pins) / max(of, 1):.3g} % compute in FP16."
    elif not record.get("bf16_layers"):
        yield f"No layer is pinned: all {of} compute in FP16."
    if record.get("bf16_layers"):
        yield f"{len(record['bf16_layers'])} layers compute in BF16, which has the range of FP32."
    for rewrite in record.get("cures", ())[:MOST_NAMED]:
        yield f"{cure_words(rewrite)}; without that: {worst_without(rewrite['without'])}."
    errors = after(record)
    if errors and changed(record) and not record.get("metric"):
        worst = max(errors, key=lambda error: (error.error_ratio(tolerance), error.max))
        yield (
            f"The worst output, {plain(worst.name, 60)}, then {_off(worst, tolerance.stat)}; allowed is"
            f" {allowed(tolerance, worst.name)}."
        )
    if speed := _speed(record):
        yield (
            f"Estimate for {plain(speed[2], 20)}: {speed[0]:.3g} times as fast as FP32"
            f" (all FP16: {speed[1]:.3g} times); nothing was timed."
        )


def _by_reading(record: Record) -> Iterator[str]:
    """Whether the answer holds on kernels that are better or worse than those that were read."""
    kernels = record.get("kernels", {})
    verdicts, ratios = (kernels.get(key, {}) for key in ("verdicts", "excess"))
    known = [reading.value for reading in READINGS if reading.value in verdicts]
    if len(known) > 1:
        shown = ", ".join(
            f"{name} {'not finite' if ratios.get(name) is None else figure(ratios[name])}" for name in known
        )
        failed = [name for name in known if verdicts[name] != "pass"]
        said = (
            f"It fails with {' and '.join(failed)} kernels" if failed else "It holds with better and with worse kernels"
        )
        yield f"{said} (error over what is allowed: {shown})."


def _sure(record: Record, engine: Record | None) -> Iterator[str]:
    pins = record.get("pins", ())
    proofs = [pin for pin in pins if pin["without"] or pin["not_computed"]]
    if pins and record.get("minimal"):
        error_ratio = [pin["without_excess"] for pin in proofs]
        least = min((e for e in error_ratio if e is not None), default=None)
        so = f": without it the error is at least {times(least)} times the tolerance" if least is not None else ""
        yield f"Each pin was taken out once more and the result did not pass{so}."
    found = sources(record)
    held = len(record.get("held_out", ()))
    unseen = f", {held} of which the search did not see" if held else ""
    yield f"Judged on {len(found)} {'sample' if len(found) == 1 else 'samples'}{unseen}; the worst sample decides."
    if record["runner"] == "emulate":
        yield "FP16 was emulated on a CPU: every rounding of the plan, in the steps that TensorRT-RTX's kernels take."
    else:
        yield f"FP16 was run with {plain(record['runner'])}."
    yield from _by_reading(record)
    if engine:
        honoured = sum(pin["state"] == "honoured" for pin in engine["pins"])
        yield (
            f"In the engine ({plain(engine['engine']['builder'])}) {honoured} of {len(engine['pins'])} pins are"
            f" honoured and {100 * engine['half_share']:.3g} % of the float work is FP16."
        )
        if engine.get("added"):
            count = len(engine["added"])
            yield f"convert added {count} {'pin' if count == 1 else 'pins'}, without which TensorRT breaks others."
