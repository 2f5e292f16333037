"""Export a checkpoint to ONNX and check that the ONNX model has the module's outputs."""

from __future__ import annotations

import contextlib
import json
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch

from trt_helper import __version__
from trt_helper.errors import ModelError, UsageError
from trt_helper.export.archive import Kind
from trt_helper.export.checkpoint import Checkpoint, read_checkpoint
from trt_helper.export.decomposed import decomposed
from trt_helper.export.exporters import Attempt, export_with
from trt_helper.export.parity import PARITY, Parity, check, feed_of, fixed_axes, traced
from trt_helper.export.specs import Input
from trt_helper.export.target import ExportTarget, export_target
from trt_helper.export.user_code import importable, load_callable, user_code
from trt_helper.export.weights import load_weights
from trt_helper.onnx_model.graph import PROVENANCE, Graph, load_graph
from trt_helper.system.files import PREFIX, make_folder_of, require_writable

# In opset 20, LayerNormalization (since 17) and Gelu (since 20) are operators, and every TensorRT from 10.0 on can
# parse it. From 23 on attention is one operator too; TensorRT-RTX 1.7.1 builds it only for shapes it has a kernel for.
OPSET = 20
EXPORTERS = ("dynamo", "torchscript")
LARGEST = 1 << 20  # size of a dynamic dimension; a larger bound of a torch.export program means none
IN_ONE_FILE = (1 << 31) - (1 << 24)  # bytes of weights; protobuf is limited to 2 GiB
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Exported:
    """The result of an export.

    Attributes:
        path: The ONNX file; None if parity failed, in which case nothing was written.
        graph: The exported model.
        exporter: `dynamo` or `torchscript`.
        why: Why the first exporter was not used; empty if it was.
        opset: The model's opset.
        parity: The comparison with the module.
        weights: The entry of the checkpoint that the weights come from, dotted; empty for the file itself.
        checkpoint: The checkpoint file.
        warnings: Sentences for the user.
        provenance: The metadata that was written into the model.
    """

    path: Path | None
    graph: Graph
    exporter: str
    why: str
    opset: int
    parity: Parity
    weights: str
    checkpoint: Path
    warnings: tuple[str, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)


def export(
    checkpoint: Path,
    output: Path,
    *,
    model: str | None = None,
    model_args: Mapping[str, Any] | None = None,
    inputs: Sequence[Input] = (),
    opset: int = OPSET,
    exporter: str = "auto",
    key: str | None = None,
    allow_missing: bool = False,
    trust_checkpoint: bool = False,
    parity: float = PARITY,
    on_progress: Progress | None = None,
) -> Exported:
    """Export `checkpoint` to the ONNX file `output`.

    The file is written only if the ONNX model, in FP32, has the outputs of the module.

    Args:
        checkpoint: The checkpoint file.
        output: The ONNX file.
        model: FILE_OR_MODULE:CALLABLE, the module that the weights belong to; None if the checkpoint contains it.
        model_args: Arguments of the callable.
        inputs: The inputs of forward, with the dynamic axes.
        opset: The opset of the model.
        exporter: `auto`, `dynamo` or `torchscript`.
        key: The entry of the checkpoint that has the weights; None searches.
        allow_missing: Accept missing and unexpected weights.
        trust_checkpoint: Allow the checkpoint to run code.
        parity: Largest allowed difference over the largest |value| of the output.
        on_progress: Called with a label, the steps done and their number.

    Raises:
        UsageError: The options do not fit together or do not fit the checkpoint.
        ModelError: The checkpoint, the user's code or every exporter failed.
        MachineError: The checkpoint needs a package that is not installed.
        OutputError: `output` cannot be written.
    """
    if exporter not in ("auto", *EXPORTERS):
        raise UsageError(f"--exporter {exporter!r} is no exporter", fix="it is one of: auto, dynamo, torchscript")
    report = on_progress or (lambda _what, _done, _total: None)
    source = Path(model.rpartition(":")[0]) if model else None
    require_writable(output, keep=(checkpoint, source))
    with warnings.catch_warnings(), importable(model, by_libraries=trust_checkpoint):
        warnings.simplefilter("ignore")
        report("reading the checkpoint", 0, 1)
        read = read_checkpoint(checkpoint, trust=trust_checkpoint)
        content, entry, notes = module_of(read, model, model_args or {}, key, allow_missing)
        target = export_target(content, tuple(inputs))
        make_folder_of(output)
        with tempfile.TemporaryDirectory(prefix=PREFIX, dir=output.parent) as folder:
            wanted = _order(exporter, target, read.kind)
            made = _first_that_holds(target, wanted, opset, Path(folder) / output.name, parity, report)
            notes += [*made.notes, *decomposed(made.graph.layers, opset), *_noise(made.parity)]
            provenance = _provenance(target, read, model, entry, made, opset)
            if made.parity.holds:
                _annotate(made.graph.source.path, provenance)
                _move(made.graph.source.path, output)
    return Exported(
        output if made.parity.holds else None,
        load_graph(output) if made.parity.holds else made.graph,
        made.exporter,
        made.why,
        opset,
        made.parity,
        entry,
        checkpoint,
        tuple(notes),
        provenance,
    )


