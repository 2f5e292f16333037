"""Turn TensorRT's failure messages into errors that say what is wrong and what to do. Does not import TensorRT.

The builder never raises: it logs and returns None. On every machine without a GPU the log repeats a CUDA complaint,
and the parser refuses an unsupported ONNX node with the single word `false`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from trt_helper.builder.settings import BuildSettings
from trt_helper.errors import BuildError, MachineError, ModelError, TrtHelperError

INSTALL = "pip install 'trt-helper[rtx]'"
MIB = 1024 * 1024

_NOISE = re.compile(r"checkMacros\.cpp::catchCudaError.*cudaError 35|^Thread context has not been set", re.DOTALL)
_SOURCE = re.compile(r"^\w+\.[ch]pp:\d+: ")
_REASON = re.compile(r"Error Code \d+: [^(]*\((?P<reason>.*)\)\s*$", re.DOTALL)
_PLACE = re.compile(r"[.\s]*In \w+ at /\S+")
_MYELIN_PLACE = re.compile(r"\[\w+\.\w+:\d+: \w+\] ")
_ASSERTED = re.compile(r' && "(?P<said>[^"]+)"$')
_UNHELPFUL_WARNINGS = ("has Int64 binding", "current new logger is ignored", "used only at compile-time")

# Text in the log of TensorRT-RTX 1.7.1 -> what to do.
_FIXES = (
    (
        "must have same input types",
        "put a Cast before it, or build from the typed model that trt-helper writes",
    ),
    ("must be of same type", "put a Cast before it, or build from the typed model that trt-helper writes"),
    ("libnvinfer_lean", "leave VERSION_COMPATIBLE out: its library is not part of the wheel"),
    ("CUDA_SUCCESS", "REFIT and STRIP_PLAN need a GPU while building: leave them out here"),
    ("Target SM", "REFIT and STRIP_PLAN need a GPU while building: leave them out here"),
)
_REPORT = (
    "these are TensorRT's words; look the layer up with `trt-helper inspect`, "
    "or build with another TensorRT (--builder)"
)


@dataclass(frozen=True, slots=True)
class ParserComplaint:
    """One error of TensorRT's ONNX parser. `node` and `operator` are empty if no node is at fault."""

    code: str
    description: str
    node: str
    operator: str


def not_parsed(model: str, builder: str, complaints: Sequence[ParserComplaint]) -> TrtHelperError:
    """Return the error for a model that the parser refused; the first complaint is taken as the cause.

    Args:
        model: File name of the model.
        builder: Product and version, such as "TensorRT-RTX 1.7.1.116".
        complaints: The parser's errors in order.
    """
    first = complaints[0] if complaints else ParserComplaint("", "", "", "")
    layer = f"layer {first.node!r} ({first.operator})"
    if first.code.endswith("DESERIALIZE_FAILED") or not first.description:
        return empty_model(model)
    if "Plugin not found" in first.description:
        return BuildError(
            f"{builder} has no operator or plugin {first.operator!r}: {layer} of {model} cannot be built",
            fix=f"give its library with --plugin, or export the model without {first.operator}",
        )
    why = complaint_text(first)
    if first.operator and (not why or first.code.endswith("UNSUPPORTED_NODE")):
        said = f": {why}" if why else ""
        return BuildError(
            f"{builder} does not support {layer} of {model}{said}",
            fix=f"export the model without this {first.operator}",
        )
    if "Failed to import initializer" in why:
        return ModelError(
            f"{model} has weights that cannot be read: {why.rpartition(': ')[2]!r}",
            fix="put the file with its external data beside it, as it was exported",
        )
    if not first.operator:
        return BuildError(f"{builder} refuses {model}: {why}", fix=_fix(why))
    return BuildError(f"{builder} refuses {layer} of {model}: {why}", fix=_fix(why))


def complaint_text(complaint: ParserComplaint) -> str:
    """The parser's own words; empty where it only says `false`."""
    return "" if complaint.description == "false" else reason(_invalid_node(complaint.description))


def empty_model(model: str) -> ModelError:
    """Return the error for a file that is no ONNX model or has no layers.

    TensorRT parses both into an empty network without complaint.
    """
    return ModelError(
        f"{model} holds no ONNX graph with layers and outputs",
        fix="check that it is the exported .onnx file, whole: `trt-helper inspect` reads it",
    )


def not_built(model: str, builder: str, errors: Iterable[str], settings: BuildSettings) -> TrtHelperError:
    """Return the error for a build that returned None.

    Args:
        model: File name of the model.
        builder: Product and version.
        errors: The ERROR lines of the builder's log.
        settings: The settings of the build.
    """
    real = real_errors(errors)
    if any("generateForCurrent" in line for line in real):
        return MachineError(
            "the compute capability 'current' needs a GPU with a driver for this CUDA, and there is none",
            fix="name the GPU that will run the engine, for example 8.6 or 8.9",
        )
    if any("within workspace limit" in line for line in real) and settings.workspace is not None:
        return BuildError(
            f"a workspace of {settings.workspace / MIB:g} MiB is too small to build {model}",
            fix="allow more, or leave the workspace out",
        )
    why = "; ".join(dict.fromkeys(reason(line) for line in real[-2:])) or "it gave no reason"
    return BuildError(f"{builder} could not build {model}: {why}", fix=_fix(why))


def real_errors(errors: Iterable[str]) -> tuple[str, ...]:
    """Drop the complaints that this machine has no GPU.

    These are CUDA error 35, and on RTX 1.4 an error without any text.
    """
    return tuple(line for line in errors if not _NOISE.search(line) and reason(line))


def useful_warnings(warnings: Iterable[str], errors: Iterable[str] = ()) -> tuple[str, ...]:
    """Keep what a user should know about a successful build, without duplicates and TensorRT's source locations.

    Errors count too: TensorRT logs an error and continues when it ignores a flag.
    """
    kept = (
        _SOURCE.sub("", line).strip() for line in warnings if not any(words in line for words in _UNHELPFUL_WARNINGS)
    )
    return tuple(dict.fromkeys([*kept, *(reason(line) for line in real_errors(errors))]))


def _invalid_node(description: str) -> str:
    """Return the cause, which follows the line "Invalid Node - name"."""
    lines = [line for line in description.splitlines() if not _NOISE.search(line)]
    causes = [line for line in lines if not line.startswith("Invalid Node")]
    return causes[0] if causes else description


def reason(line: str) -> str:
    """Strip function, error code and source location from a TensorRT message."""
    found = _REASON.search(line)
    text = found["reason"] if found else _SOURCE.sub("", line)
    text = _MYELIN_PLACE.sub("", _PLACE.sub("", text))
    said = _ASSERTED.search(text)
    text = said["said"] if said else text
    return text.removeprefix("Assertion failed: ").strip().rstrip(".")


def _fix(why: str) -> str:
    return next((fix for words, fix in _FIXES if words in why), _REPORT)
