"""`trt-helper export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trt_helper.cli import options

if TYPE_CHECKING:
    from rich.table import Table

    from trt_helper.export.run import Exported


def run(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="What was saved: .pt, .safetensors, .pt2.", show_default=False)
    ],
    model: Annotated[
        str | None,
        typer.Option(
            metavar="FILE_OR_MODULE:CALLABLE", help="The class or function that gives the module.", show_default=False
        ),
    ] = None,
    model_arg: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="An argument for it.", show_default=False)
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="NAME:SHAPE[:TYPE]", help="Such as x:1x3x224x224.", show_default=False),
    ] = None,
    dynamic: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME:AXIS=MIN..MAX,...", help="Sizes that vary: x:0=1..32,2=64..512", show_default=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE.onnx", help="[default: CHECKPOINT.onnx]", show_default=False),
    ] = None,
    opset: Annotated[
        int | None, typer.Option(min=7, max=26, metavar="N", help="[default: 20]", show_default=False)
    ] = None,
    exporter: Annotated[str, typer.Option(metavar="E", help="auto, dynamo, torchscript.")] = "auto",
    key: Annotated[
        str | None, typer.Option(metavar="ENTRY", help="Where in the file the weights are.", show_default=False)
    ] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Go on where tensors are missing or left over, and say which.")
    ] = False,
    trust_checkpoint: Annotated[
        bool,
        typer.Option("--trust-checkpoint", help="Unpickle any object: the file may run any code, as you."),
    ] = False,
    parity: Annotated[
        float,
        typer.Option(min=0, metavar="P", help="Largest difference from PyTorch, over the output's largest value."),
    ] = 1e-4,
    as_json: options.AsJson = False,
) -> None:
    """Export a PyTorch checkpoint to an ONNX file that gives the same answers."""
    from trt_helper.cli.console import complain, progress, show, show_json, warn
    from trt_helper.errors import MachineError

    try:
        import onnxscript  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        raise MachineError(
            f"export needs PyTorch, and it cannot be imported here: {error}", fix="pip install 'trt-helper[export]'"
        ) from None
    from trt_helper.export.run import OPSET, export
    from trt_helper.export.specs import parse_arguments, parse_inputs

    with progress() as report:
        exported = export(
            checkpoint,
            output or checkpoint.with_suffix(".onnx"),
            model=model,
            model_args=parse_arguments(model_arg or ()),
            inputs=parse_inputs(inputs or (), dynamic or ()),
            opset=opset or OPSET,
            exporter=exporter,
            key=key,
            allow_missing=allow_missing,
            trust_checkpoint=trust_checkpoint,
            parity=parity,
            on_progress=report,
        )
    for message in exported.warnings:
        warn(message)
    if as_json:
        show_json(_json(exported))
    else:
        show(*_shown(exported))
    if exported.path is None:
        reason = exported.parity.why or f"off by {exported.parity.worst:.2g} of the output's range"
        complain(
            f"the ONNX model does not give the module's answers: {reason}; nothing was written",
            "make the module a function of its inputs: state as input and output, no decision by values; "
            "or try the other --exporter"
            if not exported.parity.noise
            else f"FP32 itself is off by {exported.parity.noise:.2g} here (measured in FP64): "
            "allow more with --parity, or look for large activations that cancel",
        )
    raise typer.Exit(0 if exported.path else 1)


def _shown(exported: Exported) -> list[Table | str]:
    from trt_helper.export.parity import of_range
    from trt_helper.format.text import cell, figure, plain, table

    made = table("Parity with PyTorch, FP32", "input", "output", "shape", "largest difference", "over range", names=2)
    for checked in exported.parity.checked:
        sizes = ", ".join("x".join(map(str, shape)) or "scalar" for shape in checked.shapes.values())
        for error in checked.outputs:
            different = f"{error.non_finite} not finite or missing" if error.non_finite else figure(error.max)
            made.add_row(cell(checked.sample), cell(error.name), sizes, different, figure(of_range(error)))
    why = f"; {exported.why}" if exported.why else ""
    layers = len(exported.graph.layers)
    lines: list[Table | str] = [
        made,
        "",
        plain(f"Exported with {exported.exporter}, opset {exported.opset}, {layers} layers{why}.", 2000),
    ]
    if exported.path:
        lines.append(f"Written to {exported.path}. Next: trt-helper locate {exported.path}")
    return lines


def _json(exported: Exported) -> dict[str, Any]:
    from trt_helper.export.parity import of_range
    from trt_helper.format.json_values import error_json

    return {
        "schema": 1,
        "verdict": "pass" if exported.path else "fail",
        "model": {"path": str(exported.path), "layers": len(exported.graph.layers)} if exported.path else None,
        "checkpoint": {"path": str(exported.checkpoint), "entry": exported.weights},
        "exporter": exported.exporter,
        "why": exported.why,
        "opset": exported.opset,
        "parity": {
            "allowed": exported.parity.tolerance,
            "why": exported.parity.why,
            "samples": [
                {
                    "input": checked.sample,
                    "shapes": {name: list(shape) for name, shape in checked.shapes.items()},
                    "outputs": {
                        error.name: {**error_json(error), "of_range": None if error.non_finite else of_range(error)}
                        for error in checked.outputs
                    },
                }
                for checked in exported.parity.checked
            ],
        },
        "warnings": list(exported.warnings),
        "provenance": exported.provenance,
    }
