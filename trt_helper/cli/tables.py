"""Results as terminal tables. Names come from models, so they are not trusted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from trt_helper.bench.rows import Estimated, Measured, NotRun
from trt_helper.builder.convert import Converted
from trt_helper.builder.refusals import Refusal
from trt_helper.emulator.partial_sums import PartialSum
from trt_helper.format.text import batch_text, cell, figure, plain, rate, table
from trt_helper.onnx_model.graph import Graph
from trt_helper.search.diagnosis import SENTENCES
from trt_helper.search.located import Located
from trt_helper.system.machine import Ability
from trt_helper.values import IntermediateError, LayerReport, TensorError, Tolerance, Trial, Verdict

LONGEST_PROOF = 400
UNPROVEN = {
    "fused": "not provable for {}, in a kernel with FP16 layers, because {}",
    "gone": "not provable for {}, because {}: folded, or moved without arithmetic",
    "unknown": "not provable for {}, because {}",
}


def located(answer: Located, output: Path, record: Path) -> Iterator[Table | str]:
    """All that `locate` shows."""
    yield before_after(answer)
    if answer.without_rewrite or answer.plan.bf16:
        yield from ("", rewrites(answer))
    if answer.plan.fp32:
        yield from ("", pins(answer))
    if answer.intermediate_errors:
        yield from ("", intermediate_errors(answer.intermediate_errors, 20))
    yield from ("", summary(answer, output, record))


def before_after(located: Located) -> Table:
    """The errors of each output, everything in FP16 and with the plan."""
    made = table("Outputs, worst sample", "output", "FP16 max", "not finite", "with the plan", "median", "allowed")
    found = {error.name: error for error in located.before.outputs}  # empty if FP16 could not be computed
    for after in located.after.outputs:
        before = found.get(after.name)
        atol, rtol = located.tolerance.of(after.name)
        made.add_row(
            cell(after.name),
            figure(before.max) if before else "-",
            (before.resized or str(before.non_finite)) if before else "-",
            after.broken or figure(after.max),
            figure(after.median),
            f"{located.metric.name} ≥ {located.metric.threshold:g}"
            if located.metric
            else f"{located.tolerance.stat.value} ≤ {atol:g} or {rtol:g} rel",
        )
    return made


def pins(located: Located) -> Table:
    """Each pinned layer: the cause, and the error without the pin."""
    made = table("Layers that stay in FP32", "layer", "op", "cause", "what shows it", "error without it", names=4)
    for pin in located.pinned_layers:
        if pin.name in located.plan.bf16:
            continue
        without = located.without(pin.name)
        shown = pin.name if pin.name.startswith(pin.module) else f"{pin.name}  ({pin.module})"
        made.add_row(cell(shown), cell(pin.op), *located.cause(pin.name), trial_figure(without) if without else "-")
    return made


def rewrites(located: Located) -> Table:
    """Each rewrite and each BF16 layer, and the error without it."""
    made = table("Cures that cost next to nothing at run time", "what", "by", "error without it", names=2)
    for rewrite, without in located.without_rewrite.items():
        how = {"norms": f"one {rewrite.op}", "logs": "computing it without underflow", "rows": "two rows"}.get(
            rewrite.kind, f"raising it to {rewrite.op}" if rewrite.op else "bringing it into FP16's range"
        )
        made.add_row(cell(rewrite.name), how, trial_figure(without))
    for name in located.pins:
        if name in located.plan.bf16:
            lacking = located.without(name)
            made.add_row(cell(name), "BF16", trial_figure(lacking) if lacking else "-")
    return made


def trial_figure(trial: Trial) -> str:
    """The error of a trial's worst output, or why there is none."""
    if trial.why:
        return plain(trial.why)
    broken = [error.resized or "not finite" for error in trial.outputs if error.non_finite]
    return broken[0] if broken else figure(max(error.max for error in trial.outputs))