def module_of(
    read: Checkpoint, model: str | None, arguments: Mapping[str, Any], key: str | None, allow_missing: bool
) -> tuple[Any, str, list[str]]:
    """Build the module and load its weights.

    Args:
        read: The checkpoint.
        model: FILE_OR_MODULE:CALLABLE; None if the checkpoint contains the module.
        arguments: Arguments of the callable.
        key: The entry of the checkpoint that has the weights; None searches.
        allow_missing: Accept missing and unexpected weights.

    Returns:
        The module in FP32 on the CPU, the entry of the weights, and warnings.

    Raises:
        UsageError: The options do not fit the checkpoint.
        ModelError: The user's code failed, or the weights do not fit.
    """
    whole = read.kind in (Kind.SCRIPT, Kind.PROGRAM) or isinstance(read.content, torch.nn.Module)
    if model is None:
        found = read.content if whole else _only_module(read.content)
        if found is None:
            raise UsageError(
                f"{read.path} holds weights and no network",
                fix="say what they belong to: --model FILE.py:CALLABLE, a class or function that gives the module",
            )
        return _single(found), "", []
    content = read.content
    if read.kind is Kind.PROGRAM:
        raise UsageError(f"{read.path} is a torch.export program: it is its own network", fix="leave --model out")
    made = load_callable(model)
    if not isinstance(made, torch.nn.Module):
        if not callable(made):
            raise ModelError(
                f"{model} is a {type(made).__name__}", fix="name a class or function that gives the module"
            )
        with user_code(model, fix="give its arguments with --model-arg NAME=VALUE, or mend it"):
            made = made(**arguments)
    if not isinstance(made, torch.nn.Module):
        raise ModelError(
            f"{model} gives a {type(made).__name__}, not a torch.nn.Module",
            fix="name what gives the network itself; a small function of your own in a file will do",
        )
    fit, notes = load_weights(made, content, read.path, key=key, allow_missing=allow_missing)
    return _single(made), fit.entry, notes


def _only_module(content: Any) -> Any:
    """Return the first module in a trusted checkpoint such as {"model": module, "ema": None}."""
    if not isinstance(content, Mapping):
        return None
    modules = [value for value in content.values() if isinstance(value, torch.nn.Module)]
    return modules[0] if modules else None


def _single(module: Any) -> Any:
    """Return the module on the CPU with all floats in FP32, as the reference needs it."""
    if isinstance(module, torch.nn.Module):
        return module.cpu().float()
    return module


def _order(exporter: str, target: ExportTarget, kind: Kind) -> tuple[tuple[str, ...], str]:
    """Return the exporters to try, and the reason if the first of `EXPORTERS` is not among them."""
    if exporter != "auto":
        return (exporter,), ""
    if kind is Kind.SCRIPT:
        return ("torchscript",), "the checkpoint is a TorchScript file"
    if target.program is not None:
        return ("dynamo",), ""
    return EXPORTERS, ""


@dataclass(frozen=True, eq=False)
class _Made:
    exporter: str
    why: str
    graph: Graph
    parity: Parity
    notes: list[str]


