"""Parse TensorRT's text about an engine into layers with their types. Does not import TensorRT.

Three formats are supported: the `Layers:` dump that the builder of TensorRT-RTX 1.7.1 logs, the dump of 1.4
(TensorRT 10 style: `Format/Datatype`, no `Constants`), and the JSON of EngineInspector 10 and 11.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

FLOAT_TYPES = frozenset({"FP64", "FP32", "TF32", "FP16", "BF16", "FP8", "FP4"})

# TensorRT's one-word names of types. Longer descriptions ("Row major linear FP16 format") are searched
# with _TYPE_INSIDE.
_TYPE_WORDS = {
    "float": "FP32",
    "half": "FP16",
    "bfloat16": "BF16",
    "double": "FP64",
    "bool": "BOOL",
    "uint8": "UINT8",
    "fp8e4m3": "FP8",
}
_TYPE_INSIDE = re.compile(r"\b(FP64|FP32|TF32|FP16|BF16|FP8|FP4|U?INT\d+|BOOL)\b", re.IGNORECASE)

_RECORD = re.compile(r"^(?=Name: )", re.MULTILINE)
_HEAD = re.compile(r"Name: (?P<name>.*?), LayerType: (?P<kind>\w+)(?=, Inputs: \[)", re.DOTALL)
_END = re.compile(r"\n\n(?:I/O Tensors|Bindings|Engine Metadata):")
_FIELD = r"(?:^|, ){}: \[ ?(.*?)\](?=, (?:Inputs|Outputs|Constants|ParameterType|Origin|Tactic\w+|StreamId): ?)"
_LISTS = {name: re.compile(_FIELD.format(name), re.DOTALL) for name in ("Inputs", "Constants", "Outputs")}
_TENSOR = re.compile(
    r"\{ Name: (?P<name>.*?), (?:Location: \w+, )?Dimensions: \[(?P<shape>[-\d, ]*)\]"
    r"(?=, (?:Strides|Format|Datatype))(?:.*?, )?(?:Format/)?Datatype: (?P<dtype>[^,}]*?)(?:, | ?\})",
    re.DOTALL,
)
_ONNX_NAME = re.compile(r"\][\x00-\x1f]*\[ONNX Layer: ")
_IN_SUBGRAPH = re.compile(r" \((?:then_branch|else_branch|body)\) \| (?P<outermost>.+) \((?:If|Loop|Scan)\)$")
_IN_BRANCH = re.compile(r"(?P<inner>.+?)(?: \| [^|]* \((?:then|else)_branch\) \| .+? \(If\))+$")


@dataclass(frozen=True, slots=True)
class EngineTensor:
    """One operand of a kernel. `dtype` is FP32, FP16, INT64, ...; empty if TensorRT does not state it."""

    name: str
    dtype: str
    shape: tuple[int, ...] = ()  # -1 is a dynamic dimension

    @property
    def is_factor(self) -> bool:
        """Whether it has one element.

        Such a constant is a GEMM's alpha or beta, which is FP32 even if everything else is FP16 (seen on RTX 1.7.1).
        """
        return prod(self.shape) == 1


@dataclass(frozen=True, slots=True)
class EngineLayer:
    """One kernel of the engine and the ONNX layers of the main graph that were fused into it.

    Attributes:
        name: TensorRT's name of the kernel.
        kind: TensorRT's layer type, such as "kgen" or "runtime_fusion"; empty if only names are stated.
        onnx_layers: ONNX node names from the metadata.
        inputs: Tensors that the kernel reads.
        constants: Weights and scale factors; the dump of 1.4 does not list them.
        outputs: Tensors that the kernel writes.
        tactic: Name of the tactic; empty if it is not stated.
    """

    name: str
    kind: str
    onnx_layers: tuple[str, ...] = ()
    inputs: tuple[EngineTensor, ...] = ()
    constants: tuple[EngineTensor, ...] = ()
    outputs: tuple[EngineTensor, ...] = ()
    tactic: str = ""

    @property
    def weights(self) -> tuple[EngineTensor, ...]:
        """The float constants that are not scale factors."""
        return tuple(one for one in self.constants if one.dtype in FLOAT_TYPES and not one.is_factor)

    @property
    def operand_types(self) -> frozenset[str]:
        """The float types of the inputs and weights, without scale factors."""
        return float_types(self.inputs) | float_types(self.weights)


def parse_layers(text: str) -> tuple[EngineLayer, ...]:
    """Parse a `Layers:` dump or EngineInspector's JSON; the layers are in the engine's order.

    Raises:
        ValueError: The text is neither.
    """
    if text.lstrip().startswith(("{", "[")):
        return _from_json(text)
    head, found, rest = text.partition("Layers:\n")
    if not found or head.strip():
        raise ValueError(f"neither a layer dump nor JSON: {text[:40]!r}")
    records = _RECORD.split(_END.split(rest)[0])
    return tuple(_from_record(record.rstrip("\n")) for record in records if record.strip())


def half_share(layers: Iterable[EngineLayer]) -> float:
    """Return the share of the layers with float operands that read FP16, 0 to 1; 0 if there are none."""
    operands = [one.operand_types for one in layers if one.operand_types]
    return sum("FP16" in types for types in operands) / len(operands) if operands else 0.0


def float_types(tensors: Iterable[EngineTensor]) -> frozenset[str]:
    """Return the float types among `tensors`."""
    return frozenset(one.dtype for one in tensors if one.dtype in FLOAT_TYPES)


def type_name(text: str) -> str:
    """Return FP32, FP16, INT8, ... for TensorRT's description; empty for "N/A due to dynamic shapes"."""
    word = text.strip()
    if word.lower() in _TYPE_WORDS:
        return _TYPE_WORDS[word.lower()]
    inside = _TYPE_INSIDE.search(word)
    return inside.group(1).upper() if inside else ""


