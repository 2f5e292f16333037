"""The JSON of results, which scripts may rely on, and the record of a run, which a report is made from."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from trt_helper.builder.proof import proof_json
from trt_helper.emulator.causes import cause
from trt_helper.emulator.compare import worst
from trt_helper.format.json_values import SCHEMA, Json, error_json, number, outputs_json, tolerance_json
from trt_helper.system import machine
from trt_helper.system.files import write_atomically
from trt_helper.system.versions import versions
from trt_helper.values import IntermediateError, Layer, LayerReport, Plan, Reading, TensorError, Tolerance

if TYPE_CHECKING:  # a report imports neither onnx nor the search
    import onnx_ir as ir

    from trt_helper.builder.convert import Converted
    from trt_helper.emulator.partial_sums import PartialSum
    from trt_helper.onnx_model.cost import Estimate
    from trt_helper.onnx_model.graph import Graph
    from trt_helper.search.located import Located


def layer_json(report: LayerReport, *, pinned: bool) -> Json:
    """What FP16 does to one layer, as `locate` and `compare` report it."""
    why, shown = cause(report)
    return {
        "name": report.layer.name,
        "op": report.layer.op,
        "role": report.layer.role.value,
        "module": report.layer.module,
        "accumulated": error_json(report.accumulated),
        "isolated": error_json(report.isolated),
        "overflow": report.overflow,
        "underflow": report.underflow,
        "read": number(report.read),
        "written": number(report.written),
        "weights_overflow": report.weights_overflow,
        "weights_underflow": report.weights_underflow,
        "cause": why,
        "cause_evidence": shown,
        "pinned": pinned,
    }


def located_json(located: Located) -> Json:
    """`locate --json`."""
    source = located.graph.source
    return {
        "schema": SCHEMA,
        "verdict": located.after.verdict.value,
        "runner": located.runner,
        "model": {"path": str(source.path), "sha256": source.sha256, "layers": len(located.graph.layers)},
        "tolerance": tolerance_json(located.tolerance),
        "metric": metric_json(located),
        "fp32_layers": list(located.graph.in_order(located.plan.fp32)),
        "bf16_layers": list(located.graph.in_order(located.plan.bf16)),
        "cures": [
            {
                rewrite.kind: rewrite.name,
                **({"as": rewrite.op} if rewrite.op else {}),
                "without": outputs_json(trial.outputs),
            }
            for rewrite, trial in located.without_rewrite.items()
        ],
        "minimal": located.minimal,
        "trials": len(located.trials),
        "inferences": located.inferences,
        "seconds": round(located.seconds, 3),
        "samples": list(located.samples),
        "held_out": list(located.held_out),
        "before": outputs_json(located.before.outputs),
        "after": outputs_json(located.after.outputs),
        "excess": {"before": number(located.before.error_ratio), "after": number(located.after.error_ratio)},
        "not_computed": {"before": located.before.why, "after": located.after.why},
        "because": located.because,
        **({"diagnosis": located.diagnosis.value} if located.diagnosis else {}),
        "kernels": {
            "verdicts": {reading.value: trial.verdict.value for reading, trial in located.by_reading.items()},
            "excess": {reading.value: number(trial.error_ratio) for reading, trial in located.by_reading.items()},
            "pins": {"typical": located.pins_by_one, "robust": len(located.plan)}
            if located.pins_by_one is not None
            else None,
            "margin": located.margin,
            "partial_sums": _sums_json(located.partial_sums),
        },
        "judged": {"layers": len(located.graph.candidates), "not": dict(located.graph.unjudged)},
        "share": share_json(located.graph, located.plan, located.estimate),
        "per_sample": _per_sample_json(located),
        "search": list(_search_json(located)),
        "pins": [_pin_json(located, pin) for pin in located.pinned_layers],
        "layers": [layer_json(r, pinned=r.layer.name in located.plan.fp32) for r in located.layers],
        **(
            {"inside": [_intermediate_json(one) for one in located.intermediate_errors]}
            if located.intermediate_errors
            else {}
        ),
        "curve": [
            {
                "pins": p.pins,
                "foreseen": number(p.predicted),
                "measured": number(p.measured or 0.0) if p.measured is not None else None,
            }
            for p in located.curve
        ],
        "warnings": list(located.warnings),
        **setting_json(located.graph),
    }


def _intermediate_json(one: IntermediateError) -> Json:
    return {
        "layer": one.layer,
        "tensor": one.tensor,
        "kernel": one.kernel,
        **({"tactic": one.tactic} if one.tactic else {}),
        "engine": error_json(one.engine),
        "emulated": error_json(one.emulated),
        "farther": one.is_farther,
    }


def setting_json(graph: Graph) -> Json:
    """What was judged and what the figures depend on."""
    return {
        "opset": graph.model.opset_imports.get("", 0),
        "inputs": [_value_json(graph, value) for value in graph.inputs],
        "outputs": [_value_json(graph, value) for value in graph.model.graph.outputs],
        "versions": {**versions(), **{name: version(name) for name in ("numpy", "onnx", "onnx-ir")}},
        "platform": machine.platform_line(),
    }


def record_path(beside: Path) -> Path:
    """Where the record of a run lies: `fp32_layers.run.json` beside `fp32_layers.yaml`."""
    return beside.with_name(f"{beside.stem}.run.json")


def write_record(path: Path, result: Json, command: str, argv: Sequence[str]) -> None:
    """Write the run record: `result` as `--json` shows it, what gave it, and when. Raises OutputError."""
    record = {
        **result,
        "command": command,
        "argv": list(argv),
        "reproduce": shlex.join(argv),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    write_atomically(path, (json.dumps(record, allow_nan=False, indent=1) + "\n").encode())


def share_json(graph: Graph, plan: Plan, estimate: Estimate | None = None) -> Json:
    """The number of layers that stay in FP32, and what that costs in estimated seconds a run."""
    return {
        "layers": len(graph.candidates),
        "pinned": len(plan.fp32),
        "estimate": None if estimate is None else asdict(estimate),
    }


def _search_json(located: Located) -> Iterator[Json]:
    """Each trial with the pins that it has more and less than the last one before it that did not pin everything."""
    every, before = frozenset(located.graph.candidates), frozenset[str]()
    for trial in located.trials:
        whole = trial.plan.fp32 == every
        now = before if whole else trial.plan.fp32
        yield {
            "pins": len(trial.plan),
            "every_layer": whole,
            "added": sorted(now - before),
            "removed": sorted(before - now),
            "because": trial.because,
            "verdict": trial.verdict.value,
            "excess": number(trial.error_ratio),
            "not_computed": trial.why,
            "outputs": {e.name: {"max": number(e.max), "non_finite": e.non_finite} for e in trial.outputs},
        }
        before = now


def _per_sample_json(located: Located) -> list[Json]:
    """Every output of every sample, before and after; before is not known where cures changed the graph."""
    found = {**located.per_sample, **({"before": ()} if located.without_rewrite else {})}
    return [
        {
            "source": source,
            "held_out": source in located.held_out,
            **{which: outputs_json(errors[index]) if errors else {} for which, errors in found.items()},
        }
        for index, source in enumerate(located.samples)
    ]


def metric_json(located: Located) -> Json | None:
    """The metric that decided instead of the tolerance, if one did."""
    if located.metric is None:
        return None
    return {"function": located.metric.name, "threshold": located.metric.threshold}


def _pin_json(located: Located, pin: Layer) -> Json:
    without = located.without(pin.name)
    why, shown = located.cause(pin.name)
    return {
        "name": pin.name,
        "precision": "bf16" if pin.name in located.plan.bf16 else "fp32",
        "op": pin.op,
        "module": pin.module,
        "cause": why,
        "cause_evidence": shown,
        "without": outputs_json(without.outputs) if without else {},
        "without_excess": number(without.error_ratio) if without else None,
        "not_computed": without.why if without else "",
    }


def _sums_json(sums: Sequence[PartialSum]) -> list[Json]:
    return [{"layer": s.layer, "op": s.op, "terms": s.terms, "largest": number(s.largest)} for s in sums]


def compared_json(
    graph: Graph,
    plan: Plan,
    tolerance: Tolerance,
    samples: Sequence[tuple[str, Sequence[TensorError]]],
    reports: Sequence[LayerReport],
    reading: Reading,
    sums: Sequence[PartialSum],
) -> Json:
    """`compare --json`: every output of every sample, and every layer."""
    passed = all(error.passes(tolerance) for _, outputs in samples for error in outputs)
    found = outputs_json(worst(errors, tolerance) for errors in zip(*(outputs for _, outputs in samples), strict=True))
    changed = plan.fp32 or plan.bf16 or graph.rewrites
    return {
        "schema": SCHEMA,
        "verdict": "pass" if passed else "fail",
        "runner": "emulate",
        "model": {"path": str(graph.source.path), "sha256": graph.source.sha256, "layers": len(graph.layers)},
        "tolerance": tolerance_json(tolerance),
        "fp32_layers": list(graph.in_order(plan.fp32)),
        **({} if changed else {"before": found}),
        "after": found,
        "samples": [{"source": source, "outputs": outputs_json(errors)} for source, errors in samples],
        "share": share_json(graph, plan),
        "layers": [layer_json(report, pinned=report.layer.name in plan.fp32) for report in reports],
        "kernels": {"reading": reading.value, "partial_sums": _sums_json(sums)},
        **setting_json(graph),
    }


def converted_json(converted: Converted) -> Json:
    """`convert --json`."""
    engine = converted.engine
    return {
        "schema": SCHEMA,
        "model": {"path": str(converted.graph.source.path), "sha256": converted.graph.source.sha256},
        "fp32_layers": list(converted.graph.in_order(converted.plan.fp32)),
        "casts": converted.casts,
        "unrepresentable": list(converted.unrepresentable),
        "typed_onnx": str(converted.typed_onnx) if converted.typed_onnx else None,
        "engine": {
            "path": str(engine.path),
            "bytes": engine.bytes,
            "sha256": engine.sha256,
            "builder": engine.builder,
            "seconds": round(engine.seconds, 3),
            "half_share": round(converted.half_share, 4),
            "warnings": list(engine.warnings),
        }
        if engine
        else None,
        "pins": [proof_json(proof) for proof in converted.proofs],
        "profile": {name: [list(shape) for shape in shapes] for name, shapes in converted.profile.items()},
        **converted.bindings,
        "added": dict(converted.retention.added),
        "guarded": sorted(converted.retention.guards),
        "builds": len(converted.builds),
    }


def graph_json(graph: Graph) -> Json:
    """`inspect --json` of a model."""
    return {
        "schema": SCHEMA,
        "model": {"path": str(graph.source.path), "sha256": graph.source.sha256, "layers": len(graph.layers)},
        "opset": graph.model.opset_imports.get("", 0),
        "inputs": [_value_json(graph, value) for value in graph.inputs],
        "outputs": [_value_json(graph, value) for value in graph.model.graph.outputs],
        "layers": [
            {
                "name": layer.name,
                "op": layer.op,
                "role": layer.role.value,
                "module": layer.module,
                "parents": list(layer.parents),
                "children": list(layer.children),
            }
            for layer in graph.layers
        ],
        "folded": dict(graph.aliases),
    }


def _value_json(graph: Graph, value: ir.Value) -> Json:
    dtype = graph.io_types.get(value.name or "", value.dtype)
    shape = None if value.shape is None else [d if isinstance(d, int) else d.value for d in value.shape]
    return {"name": value.name, "type": dtype.name.lower() if dtype else None, "shape": shape}