def layers(reports: Sequence[LayerReport], pinned: frozenset[str], limit: int) -> Table:
    """Every layer with its errors, in topological order; at most `limit` rows, the worst ones."""
    worst = sorted(reports, key=lambda r: (-r.isolated.non_finite, -_relative(r.isolated)))[:limit]
    chosen = {report.layer.name for report in worst}
    title = "Layers, worst sample" + (f" ({limit} with the largest isolated error)" if len(reports) > limit else "")
    made = table(
        title, "layer", "op", "isolated max", "accumulated max", "median", "largest output", "not finite", names=2
    )
    for report in reports:
        if report.layer.name in chosen:
            made.add_row(
                cell(report.layer.name, "bold" if report.layer.name in pinned else ""),
                cell(report.layer.op),
                figure(report.isolated.max),
                figure(report.accumulated.max),
                figure(report.accumulated.median),
                figure(report.accumulated.reference_max),
                f"{report.isolated.non_finite} / {report.accumulated.non_finite}",
            )
    return made


def intermediate_errors(found: Sequence[IntermediateError], limit: int) -> Table:
    """Tensors between an engine's kernels, in topological order; at most `limit` rows, the worst ones."""
    chosen = sorted(found, key=lambda one: (not one.is_farther, -one.engine.non_finite, -_relative(one.engine)))[:limit]
    made = table(
        "In the engine (no verdict)", "layer", "kernel", "engine max", "emulated max", "not finite", "", names=2
    )
    for one in found:
        if one in chosen:
            made.add_row(
                cell(one.layer),
                cell(one.kernel),
                figure(one.engine.max),
                figure(one.emulated.max),
                f"{one.engine.non_finite} / {one.emulated.non_finite}",
                "farther" if one.is_farther else "",
            )
    return made


def _relative(error: TensorError) -> float:
    return error.max / error.reference_max if error.reference_max else error.max


def per_sample(sources: Sequence[str], errors: Sequence[Iterable[TensorError]], tolerance: Tolerance) -> Table:
    """Every output of every sample with all statistics."""
    made = table(
        "Outputs",
        "sample",
        "output",
        "max",
        "mean",
        "median",
        "max rel",
        "outside",
        "not finite",
        "worst at",
        "",
        names=2,
    )
    for source, outputs in zip(sources, errors, strict=True):
        for error in outputs:
            made.add_row(
                cell(source),
                cell(error.name),
                figure(error.max),
                figure(error.mean),
                figure(error.median),
                figure(error.max_rel),
                f"{error.outside}/{error.total}",
                str(error.non_finite),
                str(list(error.worst)),
                "pass" if error.passes(tolerance) else "FAIL",
            )
    return made


def values(title: str, graph: Graph, which: str) -> Table:
    """Graph inputs or outputs: name, type, shape."""
    made = table(title, "name", "type", "shape", names=3)
    for value in graph.inputs if which == "inputs" else graph.model.graph.outputs:
        shape = "?" if value.shape is None else " x ".join(str(d) for d in value.shape) or "scalar"
        dtype = graph.io_types.get(value.name or "", value.dtype)
        made.add_row(cell(value.name or ""), dtype.name.lower() if dtype else "?", cell(shape))
    return made


def summary(located: Located, output: Path, record: Path) -> str:
    """The answer in words, what it is based on, where it was written, and the next commands."""
    count, of = len(located.plan), len(located.graph.candidates)
    said = f"{count} of {of} layers stay in FP32" if count else _without_pins(located)
    held = f", {len(located.held_out)} of them held out of the search" if located.held_out else ""
    kernels = _kernels(located)
    if located.diagnosis:
        kernels += f"What FP16 gets wrong there is {SENTENCES[located.diagnosis]}.\n"
    judged = "emulated FP16" if located.runner == "emulate" else f"judged by {located.runner}"
    return (
        f"{said} ({located.because}).\n"
        f"{len(located.samples)} samples{held}; {len(located.trials)} trials, {located.inferences} inferences,"
        f" {located.seconds:.1f} s, {judged}.\n"
        f"{unjudged(located.graph)}"
        f"{kernels}"
        f"Plan written to {output}, how it was found to {record}.\n"
        f"Next: trt-helper report {record}; trt-helper convert --config {output}"
    )


