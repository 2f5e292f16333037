"""Options that several commands share, spelled once."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Literal

import typer

ModelArgument = Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="The model.", show_default=False)]
PLAN = "fp32_layers.yaml"  # what `locate` writes, and `convert` looks for beside the model
OptionalModel = Annotated[
    Path | None,
    typer.Argument(metavar="[MODEL.onnx]", help="The model; else the one the config names.", show_default=False),
]
OptionalConfig = Annotated[
    Path | None,
    typer.Option("--config", "-c", metavar="FILE.yaml", help="A plan to apply.", show_default=False),
]
Inputs = Annotated[
    list[Path] | None,
    typer.Option("--inputs", "-i", metavar="PATH", help="Real inputs: .npz files or folders.", show_default=False),
]
LoaderScript = Annotated[
    str | None,
    typer.Option(
        "--data-loader-script",
        metavar="FILE.py[:function]",
        help="Yields inputs, as in Polygraphy.",
        show_default=False,
    ),
]
Shapes = Annotated[
    list[str] | None,
    typer.Option(
        "--shapes",
        metavar="NAME:SHAPE[,MIN,MAX]",
        help="Input shape, or min,opt,max: x:1x3x64x64",
        show_default=False,
    ),
]
Atol = Annotated[
    list[str] | None,
    typer.Option("--atol", metavar="[OUTPUT:]A", help="Absolute tolerance. [default: 0.001]", show_default=False),
]
Rtol = Annotated[
    list[str] | None,
    typer.Option("--rtol", metavar="[OUTPUT:]R", help="Relative tolerance. [default: 0.001]", show_default=False),
]
Stat = Annotated[
    str | None,
    typer.Option(
        "--check-error-stat",
        metavar="STAT",
        help="max, mean, median, elemwise. [default: max]",
        show_default=False,
    ),
]
Reference = Annotated[
    Path | None,
    typer.Option(metavar="MODEL.onnx", help="The FP32 model that this one was made from.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Builder = Annotated[
    Literal["auto", "tensorrt", "tensorrt-rtx"],
    typer.Option(help="tensorrt is 10 or 11, on its GPU. auto: tensorrt-rtx where it is installed."),
]


class Emit(str, Enum):
    """What `convert` can write for other tools."""

    TRTEXEC = "trtexec"
    EXPLORER = "explorer"
    NETRON = "netron"


Runner = Annotated[
    Literal["auto", "emulate", "cuda", "tensorrt", "tensorrt-rtx"],
    typer.Option(help="What computes FP16."),
]
Kernels = Annotated[
    Literal["typical", "exact", "worst"],
    typer.Option(metavar="READING", help="Of FP16: typical, exact, worst."),
]
Repeats = Annotated[int, typer.Option(min=1, metavar="N", help="Runs of each plan on a GPU.")]
Ray = Annotated[
    str | None,
    typer.Option(metavar="auto|ADDRESS", help="Judge plans on this Ray cluster.", show_default=False),
]
