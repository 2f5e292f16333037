"""The JSON of `gate --json`, which scripts may rely on. The same input gives the same bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trt_helper.format.json_values import SCHEMA, outputs_json, tolerance_json
from trt_helper.gate.baseline import Baseline
from trt_helper.gate.result import Gated
from trt_helper.system.versions import versions


def gated_json(results: Sequence[Gated], runner: str) -> dict[str, Any]:
    """The results of all configs, in the order in which they were given."""
    return {
        "schema": SCHEMA,
        "command": "gate",
        "verdict": max(results, key=lambda gated: gated.status).verdict,
        "runner": runner,
        "versions": versions(),
        "configs": [_config_json(gated) for gated in results],
    }


def _config_json(gated: Gated) -> dict[str, Any]:
    now = gated.now
    metric = gated.metric and dict(zip(("function", "threshold", "figure"), gated.metric, strict=True))
    return {
        "config": str(gated.config),
        "verdict": gated.verdict,
        "status": gated.status,
        "model": {"path": str(gated.model), "sha256": gated.sha256} if gated.model else None,
        "tolerance": tolerance_json(gated.tolerance),
        "metric": metric,
        "samples": list(gated.samples),
        "fp32_layers": sorted(now.plan.fp32) if now else [],
        "bf16_layers": sorted(now.plan.bf16) if now else [],
        "outputs": outputs_json(now.outputs) if now else {},
        "overflow": _overflow(now) if now else {},
        "baseline": dict(gated.before) if gated.before else None,
        "findings": [
            {
                "rule": finding.rule,
                "level": finding.level,
                "subject": finding.subject,
                "message": finding.message,
                "fix": finding.fix,
                "line": finding.line or None,
            }
            for finding in gated.findings
        ],
    }


def _overflow(now: Baseline) -> dict[str, int] | None:
    """Elements by layer; None for an engine, where overflow cannot be seen."""
    return None if now.overflow is None else dict(now.overflow)