def unjudged(graph: Graph) -> str:
    """How much of the model was judged, where that is not all of it."""
    if not graph.unjudged:
        return ""
    of = len(graph.candidates) + sum(graph.unjudged.values())
    why = "; ".join(f"{count} {reason}" for reason, count in graph.unjudged.items())
    return f"Judged: {len(graph.candidates)} of {of} layers that compute. Not judged, and FP32: {plain(why)}.\n"


def _without_pins(located: Located) -> str:
    """The answer where no layer is pinned."""
    if located.after.verdict is not Verdict.PASS:
        return "FP16 misses the tolerance, and no plan without pins was found that does not"
    cures, bf16 = len(located.without_rewrite), len(located.plan.bf16)
    counted = ((cures, "cure", ""), (bf16, "layer", " in BF16"))
    means = [f"{count} {word}{'s' * (count > 1)}{how}" for count, word, how in counted if count]
    how = f" with {' and '.join(means)}" if means else " as it is"
    where = " where it was judged" if located.graph.unjudged else ""
    return f"FP16 is accurate{how}{where}: no layer needs FP32"


NEAR = 0.6  # of the tolerance; other kernels, or another order of sums, may be beyond it


def _kernels(located: Located) -> str:
    """Whether the answer holds on other kernels, and how much of the tolerance it uses."""
    if not located.by_reading:
        return ""
    ratios = ", ".join(f"{reading.value} {figure(trial.error_ratio)}" for reading, trial in located.by_reading.items())
    said = [f"Of what is allowed, with kernels as read from TensorRT-RTX, better, worse: {ratios}."]
    if located.pins_by_one is not None:
        said.append(f"{located.pins_by_one} pins are enough with typical kernels; {len(located.plan)} hold with each.")
    after = located.after.verdict is Verdict.PASS
    failed = [reading.value for reading, trial in located.by_reading.items() if trial.verdict is not Verdict.PASS]
    if after and failed:
        said.append(f"It fails with {' and '.join(failed)} kernels: locate --robust finds a plan that does not.")
    elif after and not located.metric and located.after.error_ratio > NEAR:
        said.append("That is near the edge: another kernel may be beyond it; locate --margin 0.5 leaves room.")
    too_large = located.partial_sums
    if too_large and (failed or any(one.overflows for one in too_large)):
        said.append(sums(too_large))
    return "\n".join(said) + "\n"


def sums(found: Sequence[PartialSum]) -> str:
    """The layers whose sums half precision cannot accumulate."""
    first = max(found, key=lambda one: one.largest)
    others = f" and {len(found) - 1} more" if len(found) > 1 else ""
    what = f"partial sums up to {first.largest:.3g}" if first.overflows else f"sums of {first.terms} terms"
    return f"Only kernels that accumulate in FP32 get {plain(first.layer, 60)} ({first.op}){others} right: {what}."


def measured(found: Iterable[Measured]) -> Table:
    """The measured speed of each backend."""
    columns = ("batch", "p50, ms", "p90", "p99", "samples/s", "at once", "host, MiB", "GPU, MiB", "runs")
    made = table("Measured here", "how", *columns)
    for one in found:
        made.add_row(
            cell(one.what),
            batch_text(one.batch),
            *(figure(1e3 * value) for value in (one.median, one.p90, one.p99)),
            rate(one.samples_per_second),
            f"{one.at_once} of {one.streams}",
            *("-" if size is None else f"{size / 2**20:.0f}" for size in (one.host_bytes, one.device_bytes)),
            str(one.runs),
        )
    return made


def not_run(found: Iterable[NotRun]) -> Table:
    """The backends that this machine cannot run, and what they need."""
    made = table("Not run here", "how", "why", "how to get it", names=3)
    for one in found:
        made.add_row(cell(one.what), cell(one.why, longest=LONGEST_PROOF), cell(one.how, longest=LONGEST_PROOF))
    return made


