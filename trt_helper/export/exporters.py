"""Export a module to ONNX with one of PyTorch's two exporters, dynamo or TorchScript.

Both results follow the same conventions: a layer is named after its module and operator (`layer1.0.conv1/Conv`), and
the module's path is in the metadata that `onnx_model.graph` reads.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes import common as passes
from onnxscript.optimizer import fold_constants

from trt_helper.errors import ModelError
from trt_helper.export.specs import Input
from trt_helper.export.target import SCRIPT, ExportTarget, flattened
from trt_helper.export.user_code import stdout_to
from trt_helper.onnx_model.graph import NAME_SCOPES

LOGGERS = ("torch", "onnxscript", "onnx_ir", "torch.onnx")
NO_MODULES = (SCRIPT, "_empty_nn_module_stack_from_metadata_hook")  # torch.export's scope of guards
FROZEN = "tensor to a Python boolean"  # in torch's warning that tracing fixes a decision
FOLDED = 1 << 12  # most elements of a folded tensor: sizes and axes, which TensorRT's parser needs as constants


@dataclass(frozen=True, eq=False)
class Attempt:
    """An exported model, and where tracing fixed a decision that may depend on the input."""

    model: ir.Model
    frozen: tuple[str, ...]  # torch's message with file and line


def export_with(
    exporter: str, target: ExportTarget, tensors: Sequence[torch.Tensor], outputs: list[str], opset: int, folder: Path
) -> Attempt:
    """Export with one exporter.

    Args:
        exporter: `dynamo` or `torchscript`.
        target: The module and its inputs.
        tensors: Example inputs, in the order of `target.inputs`.
        outputs: Names for the outputs.
        opset: The opset of the model.
        folder: For temporary files.

    Raises:
        ModelError: The exporter failed, or produced another opset.
    """
    make = _dynamo if exporter == "dynamo" else _torchscript
    try:
        with _silence() as said, torch.no_grad():
            model = make(target, tuple(tensors), outputs, opset, folder)
    except MemoryError:
        raise
    except (Exception, SystemExit) as error:  # the exporters raise anything that torch raises
        raise ModelError(
            f"the {exporter} exporter cannot export the module: {_reason(error)}",
            fix="--exporter names the other one; or change what it names in the module",
        ) from error
    found = model.opset_imports.get("", 0)
    if found != opset:
        raise ModelError(
            f"the {exporter} exporter gives opset {found}, not {opset}",
            fix=f"give --opset {found}, or --exporter torchscript",
        )
    _tidy(model)
    _name_inputs_sizes(model, target.inputs)
    _name_layers(model)
    frozen = dict.fromkeys(
        f"{str(w.message).splitlines()[0].split('. ')[0]} ({Path(w.filename).name}, line {w.lineno})"
        for w in said
        if FROZEN in str(w.message) and f"{os.sep}torch{os.sep}" not in w.filename
    )
    return Attempt(model, tuple(frozen))


@contextlib.contextmanager
def _silence() -> Iterator[list[warnings.WarningMessage]]:
    """Suppress the exporters' logs and prints, which are for their developers; yield the warnings."""
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings(record=True) as said, stdout_to(os.devnull):
            warnings.simplefilter("always")
            yield said
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _tidy(model: ir.Model) -> None:
    """Fold sizes and axes into constants, and give replacements of a node its module.

    No rule is applied that treats small numbers as zero.
    """
    scopes = {out.name: node.metadata_props.get(NAME_SCOPES) for node in model.graph for out in node.outputs}
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    fold_constants(model, input_size_limit=FOLDED, output_size_limit=FOLDED)
    passes.RemoveUnusedNodesPass()(model)
    for node in model.graph:
        known = next((scopes[out.name] for out in node.outputs if scopes.get(out.name)), None)
        if known and NAME_SCOPES not in node.metadata_props:
            node.metadata_props[NAME_SCOPES] = known


def _dynamo(
    target: ExportTarget, tensors: tuple[torch.Tensor, ...], outputs: list[str], opset: int, _: Path
) -> ir.Model:
    names = [given.name for given in target.inputs]
    options: dict[str, Any] = {
        "dynamo": True,
        "optimize": False,  # it treats an epsilon of 1e-8 or less as zero and removes it (onnxscript 0.7.2)
        "verbose": False,
        "opset_version": opset,
        "input_names": names,
        "output_names": outputs,
    }
    model: ir.Model
    if target.program is not None:
        model = torch.onnx.export(target.program, **options).model
        return model
    shapes: tuple[dict[int, Any] | None, ...] = tuple(
        {axis: torch.export.Dim.DYNAMIC(min=low, max=high) for axis, (low, high) in given.dynamic.items()} or None
        for given in target.inputs
    )
    dynamic = (shapes,) if any(shapes) else None  # forward is flat: one parameter, *tensors
    with flattened(target) as module:
        made = torch.onnx.export(module, tensors, dynamic_shapes=dynamic, **options)
    model = made.model
    return model