def onnx_names(metadata: str) -> tuple[str, ...]:
    """Split "[ONNX Layer: a][ONNX Layer: b]" into names without duplicates.

    A node of a branch has its own name, one of a loop's body that of the loop. Control characters can separate two
    names (U+001F on RTX). Names with brackets work; only a name that contains "][ONNX Layer: " is split wrongly.
    """
    inner = metadata.strip("\n").removeprefix("[ONNX Layer: ")
    if inner == metadata.strip("\n"):
        return ()
    names = _ONNX_NAME.split(inner.removesuffix("]"))
    return tuple(dict.fromkeys(_layer_name(name) for name in names))


def _layer_name(name: str) -> str:
    """Return relu for "relu | then (then_branch) | if0 (If)", and loop for "relu | b (body) | loop (Loop)"."""
    if branch := _IN_BRANCH.match(name):
        return branch.group("inner")
    found = _IN_SUBGRAPH.search(name)
    return found.group("outermost").rpartition(" | ")[2] if found else name


def _from_record(record: str) -> EngineLayer:
    """Parse one line of a dump. LAYER_NAMES_ONLY engines list only names; the other fields stay empty."""
    found = _HEAD.match(record)
    if not found:
        return EngineLayer(record.removeprefix("Name: "), "")
    body, _, metadata = record[found.end("kind") :].rpartition(", Metadata: ")
    tactic = re.search(r", TacticName: (.*?)(?:, (?:TacticValue|StreamId): |$)", body, re.DOTALL)
    return EngineLayer(
        found["name"],
        found["kind"],
        onnx_names(metadata),
        _tensors(_LISTS["Inputs"], body),
        _tensors(_LISTS["Constants"], body),
        _tensors(_LISTS["Outputs"], body),
        tactic.group(1) if tactic else "",
    )


def _tensors(field: re.Pattern[str], body: str) -> tuple[EngineTensor, ...]:
    listed = field.search(body)
    return tuple(
        EngineTensor(one["name"], type_name(one["dtype"]), _shape(re.findall(r"-?\d+", one["shape"])))
        for one in _TENSOR.finditer(listed.group(1) if listed else "")
    )


def _shape(sizes: Iterable[Any]) -> tuple[int, ...]:
    return tuple(int(size) for size in sizes)


def _from_json(text: str) -> tuple[EngineLayer, ...]:
    """Parse EngineInspector's JSON: a whole engine, a list of layers, or one layer."""
    try:
        found = json.loads(text, strict=False)  # the metadata contains raw control characters
    except json.JSONDecodeError as error:
        raise ValueError(f"not the JSON of an EngineInspector: {error}") from error
    if isinstance(found, Mapping):
        found = found.get("Layers", [found])
    return tuple(_from_object(one) for one in found)


def _from_object(one: str | Mapping[str, Any]) -> EngineLayer:
    if isinstance(one, str):  # LAYER_NAMES_ONLY
        return EngineLayer(one, "")
    constants = [*_operands(one.get("Constants", ()))]
    constants += [_weight(what, one[what]) for what in ("Weights", "Bias") if isinstance(one.get(what), Mapping)]
    return EngineLayer(
        str(one.get("Name", "")),
        str(one.get("LayerType", "")),
        onnx_names(str(one.get("Metadata", ""))),
        _operands(one.get("Inputs", ())),
        tuple(constants),
        _operands(one.get("Outputs", ())),
        str(one.get("TacticName", "")),
    )


def _weight(what: str, described: Mapping[str, Any]) -> EngineTensor:
    """Parse {"Type": "Half", "Count": 9408}, as convolutions of 8.5 to 10.x describe their weights."""
    return EngineTensor(what, type_name(str(described.get("Type", ""))), _shape([described.get("Count", -1)]))


def _operands(listed: Sequence[Any]) -> tuple[EngineTensor, ...]:
    return tuple(
        EngineTensor(str(one.get("Name", "")), type_name(_dtype(one)), _shape(one.get("Dimensions", ())))
        for one in listed
        if isinstance(one, Mapping)
    )


def _dtype(tensor: Mapping[str, Any]) -> str:
    """Return `Datatype` or `DataType` of 11 and RTX 1.7, or `Format/Datatype` of 8.5 to 10.x."""
    lower = {key.lower(): value for key, value in tensor.items()}
    return str(lower.get("datatype", lower.get("format/datatype", "")))