def estimated(found: Iterable[Estimated]) -> Table:
    """The estimated time on GPUs. The ratios are more reliable than the times."""
    title = "Estimated, not run: peaks and bandwidth from data sheets, casts and the fusions that they break"
    made = table(title, "GPU", "batch", "FP32, us", "FP16", "with the plan", "FP32 / FP16", "FP32 / plan", names=1)
    for one in found:
        times = (f"{1e6 * value:.3g}" for value in (one.fp32, one.fp16, one.plan))
        ratios = (f"{one.fp32 / value:.2f} x" if value else "-" for value in (one.fp16, one.plan))
        made.add_row(cell(one.gpu), batch_text(one.batch), *times, *ratios)
    return made


def abilities(found: Iterable[Ability]) -> Table:
    """What this machine can do and what it lacks."""
    made = table("This machine", "can", "", "with", "how to get it", names=4)
    for ability in found:
        made.add_row(ability.what, "yes" if ability.here else "no", cell(ability.with_), cell(ability.more))
    return made


def refusals(found: Sequence[Refusal]) -> Table | str:
    """The nodes of a model that the installed builder refuses."""
    if not found:
        return "The builder that is installed takes every node of the model, or none is installed."
    made = table(f"{found[0].builder} refuses", "layer", "op", "what it says", names=3)
    for one in found:
        made.add_row(cell(one.layer), cell(one.op), cell(one.says, longest=LONGEST_PROOF))
    return made


def layers_by_type(graph: Graph) -> Table:
    """The number of layers by operator and role."""
    counts = Counter((layer.op, layer.role.value) for layer in graph.layers)
    made = table("Layers by type", "op", "role", "layers", names=2)
    for (op, role), count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        made.add_row(cell(op), role, str(count))
    return made


def model_line(graph: Graph) -> str:
    """The model in one line."""
    source = graph.source
    opset = graph.model.opset_imports.get("", 0)
    weights = sum(value.const_value.nbytes for value in graph.model.graph.initializers.values() if value.const_value)
    return (
        f"{plain(str(source.path))}: {len(graph.layers)} layers, {len(graph.candidates)} of them may be pinned, "
        f"opset {opset}, weights {weights / 2**20:.1f} MiB, sha256 {source.sha256[:12]}"
    )


def layer_list(graph: Graph) -> Table:
    """Every layer by its name, in topological order."""
    made = table("Layers", "name", "op", "role", "module", names=4)
    for layer in graph.layers:
        made.add_row(cell(layer.name), cell(layer.op), layer.role.value, cell(layer.module))
    return made


def conversion_warnings(converted: Converted) -> list[str]:
    """The warnings of a conversion that succeeded."""
    found = [
        f"the values of {plain(name)!r} pass 65504 and became infinite in FP16; pin the layer that reads them"
        for name in converted.unrepresentable
    ]
    for state, because in UNPROVEN.items():
        proofs = [proof for proof in converted.unproven if proof.state == state]
        if proofs:
            more = f" and {len(proofs) - 1} more pins" if len(proofs) > 1 else ""
            found.append(because.format(f"{plain(proofs[0].layer)!r}{more}", plain(proofs[0].because, LONGEST_PROOF)))
    if converted.engine:
        found += [plain(message) for message in converted.engine.warnings if not _is_answered(message, converted)]
    return found


def _is_answered(message: str, converted: Converted) -> bool:
    """Whether TensorRT warns of norms in FP16 although the plan keeps what it names, Reduce and Pow, in FP32.

    TensorRT-RTX 1.7.1 finds the pattern and does not look at the types.
    """
    if not any(text in message for text in ("layernorm nodes in FP16", "Running layernorm after self-attention")):
        return False
    named = [layer for layer in converted.graph.layers if layer.op == "Pow" or layer.op.startswith("Reduce")]
    return all(layer.name in converted.plan.fp32 for layer in named if layer.name in converted.graph.candidates)