def _torchscript(
    target: ExportTarget, tensors: tuple[torch.Tensor, ...], outputs: list[str], opset: int, folder: Path
) -> ir.Model:
    path = folder / "traced.onnx"
    symbols = shared_symbols(target.inputs)
    with flattened(target) as module:
        traced = module
        # The exporter does not see the operators of a ScriptModule that a module calls.
        if isinstance(getattr(module, SCRIPT, None), torch.jit.ScriptModule):
            traced = torch.jit.trace(module, tensors, strict=False, check_trace=False)
        torch.onnx.export(
            traced,
            tensors,
            path,
            dynamo=False,
            opset_version=opset,
            input_names=[given.name for given in target.inputs],
            output_names=outputs,
            dynamic_axes={
                given.name: {axis: symbols[given.name, axis] for axis in given.dynamic}
                for given in target.inputs
                if given.dynamic
            },
        )
        modules = {name for name, _ in module.named_modules()}
    model = ir.load(path)
    ir.external_data.load_to_model(model)
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        scopes = _scopes(node.name or "", modules)
        node.metadata_props[NAME_SCOPES] = str([*scopes, node.name or ""])
    return model


def shared_symbols(inputs: Sequence[Input]) -> dict[tuple[str, int], str]:
    """Return a symbol for each dynamic axis: (input, axis) -> symbol.

    Axes with the same number, size and bounds get the same symbol, as all batch axes should.
    """
    symbols: dict[tuple[int, int, tuple[int, int]], str] = {}
    found: dict[tuple[str, int], str] = {}
    for given in inputs:
        for axis, bounds in given.dynamic.items():
            found[given.name, axis] = symbols.setdefault((axis, given.shape[axis], bounds), _symbol(given.name, axis))
    return found


def _symbol(name: str, axis: int) -> str:
    return re.sub(r"\W", "_", f"{name}_{axis}")


def _scopes(name: str, modules: set[str]) -> list[str]:
    """Turn `/layer1/layer1.0/conv1/Conv` into ['', 'layer1', 'layer1.0', 'layer1.0.conv1']; stop at unknown modules.

    The TorchScript exporter writes only the last part of each module's name, with the names of the lists it is in.
    """
    scopes = [""]
    for part in name.split("/")[1:-1]:
        here = scopes[-1]
        owners = [here.rsplit(".", depth)[0] for depth in range(here.count(".") + 1)] if here else []
        tries = [f"{owner}.{part}" for owner in owners] + [part]
        tries += [known for known in sorted(modules) if known.startswith(here) and known.endswith(f".{part}")]
        found = next((known for known in tries if known in modules), None)
        if found is None:
            break
        scopes.append(found)
    return scopes


def _name_inputs_sizes(model: ir.Model, inputs: Sequence[Input]) -> None:
    """Name a dynamic size after the first input and axis that has it: `image_0` instead of `s87`."""
    names: dict[str, str] = {}
    for given, value in zip(inputs, model.graph.inputs, strict=True):
        for axis, size in enumerate(value.shape or ()):
            if not isinstance(size, int) and size.value and size.value.isidentifier():
                names.setdefault(size.value, _symbol(given.name, axis))
    if not names:
        return
    known = re.compile(rf"\b({'|'.join(map(re.escape, names))})\b")
    values = [
        *model.graph.inputs,
        *(v for node in ir.traversal.RecursiveGraphIterator(model.graph) for v in node.outputs),
    ]
    for value in values:
        if value.shape is not None and any(not isinstance(size, int) for size in value.shape):
            value.shape = ir.Shape(
                [
                    s if isinstance(s, int) else known.sub(lambda m: names[m[0]], s.value or "") or None
                    for s in value.shape
                ]
            )


def _name_layers(model: ir.Model) -> None:
    """Name every layer `MODULE/OPERATOR`, with a number if a module has several.

    All other metadata of the exporter is removed.
    """
    taken: dict[str, int] = {}
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        scopes = [part for part in _listed(node.metadata_props.get(NAME_SCOPES, "[]"))[:-1] if part not in NO_MODULES]
        scopes = [part.removeprefix(f"{SCRIPT}.") for part in scopes] or [""]
        plain = f"{scopes[-1]}/{node.op_type}"
        number = taken.get(plain, 0)
        taken[plain] = number + 1
        node.name = f"{plain}_{number}" if number else plain
        node.metadata_props.clear()
        node.metadata_props[NAME_SCOPES] = str([*scopes, node.name])
        node.doc_string = None
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


def _listed(text: str) -> list[str]:
    return re.findall(r"'([^']*)'", text)


def _reason(error: BaseException) -> str:
    """Return the first line of the innermost cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
