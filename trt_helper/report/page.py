"""Render a run record as one self-contained HTML page.

All text from a model is escaped by the template or is in JSON data. The page's content security policy allows only
its own two scripts, by their hashes, and no requests. This is the only module that imports Jinja2 and vl_convert.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from trt_helper.format.text import batch_text, figure, plain, rate
from trt_helper.report import figures, story
from trt_helper.report.read import errors_of, tolerance_of
from trt_helper.values import TensorError

ABSENT: dict[str, Any] = {  # the keys that a record of compare lacks
    **dict.fromkeys(("pins", "search", "per_sample", "inputs", "samples", "cures", "bf16_layers"), ()),
    **dict.fromkeys(("metric", "opset", "platform", "inferences")),
}
VEGA = "window.vegaEmbed = vegaEmbed;"  # the only name of the bundle that the page uses
Record = Mapping[str, Any]


def page(record: Record, engine: Record | None = None, bench: Record | None = None) -> str:
    """The HTML page of a run.

    Args:
        record: The run record.
        engine: The proof of the engine that was built with its plan, from `read_engine`.
        bench: The result of `bench` with its plan, from `read_bench`.
    """
    record = {**ABSENT, **record}
    shown = figures.figures(record)
    outputs = figures.outputs_figure(record)
    every = [outputs, *shown] if outputs else shown
    room = outputs is None or len(record.get("after", ())) <= figures.FEW_OUTPUTS
    aside = [figure for figure in every if figure.key == "outputs" or (figure.key == "curve" and room)]
    data = {
        "layers": figures.layer_rows(record),
        "figures": {f.key: {"spec": f.spec, "rows": f.rows} for f in every},
    }
    vega, script = _vega(), _static("report.js")
    tolerance = tolerance_of(record)
    return (
        _environment()
        .get_template("report.html")
        .render(
            record=record,
            engine=engine,
            bench=bench,
            headline=story.headline(record),
            numbers=story.numbers(record),
            cards=story.cards(record, engine),
            warnings=story.warnings(record, engine),
            passed=record["verdict"] == "pass",
            aside=aside,
            figures=[figure for figure in shown if figure not in aside],
            data=data,
            before={error.name: error for error in errors_of(record.get("before", {}))},
            after=story.after(record),
            tolerance=tolerance,
            allowed=lambda name: story.allowed(tolerance, name),
            shown=lambda error: story.shown(error, tolerance.stat),
            samples=list(_samples(record)),
            style=Markup(_static("report.css")),  # noqa: S704 - files of this package
            vega=Markup(vega),  # noqa: S704
            script=Markup(script),  # noqa: S704
            hashes=" ".join(_hash(text) for text in (vega, script)),
        )
    )


def _environment() -> Environment:
    loader = PackageLoader("trt_helper.report", "static")
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters |= {"plain": plain, "figure": _figure, "shape": _shape}
    made.filters |= {
        "worst": story.worst_without,
        "cure": story.cure_words,
        "times": _times,
        "batch": batch_text,
        "rate": rate,
    }
    return made


def _samples(record: Record) -> Iterator[tuple[str, bool, str, TensorError | None, TensorError | None]]:
    """Every output of every sample: source, whether it was held out, output name, errors without and with the plan."""
    for sample in record.get("per_sample", ()):
        before = {error.name: error for error in errors_of(sample["before"])}
        after = {error.name: error for error in errors_of(sample["after"])}
        for name in after or before:
            yield sample["source"], sample["held_out"], name, before.get(name), after.get(name)
    for sample in record.get("samples", ()):
        if not isinstance(sample, str):
            for error in errors_of(sample["outputs"]):
                pair = (None, error) if story.changed(record) else (error, error)
                yield sample["source"], False, error.name, *pair


def _figure(number: float | None) -> str:
    return "not finite" if number is None or number == float("inf") else figure(number)


def _shape(shape: Sequence[int | str | None] | None) -> str:
    return "" if shape is None else plain(" x ".join("?" if d is None else str(d) for d in shape))


def _times(number: float | None) -> str:
    return "not finite" if number is None else story.times(number)


def _static(name: str) -> str:
    return files("trt_helper.report").joinpath(f"static/{name}").read_text(encoding="utf-8")


@cache
def _vega() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, without text that would end its HTML element."""
    bundle: str = vl_convert.javascript_bundle(VEGA)
    return bundle.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _hash(script: str) -> str:
    """The source expression that allows a script in the content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
