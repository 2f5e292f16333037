"""Convert a graph and a plan into a typed ONNX model and an engine whose pins are proven.

After each build the pins are looked up in the engine. For a pin that the compiler did not keep in FP32,
`RetentionSearch` (`pin_retention`) adds a guard or the pin of a neighbour, and the engine is built again. If a pin is
still computed in FP16 after that, the conversion fails. The engine gets its final name only after its pins were
checked; the proof is written beside it (`sidecar`).
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from secrets import token_hex
from typing import Any

import onnx_ir as ir

from trt_helper import __version__
from trt_helper.builder.build import build
from trt_helper.builder.engine import EngineBuild
from trt_helper.builder.layer_info import half_share
from trt_helper.builder.pin_retention import Retention, RetentionSearch, guard
from trt_helper.builder.proof import PinProof, proof_json, prove
from trt_helper.builder.requested_precision import requested_precisions
from trt_helper.builder.settings import BuildSettings
from trt_helper.errors import BuildError, OutputError
from trt_helper.inputs.shapes import Range
from trt_helper.onnx_model.graph import Graph
from trt_helper.onnx_model.typed import TypedModel, render, state_conditions, write
from trt_helper.system.files import PREFIX, cannot_write, make_folder_of, sha256_of, write_atomically
from trt_helper.values import LayerName, Plan, ReducedPrecision


@dataclass(frozen=True, eq=False)
class Build:
    """One engine and the proofs of its pins."""

    retention: Retention
    typed_sha256: str  # of the typed model that TensorRT parsed
    engine: EngineBuild
    proofs: tuple[PinProof, ...]


@dataclass(frozen=True, eq=False)
class Converted:
    """A finished conversion. `engine` is None if only the typed model was requested."""

    graph: Graph
    plan: Plan  # the plan as built: with the added pins of `retention`
    casts: int  # Cast nodes in the typed model
    unrepresentable: tuple[str, ...]  # initializers with values beyond FP16's range, which became inf
    typed_onnx: Path | None
    builds: tuple[Build, ...]  # in order; the last one is the engine; empty without an engine
    engine: EngineBuild | None
    proofs: tuple[PinProof, ...]
    half_share: float  # share of the engine layers with float operands that read FP16, 0 to 1; 0 without an engine
    profile: Mapping[str, Range] = field(default_factory=dict)  # of the dynamic inputs

    @property
    def bindings(self) -> dict[str, list[dict[str, Any]]]:
        """The `inputs` and `outputs` of the engine as JSON values: name, type, and sizes, None where dynamic."""

        def one(value: ir.Value) -> dict[str, Any]:
            dtype = self.graph.io_types.get(value.name or "", value.dtype)
            shape = None if value.shape is None else [size if isinstance(size, int) else None for size in value.shape]
            return {"name": value.name, "type": dtype.name.lower() if dtype else "", "shape": shape}

        sides = {"inputs": self.graph.model.graph.inputs, "outputs": self.graph.model.graph.outputs}
        return {side: [one(value) for value in values] for side, values in sides.items()}

    @property
    def retention(self) -> Retention:
        """The guards and added pins that the engine was built with."""
        return self.builds[-1].retention if self.builds else Retention()

    @property
    def unproven(self) -> tuple[PinProof, ...]:
        """The proofs of the pins that are not proven to be FP32."""
        return tuple(proof for proof in self.proofs if not proof.proven)


NO_PROFILE: Mapping[str, Range] = {}
DEFAULT_SETTINGS = BuildSettings()


def convert(
    graph: Graph,
    plan: Plan,
    *,
    engine: Path | None = None,
    typed_onnx: Path | None = None,
    profile: Mapping[str, Range] = NO_PROFILE,
    settings: BuildSettings = DEFAULT_SETTINGS,
    guards: Sequence[LayerName] = (),
    on_progress: Callable[[str, float], None] | None = None,
) -> Converted:
    """Render `plan`, write the typed model, and build the engine with proven pins.

    Every file that is written is complete. `engine` is replaced only after its pins were checked.

    Args:
        graph: The normalised model.
        plan: The pins; all other layers are FP16 or BF16.
        engine: The engine file to write; None builds no engine.
        typed_onnx: The typed model to write; None writes none.
        profile: Input name to its (min, opt, max) shapes; empty for a model without dynamic dimensions.
        settings: How the engine is built.
        guards: Pins that an earlier conversion had to guard. With them one build is usually enough.
        on_progress: Called with TensorRT's build phase and a fraction in [0, 1].

    Returns:
        The plan and the typed model as built, every build that was tried, and the proofs of the last one.

    Raises:
        OutputError: A file cannot be written.
        ModelError: The typed model is not valid.
        BuildError: The build failed, the engine computes a pin in FP16 whatever is tried, or the engine is all FP32
            although the plan leaves layers in FP16.
        TrtHelperError: The other errors of `builder.build.build`.
    """
    if engine is None:
        typed = render(graph, plan)
        guard(typed, guards)
        state_conditions(typed.model)
        if typed_onnx is not None:
            write(typed, typed_onnx)
        return Converted(graph, plan, typed.casts, typed.unrepresentable, typed_onnx, (), None, (), 0.0, profile)
    with _temporary_engine(engine) as temporary:
        builds, typed = _builds(graph, plan, guards, temporary, profile, settings, on_progress)
        last = builds[-1]
        plan = last.retention.plan(plan)
        _require_pins(last)
        _require_half(graph, plan, last.engine)
        built = replace(last.engine, path=engine)
        share = half_share(built.layers)
        converted = Converted(
            graph, plan, typed.casts, typed.unrepresentable, typed_onnx, builds, built, last.proofs, share, profile
        )
        if typed_onnx is not None:
            write(typed, typed_onnx)
        write_atomically(sidecar(engine), _sidecar(converted, profile, settings))
        try:
            temporary.replace(engine)
        except OSError as error:
            raise cannot_write(engine, error) from error
    return converted


@contextmanager
def _temporary_engine(engine: Path) -> Iterator[Path]:
    """Yield a temporary name beside `engine`, and delete that file at the end.

    An OutputError about the temporary file is raised again with the name of `engine`.
    """
    make_folder_of(engine)
    path = engine.with_name(f"{PREFIX}{token_hex(6)}.trt")
    try:
        yield path
    except OutputError as error:
        raise OutputError(error.message.replace(str(path), str(engine)), fix=error.fix) from error
    finally:
        path.unlink(missing_ok=True)


def _builds(
    graph: Graph,
    plan: Plan,
    guards: Sequence[LayerName],
    engine: Path,
    profile: Mapping[str, Range],
    settings: BuildSettings,
    on_progress: Callable[[str, float], None] | None,
) -> tuple[tuple[Build, ...], TypedModel]:
    """Build until every pin is kept or no measure is left.

    The file `engine` and the returned typed model belong to the last build.
    """
    search = RetentionSearch(graph, plan, guards)
    builds: list[Build] = []
    with tempfile.TemporaryDirectory(prefix="trt-helper-") as folder:
        while True:
            retention = search.retention()
            typed = render(graph, retention.plan(plan))
            guard(typed, retention.guards)
            state_conditions(typed.model)
            source = Path(folder) / "typed.onnx"
            write(typed, source)
            built = build(
                source,
                engine,
                profiles=[profile] if profile else [],
                settings=settings,
                on_progress=on_progress,
            )
            proofs = _prove(graph, retention.plan(plan), typed, built)
            builds.append(Build(retention, sha256_of(source), built, proofs))
            if not search.escalate(proofs):
                return tuple(builds), typed


def _prove(graph: Graph, plan: Plan, typed: TypedModel, built: EngineBuild) -> tuple[PinProof, ...]:
    pins = [name for name in graph.candidates if name in plan.fp32]
    proofs = prove(pins, built.layers, requested_precisions(typed.model), program=built.program)
    if not built.layers or built.has_reduced:
        return proofs
    everywhere = "nothing that the engine reads, holds or writes is less than FP32"
    return tuple(proof if proof.proven else replace(proof, state="honoured", because=everywhere) for proof in proofs)


def _require_pins(build: Build) -> None:
    """Raise BuildError for a pin that the engine computes in FP16."""
    demoted = [proof for proof in build.proofs if proof.state == "demoted"]
    if demoted:
        more = f" and {len(demoted) - 1} more" if len(demoted) > 1 else ""
        raise BuildError(
            f"{build.engine.builder} does not keep {demoted[0].layer!r}{more} in FP32, neither guarded nor with a "
            f"neighbour: {demoted[0].because}",
            fix="pin the layers around it too, or build with another version of TensorRT; no engine was left",
        )


def _require_half(graph: Graph, plan: Plan, built: EngineBuild) -> None:
    """Raise BuildError for an engine that is all FP32 although the plan leaves layers in FP16."""
    half = [name for name in graph.candidates if name not in plan.fp32]
    if not built.layers or built.has_reduced:
        return
    if not half:
        if graph.candidates:
            return  # every layer was pinned
        raise BuildError(
            f"no layer of {graph.source.path} can be FP16, so the engine is FP32 throughout",
            fix="build it with TensorRT's own tools, or see `trt-helper inspect` for what keeps its layers in FP32",
        )
    reduced = ReducedPrecision.BF16 if set(half) <= plan.bf16 else ReducedPrecision.FP16
    raise BuildError(
        f"{len(half)} layers were to be {reduced.name}, and {built.builder} made all {len(built.layers)} layers of "
        f"the engine FP32 (first asked: {half[0]!r})",
        fix="build with another version of TensorRT, or pin every layer if FP32 is what you want; no engine was left",
    )


def sidecar(engine: Path) -> Path:
    """Return where the proof of an engine is stored: `model.trt.json` beside `model.trt`."""
    return engine.with_name(f"{engine.name}.json")


def _sidecar(converted: Converted, profile: Mapping[str, Range], settings: BuildSettings) -> bytes:
    built, graph, plan = converted.engine, converted.graph, converted.plan
    if built is None:
        raise ValueError("a conversion without an engine has no sidecar")
    record: dict[str, Any] = {
        "schema": 1,
        "trt-helper": __version__,
        "engine": {
            "file": built.path.name,
            "bytes": built.bytes,
            "sha256": built.sha256,
            "builder": built.builder,
            "settings": settings.stated(),
        },
        "model": {"path": str(graph.source.path), "sha256": graph.source.sha256},
        "typed": {"sha256": converted.builds[-1].typed_sha256, "casts": converted.casts},
        "profile": {name: [list(shape) for shape in shapes] for name, shapes in profile.items()},
        **converted.bindings,
        "fp32_layers": sorted(plan.fp32),
        "bf16_layers": sorted(plan.bf16),
        "half_share": round(converted.half_share, 4),
        "weight_bytes": dict(built.weight_bytes),
        "pins": [proof_json(proof) for proof in converted.proofs],
        "added": dict(converted.retention.added),
        "guarded": sorted(converted.retention.guards),
        "builds": [
            {
                "seconds": round(build.engine.seconds, 3),
                "pins": dict(sorted(Counter(proof.state for proof in build.proofs).items())),
                "added": sorted(build.retention.added),
                "guarded": sorted(build.retention.guards),
            }
            for build in converted.builds
        ],
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


def engine_evidence(converted: Converted) -> dict[str, Any]:
    """Return the part of a conversion that a config keeps, so that the next conversion needs one build.

    Returns:
        JSON values: the builder, the guards and added pins, and for each pin that was not kept without them the state
        and reason of the first build.
    """
    first, retention = converted.builds[0], converted.retention
    not_kept = {proof.layer: f"{proof.state}: {proof.because}" for proof in first.proofs if not proof.proven}
    return {
        "builder": first.engine.builder,
        "guards": sorted(retention.guards),
        "added": dict(sorted(retention.added.items())),
        "not-kept-without": {name: not_kept[name] for name in sorted(not_kept) if name in retention.retained},
    }
