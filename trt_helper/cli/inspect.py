"""`trt-helper inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trt_helper.cli import options


def run(
    file: Annotated[Path, typer.Argument(metavar="MODEL.onnx|ENGINE.trt", show_default=False)],
    layers: Annotated[bool, typer.Option("--layers", help="List every layer by name.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Show a model's inputs, outputs and layers, or what can be read of an engine."""
    from trt_helper.builder.engine_file import is_engine, read_engine
    from trt_helper.cli import common
    from trt_helper.cli import tables as text
    from trt_helper.cli.console import show, show_json
    from trt_helper.report.record import graph_json

    if is_engine(file):
        engine = read_engine(file)
        if as_json:
            show_json({"schema": 1, **engine})
        else:
            show(*text.engine(engine))
        return
    graph = common.open_graph(file)
    if as_json:
        show_json(graph_json(graph))
        return
    show(
        text.model_line(graph),
        "",
        text.values("Inputs", graph, "inputs"),
        "",
        text.values("Outputs", graph, "outputs"),
        "",
        text.layer_list(graph) if layers else text.layers_by_type(graph),
    )
