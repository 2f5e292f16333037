"""A graph and a plan go in; a typed ONNX model and an engine come out, and what the engine says of the pins."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trt_helper import builder
from trt_helper.builder import BuildSettings, EngineBuild, PinProof
from trt_helper.files import write_atomically
from trt_helper.graph import Graph
from trt_helper.shapes import Range
from trt_helper.typed import TypedModel, render, write
from trt_helper.values import Plan

HEAVY = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


@dataclass(frozen=True, eq=False)
class Converted:
    """A finished conversion. `engine` is None when only the typed model was asked for."""

    graph: Graph
    plan: Plan
    casts: int
    unrepresentable: tuple[str, ...]
    typed_onnx: Path | None
    engine: EngineBuild | None
    proofs: tuple[PinProof, ...]
    half_share: float  # share of the engine's float work that is half precision; 0 without an engine

    @property
    def unproven(self) -> tuple[PinProof, ...]:
        return tuple(proof for proof in self.proofs if not proof.proven)


def convert(
    graph: Graph,
    plan: Plan,
    *,
    engine: Path | None,
    typed_onnx: Path | None,
    profile: Mapping[str, Range],
    settings: BuildSettings,
    on_progress: Callable[[str, float], None] | None = None,
) -> Converted:
    """Render `plan`, write it to `typed_onnx` where that is given, and build `engine` where that is given.

    Raises OutputError, ModelError and BuildError; whatever is written is whole.
    """
    typed = render(graph, plan)
    if typed_onnx is not None:
        write(typed, typed_onnx)
    built: EngineBuild | None = None
    proofs: tuple[PinProof, ...] = ()
    share = 0.0
    if engine is not None:
        with tempfile.TemporaryDirectory(prefix="trt-helper-") as folder:
            source = typed_onnx
            if source is None:
                source = Path(folder) / "typed.onnx"
                write(typed, source)
            built = builder.build(
                source,
                engine,
                profiles=[profile] if profile else [],
                settings=settings,
                on_progress=on_progress,
            )
        proofs = _prove(graph, plan, typed, built)
        share = builder.half_share(built.layers)
        write_atomically(sidecar(engine), _sidecar(graph, plan, built, proofs, share, profile))
    return Converted(graph, plan, typed.casts, typed.unrepresentable, typed_onnx, built, proofs, share)


def _prove(graph: Graph, plan: Plan, typed: TypedModel, built: EngineBuild) -> tuple[PinProof, ...]:
    pins = [name for name in graph.candidates if name in plan.fp32]
    heavy = frozenset(layer.name for layer in graph.layers if layer.op in HEAVY) & plan.fp32
    casts = frozenset(node.name or "" for node in typed.model.graph if node.op_type == "Cast")
    return builder.prove(pins, built.layers, heavy, casts=casts)


def sidecar(engine: Path) -> Path:
    """Where the proof of an engine lies: `model.trt.json` beside `model.trt`."""
    return engine.with_name(f"{engine.name}.json")


def _sidecar(
    graph: Graph,
    plan: Plan,
    built: EngineBuild,
    proofs: tuple[PinProof, ...],
    share: float,
    profile: Mapping[str, Range],
) -> bytes:
    record: dict[str, Any] = {
        "schema": 1,
        "engine": {
            "file": built.path.name,
            "bytes": built.bytes,
            "sha256": built.sha256,
            "builder": built.builder,
        },
        "model": {"path": str(graph.source.path), "sha256": graph.source.sha256},
        "profile": {name: [list(shape) for shape in shapes] for name, shapes in profile.items()},
        "fp32_layers": sorted(plan.fp32),
        "half_share": round(share, 4),
        "pins": [proof_json(proof) for proof in proofs],
        "layers": [
            {
                "name": layer.name,
                "onnx": list(layer.onnx_layers),
                "inputs": [tensor.dtype for tensor in layer.inputs],
                "constants": [tensor.dtype for tensor in layer.constants],
                "outputs": [tensor.dtype for tensor in layer.outputs],
            }
            for layer in built.layers
        ],
        "warnings": list(built.warnings),
    }
    return (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode()


def proof_json(proof: PinProof) -> dict[str, Any]:
    """One pin as the engine shows it."""
    return {
        "layer": proof.layer,
        "state": proof.state,
        "engine_layers": list(proof.engine_layers),
        "types": list(proof.types),
        "evidence": proof.evidence,
    }
