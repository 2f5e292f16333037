"""Export plans and engines in the formats of other tools: trtexec, TensorRT Engine Explorer, Netron."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from trt_helper.builder.failures import MIB
from trt_helper.builder.layer_info import EngineLayer, EngineTensor
from trt_helper.builder.settings import BuildSettings
from trt_helper.config.plan_file import Config
from trt_helper.errors import ConfigError
from trt_helper.inputs.shapes import Range
from trt_helper.onnx_model.graph import Graph
from trt_helper.onnx_model.precision import assign
from trt_helper.onnx_model.typed import TypedModel, render
from trt_helper.values import Plan, Role

PREFIX = "trt-helper."  # of the keys in metadata_props
_WORDS = {"FP64": "Double", "FP32": "Float", "FP16": "Half", "BF16": "BFloat16", "BOOL": "Bool"}
_BETWEEN_NAMES = "+"  # not U+001F: control characters break Engine Explorer's drawings (NVIDIA/TensorRT issue 2779)


def trtexec_typed(typed: Path, engine: Path, ranges: Mapping[str, Range], settings: BuildSettings) -> str:
    """Return the trtexec command line that builds the typed model.

    TensorRT 10 needs --stronglyTyped; TensorRT 11 accepts and ignores it.

    Args:
        typed: The typed model.
        engine: The engine file that trtexec writes.
        ranges: Input name to its (min, opt, max) shapes.
        settings: How the engine is built.
    """
    words = ["trtexec", f"--onnx={typed}", f"--saveEngine={engine}", "--stronglyTyped", *_common(ranges, settings)]
    return shlex.join([*words, "--profilingVerbosity=detailed", f"--exportLayerInfo={engine}.layers.json"])


def trtexec_weak(
    model: Path, engine: Path, graph: Graph, plan: Plan, ranges: Mapping[str, Range], settings: BuildSettings
) -> str:
    """Return the trtexec command line that builds the original model with weak typing: TensorRT 8.6 to 10 only.

    Each pin has its precision in --layerPrecisions and its output types in --layerOutputTypes. TensorRT may still
    ignore them within fused kernels (NVIDIA/TensorRT issues 3889, 3941, 4505).

    Args:
        model: The original model.
        engine: The engine file that trtexec writes.
        graph: The normalised model.
        plan: The pins.
        ranges: Input name to its (min, opt, max) shapes.
        settings: How the engine is built.

    Raises:
        ConfigError: trtexec cannot express the name of a pin.
    """
    names = [name for name in graph.candidates if name in plan.fp32]
    words = ["trtexec", f"--onnx={model}", f"--saveEngine={engine}", "--fp16", *_common(ranges, settings)]
    if names:
        words.append("--precisionConstraints=obey")
        words.append(f"--layerPrecisions={_spec(graph, names, types=False)}")
        words.append(f"--layerOutputTypes={_spec(graph, names, types=True)}")
    return shlex.join(words)


def _spec(graph: Graph, names: Sequence[str], types: bool) -> str:
    """Return `name:fp32` for each layer, `name:fp32+fp32` for two outputs; the last colon ends the name.

    A comma would end an entry, so it becomes `*`, which trtexec matches with any text. A name may have one `*`.
    """
    outputs = {layer.name: len(layer.outputs) for layer in graph.layers}
    entries = []
    for name in names:
        if name.count(",") > 1:
            raise ConfigError(
                f"trtexec cannot be told of layer {name!r}: its specification is split at commas",
                fix="use the command for the typed model, which names no layers",
            )
        precisions = ["fp32"] * (outputs[name] if types else 1)
        entries.append(f"{name.replace(',', '*')}:{'+'.join(precisions)}")
    return ",".join(entries)


def _common(ranges: Mapping[str, Range], settings: BuildSettings) -> list[str]:
    words = [] if settings.tf32 else ["--noTF32"]
    if settings.workspace is not None:
        words.append(f"--memPoolSize=workspace:{settings.workspace / MIB:g}")
    if (level := settings.extra.get("builder_optimization_level")) is not None:
        words.append(f"--builderOptimizationLevel={level}")
    if settings.timing_cache is not None:
        words.append(f"--timingCacheFile={settings.timing_cache}")
    for index, which in enumerate(("min", "opt", "max")):
        shapes = [f"{name}:{'x'.join(map(str, shape[index]))}" for name, shape in ranges.items()]
        if shapes:
            words.append(f"--{which}Shapes={','.join(shapes)}")
    return words


def engine_explorer(layers: Sequence[EngineLayer]) -> bytes:
    """Return the layers as JSON in the format of `trtexec --exportLayerInfo` of TensorRT 10, for Engine Explorer.

    Works for every engine, also of TensorRT-RTX: the layers come from its builder or inspector.
    """
    produced = {tensor.name for layer in layers for tensor in layer.outputs}
    consumed = {tensor.name for layer in layers for tensor in layer.inputs}
    tensors = (tensor for layer in layers for tensor in (*layer.inputs, *layer.outputs))
    borders = dict.fromkeys(tensor.name for tensor in tensors if tensor.name not in produced & consumed)
    record = {"Layers": [_layer(layer) for layer in layers], "Bindings": list(borders)}
    return (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode()


def _layer(layer: EngineLayer) -> dict[str, Any]:
    return {
        "Name": layer.name,
        "LayerType": layer.kind,
        "Inputs": [_tensor(tensor) for tensor in layer.inputs],
        "Outputs": [_tensor(tensor) for tensor in layer.outputs],
        "Constants": [_tensor(tensor) for tensor in layer.constants],
        "TacticName": layer.tactic,
        "Metadata": _BETWEEN_NAMES.join(f"[ONNX Layer: {name}]" for name in layer.onnx_layers),
    }


def _tensor(tensor: EngineTensor) -> dict[str, Any]:
    word = _WORDS.get(tensor.dtype) or tensor.dtype.capitalize() or "None"
    return {"Name": tensor.name, "Location": "Device", "Dimensions": list(tensor.shape), "Format/Datatype": word}


def annotated(graph: Graph, plan: Plan, config: Config) -> TypedModel:
    """Return the typed model with notes on each layer that Netron shows.

    The notes are metadata: precision, pin, and from the config's evidence the cause and the error without the pin.
    """
    typed = render(graph, plan)
    reduced = assign(graph, plan).layers
    layers = {layer.name: layer for layer in graph.layers}
    evidence = config.evidence.get("layers")
    for node in ir.traversal.RecursiveGraphIterator(typed.model.graph):
        layer = layers.get(node.name or "")
        if layer is not None and layer.role is not Role.FIXED:
            _note(node, "precision", reduced[layer.name].name if layer.name in reduced else "FP32")
        if layer is not None and layer.name in plan.fp32:
            _note(node, "pinned", "yes")
        known = evidence.get(node.name) if isinstance(evidence, Mapping) else None
        if isinstance(known, Mapping):
            for key in ("cause", "max-error-without"):
                if known.get(key) is not None:
                    _note(node, key, str(known[key]))
        if layer is None and node.op_type == "Cast":
            _note(node, "precision", "cast, where precision changes")
    return typed


def _note(node: ir.Node, key: str, text: str) -> None:
    node.metadata_props[PREFIX + key] = text