def conversion(converted: Converted) -> list[Table | str]:
    """The proof of the pins, and the files that were written."""
    shown: list[Table | str] = []
    if converted.proofs:
        made = table("Pins in the engine", "layer", "state", "what shows it", names=3)
        for proof in converted.proofs:
            made.add_row(cell(proof.layer), proof.state, cell(proof.because, longest=LONGEST_PROOF))
        shown += [made, ""]
    for name, pin in converted.retention.added.items():
        shown.append(f"pinned besides: {plain(name)}, without which TensorRT undid {plain(pin)}")
    for name in converted.retention.guards:
        shown.append(f"guarded: {plain(name)}, which TensorRT computed in FP16 without")
    if converted.typed_onnx:
        shown.append(f"typed ONNX: {plain(str(converted.typed_onnx))} ({converted.casts} casts)")
    if converted.engine:
        engine = converted.engine
        profile = {name: [list(shape) for shape in shapes] for name, shapes in converted.profile.items()}
        shown += bindings({**converted.bindings, "profile": profile})
        shown.append(
            f"engine: {plain(str(engine.path))} ({engine.bytes / 2**20:.2f} MiB, {engine.builder}, "
            f"{sum(build.engine.seconds for build in converted.builds):.1f} s, {_builds(converted)}"
            f"{100 * converted.half_share:.0f} % of the float layers read FP16)"
        )
    return shown


def _builds(converted: Converted) -> str:
    count = len(converted.builds)
    return f"{count} builds, " if count > 1 else ""


def bindings(record: Mapping[str, Any]) -> list[str]:
    """The inputs and outputs of an engine, an input with the shapes that its profile takes."""
    shown = []
    for which, ranges in (("inputs", record.get("profile", {})), ("outputs", {})):
        for one in record.get(which, ()):
            low, usual, high = map(_sizes, ranges.get(one["name"], [one["shape"]] * 3))
            words = usual if low == high else f"{low} to {high}, usually {usual}"
            shown.append(f"{which[:-1]} {plain(str(one['name']))}: {one['type']} {words}")
    return shown


def _sizes(shape: Sequence[int | None] | None) -> str:
    """A shape as text, `?` for a size that is not known."""
    if shape is None:
        return "?"
    return "x".join("?" if size is None else str(size) for size in shape) or "scalar"


def engine(facts: Mapping[str, Any]) -> list[Table | str]:
    """The facts about an engine file."""
    size = f"{facts['bytes'] / 2**20:.2f} MiB"
    shown: list[Table | str] = [
        f"{plain(facts['path'])}: {facts['product']} engine, {size}, sha256 {facts['sha256'][:12]}"
    ]
    proof = facts["proof"]
    if not proof:
        shown.append("its layers can be read on a GPU only; convert writes them beside the engine as ENGINE.trt.json")
        return shown
    shown.append(f"built by {plain(str(proof['engine']['builder']))} from {plain(str(proof['model']['path']))}")
    held = ", ".join(f"{size / 2**20:.3g} MiB {kind}" for kind, size in proof.get("weight_bytes", {}).items())
    shown += bindings(proof)
    shown.append(f"{100 * proof.get('half_share', 0):.0f} % of the float layers read FP16; weights: {held or 'none'}")
    made = table("Pins", "layer", "state", "inputs", "weights", "outputs", "what shows it", names=6)
    for pin in proof["pins"]:
        of = (cell(", ".join(pin.get(key, ()))) for key in ("inputs", "weights", "outputs"))
        made.add_row(cell(pin["layer"]), cell(pin["state"]), *of, cell(pin["evidence"], longest=LONGEST_PROOF))
    shown += [f"guarded: {plain(name)}" for name in proof.get("guarded", ())]
    shown += [f"pinned besides: {plain(name)}, for {plain(pin)}" for name, pin in proof.get("added", {}).items()]
    types = table("Engine layers", "engine layer", "inputs", "constants", "outputs", names=4)
    for layer in proof["layers"]:
        types.add_row(cell(layer["name"]), *(cell(", ".join(layer[key])) for key in ("inputs", "constants", "outputs")))
    return [*shown, "", made, "", types]