def _first_that_holds(
    target: ExportTarget, order: tuple[tuple[str, ...], str], opset: int, path: Path, tolerance: float, report: Progress
) -> _Made:
    """Return the first export with the module's outputs, else the one with the smallest difference."""
    feed = feed_of(target.inputs, {given.name: given.shape for given in target.inputs}, "mixed")
    outputs = target.output_names(feed)
    examples = traced(target.inputs) if target.program is None else target.inputs
    tensors = target.tensors(feed_of(examples, {given.name: given.shape for given in examples}, "mixed"))
    exporters, why = order
    made: list[_Made] = []
    failures: list[ModelError] = []
    for exporter in exporters:
        report(f"exporting with {exporter}", 0, 1)
        file = path.parent / exporter / path.name
        file.parent.mkdir()
        try:
            attempt = export_with(exporter, target, tensors, outputs, opset, file.parent)
            _write(attempt.model, file)
            graph = load_graph(file)
            found = check(target, graph, tolerance, report)
        except ModelError as error:
            failures.append(_without(error, file))
            why = failures[-1].message
            continue
        made.append(_Made(exporter, why, graph, found, _notes(target, attempt)))
        if found.holds:
            return made[-1]
        why = f"what {exporter} exports answers differently (off by {found.worst:.2g} of the output's range)"
    if not made:
        said = "; ".join(error.message for error in failures)
        raise ModelError(said, fix=failures[0].fix if len(failures) == 1 else "change what they name in the module")
    return min(made, key=lambda one: (bool(one.parity.why), one.parity.worst))


def _without(error: ModelError, path: Path) -> ModelError:
    """Return `error` without the name of a temporary file."""
    return ModelError(error.message.replace(str(path), "the exported model"), fix=error.fix.replace(str(path), "it"))


def _notes(target: ExportTarget, attempt: Attempt) -> list[str]:
    notes = [f"the exporter fixed a decision: {said}" for said in attempt.frozen]
    fixed = fixed_axes(target.inputs, attempt.model)
    if fixed:
        notes.append(f"the exported model has one size only where --dynamic asked for several: {', '.join(fixed)}")
    return notes


def _write(model: ir.Model, path: Path) -> None:
    size = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    if size > IN_ONE_FILE:
        ir.save(model, path, external_data=f"{path.name}.data")
    else:
        ir.save(model, path)


def _annotate(path: Path, provenance: Mapping[str, Any]) -> None:
    """Write the provenance into the model's metadata; external weights are not touched."""
    proto = onnx.load(path, load_external_data=False)
    onnx.helper.set_model_props(proto, {PROVENANCE: json.dumps(provenance)})
    proto.producer_name, proto.producer_version = "trt-helper", __version__
    path.write_bytes(proto.SerializeToString())


def _move(path: Path, output: Path) -> None:
    data = path.with_name(f"{path.name}.data")
    with contextlib.suppress(FileNotFoundError):
        data.replace(output.with_name(data.name))
    path.replace(output)


def _noise(parity: Parity) -> list[str]:
    if not parity.explained:
        return []
    return [
        f"the answers differ by {parity.worst:.2g} of the range, more than {parity.tolerance:g}: FP32 itself is "
        f"off by {parity.noise:.2g} here (measured in FP64), as where large activations cancel"
    ]


def _ranges(inputs: Sequence[Input]) -> dict[str, Any]:
    """The smallest, usual and largest shape of each dynamic input, for the profile of an engine."""
    found = {}
    for given in inputs:
        if given.dynamic and all(high <= LARGEST for _, high in given.dynamic.values()):
            low, high = list(given.shape), list(given.shape)
            for axis, bounds in given.dynamic.items():
                low[axis], high[axis] = bounds
            found[given.name] = [low, list(given.shape), high]
    return found


def _provenance(
    target: ExportTarget, read: Checkpoint, model: str | None, entry: str, made: _Made, opset: int
) -> dict[str, Any]:
    return {
        "trt-helper": __version__,
        "torch": torch.__version__,
        "exporter": made.exporter,
        "why": made.why,
        "opset": opset,
        "checkpoint": {"file": read.path.name, "sha256": read.sha256, "entry": entry},
        "model": Path(model).name if model else None,
        "ranges": _ranges(target.inputs),
        "parity": {"of_range": float(f"{made.parity.worst:.3g}"), "samples": len(made.parity.checked)}
        if made.parity.holds
        else None,
    }
