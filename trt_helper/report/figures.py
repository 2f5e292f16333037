"""The figures of the HTML page, as Vega-Lite specifications with their data, made from a run record.

Names from the model occur only in data, never in an expression or a field name, so Vega does not evaluate them. Vega
escapes tooltips. A logarithmic axis cannot show 0 or values that are not finite: zeros are left out, and values that
are not finite are drawn at the upper edge.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trt_helper.format.text import figure, plain
from trt_helper.report.read import errors_of, tolerance_of
from trt_helper.report.story import after, changed, first_overflow, times
from trt_helper.report.vega import (
    LEAST,
    Spec,
    colors,
    hover,
    layered,
    line_at,
    log_scale,
    number,
    positive,
    shapes,
    text_at,
    tooltips,
    vertical,
    whole_numbers,
    zoom,
)
from trt_helper.values import Statistic, TensorError, Tolerance

HALF_MAX, HALF_NORMAL, HALF_TINY = 65504.0, 2.0**-14, 2.0**-24  # FP16's largest, smallest normal and smallest value
BAD, GOOD, CALM, OTHER = "#d9534f", "#3a9d5d", "#4a86e8", "#d08a1d"  # readable on white and on black
EDGE = 7  # pixels from the upper edge, where values that are not finite are drawn
MOST_OUTPUTS = 12  # outputs in their figure; the table has all
FEW_OUTPUTS = 5  # with at most this many outputs a second figure fits on the first screen
Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of the page."""

    key: str  # in the page's data and elements
    title: str
    reading: str  # a text that explains how to read it
    spec: Spec  # without data
    rows: list[dict[str, Any]] | str  # its data, or the name of data that several figures share


def figures(record: Record) -> list[Figure]:
    """Every figure that the record has data for, except the one of the outputs."""
    made: list[Figure] = []
    if record["layers"]:
        made += [_network(record), _ranges(record)]
    if record.get("search"):
        made += [_trials(record, "pins"), _trials(record, "excess")]
    if record.get("curve"):
        made.append(_curve(record))
    return made


def layer_rows(record: Record) -> list[dict[str, Any]]:
    """One row per layer, in topological order: the data of the figures and of the table of layers."""
    return [
        {
            "i": index,
            "name": plain(layer["name"]),
            "op": plain(layer["op"], 40),
            "module": plain(layer["module"]),
            "kind": "pinned" if layer["pinned"] else layer["role"],
            "arrives": layer["accumulated"]["max"],
            "adds": layer["isolated"]["max"],
            "arrives_bad": layer["accumulated"]["non_finite"],
            "adds_bad": layer["isolated"]["non_finite"],
            "spread": layer["accumulated"]["spread"],
            "read": layer["read"],
            "written": layer["written"],
            "overflow": layer["overflow"],
            "underflow": layer["underflow"],
            "why": f"{layer['cause']}: {layer['cause_evidence']}" if layer["cause"] else "",
        }
        for index, layer in enumerate(record["layers"])
    ]


def outputs_figure(record: Record) -> Figure | None:
    """The figure of the first screen: the error ratio of each output, with all layers in FP16 and with the plan.

    None if the record has no outputs, or is judged by a metric.
    """
    tolerance = tolerance_of(record)
    rows = _output_rows(errors_of(record.get("before", {})), "all FP16", tolerance)
    if not rows or changed(record):
        rows += _output_rows(after(record), "with the plan", tolerance)
    if not rows or record.get("metric"):
        return None
    worst = sorted({row["output"] for row in rows}, key=lambda name: -_worst_of(rows, name))[:MOST_OUTPUTS]
    rows = [row for row in rows if row["output"] in worst]
    x = {
        "field": "times",
        "type": "quantitative",
        "scale": log_scale(rows, "times", 0.5, 2),
        "title": "error / allowed",
        "axis": {"format": "~g", "labelOverlap": True, "tickCount": 5},
    }
    y = {"field": "output", "type": "nominal", "sort": worst, "title": None, "axis": {"labelLimit": 110}}
    spec = layered(
        [
            {"data": {"values": [{}]}, "mark": {"type": "rule", "color": GOOD}, "encoding": {"x": {"datum": 1}}},
            {
                "mark": {"type": "line", "color": "#8889", "strokeWidth": 3},
                "encoding": {"x": x, "y": y, "detail": {"field": "output"}},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 140, "opacity": 1},
                "encoding": {
                    "x": x,
                    "y": y,
                    "color": colors("plan", ("all FP16", "with the plan"), (BAD, GOOD)),
                    "shape": shapes("plan", ("all FP16", "with the plan"), ("triangle-up", "circle")),
                    "tooltip": tooltips(output="output", plan="precision", shown="error", allowed="allowed"),
                },
            },
        ],
        height=34 * len(worst),
    )
    some = f" The {MOST_OUTPUTS} worst of {len(after(record))}." if len(after(record)) > MOST_OUTPUTS else ""
    reading = f"Left of the green line an output is within tolerance; each step of the axis is ten times more.{some}"
    return Figure("outputs", "Outputs, worst sample", reading, spec, rows)


def _output_rows(errors: Iterable[TensorError], plan: str, tolerance: Tolerance) -> list[dict[str, Any]]:
    rows = []
    for error in errors:
        over = error.error_ratio(tolerance)
        stat = Statistic.MAX if tolerance.stat is Statistic.ELEMWISE else tolerance.stat
        shown = error.broken or figure(getattr(error, stat.value))
        atol, rtol = tolerance.of(error.name)
        rows.append(
            {
                "output": plain(error.name, 60),
                "plan": plan,
                "times": min(max(over, 1e-3), 1e6),
                "shown": shown,
                "allowed": f"{tolerance.stat.value} {atol:g} or {rtol:g} relative",
            }
        )
    return rows


def _worst_of(rows: Sequence[Mapping[str, Any]], output: str) -> float:
    return max(float(row["times"]) for row in rows if row["output"] == output)


def _network(record: Record) -> Figure:
    tolerance = tolerance_of(record)
    first = first_overflow(record)
    points = {
        "transform": [
            {"fold": ["arrives", "adds"], "as": ["series", "own"]},
            {"calculate": "!relative ? datum.own : datum.spread ? datum.own / datum.spread : null", "as": "error"},
            {"filter": f"isValid(datum.error) && datum.error > {LEAST}"},
        ],
        "params": [zoom(), hover()],
        "mark": {"type": "point", "filled": True, "size": 22, "clip": True, "opacity": 0.85},
        "encoding": {
            "y": vertical("error", "largest error"),
            "color": colors("series", ("arrives", "adds"), (CALM, OTHER)),
            "shape": shapes("series", ("arrives", "adds"), ("circle", "diamond")),
            "tooltip": _layer_tips(),
        },
    }
    lines = []
    if tolerance.stat in (Statistic.MAX, Statistic.ELEMWISE):
        allowed = f"relative ? {tolerance.rtol!r} : {tolerance.atol!r}"
        data = {"data": {"values": [{}]}, "transform": [{"calculate": allowed, "as": "error"}, positive("error")]}
        lines = [{**line_at("error", GOOD), **data}, {**text_at("error", "tolerance of the outputs", GOOD), **data}]
    x = whole_numbers("i", "layer", 0, len(record["layers"]) - 1)
    shown = [*_marks(first), _found(), points, *lines, _bad("arrives_bad", BAD)]
    spec = layered(shown, x=x, params=_inputs(), height=340)
    return Figure(
        "network",
        "Error along the network",
        "Left to right is from input to output; each step up is ten times more error, worst sample."
        f" Round: what arrives at the layer's output{_under(record)}. Diamond: what the layer adds by itself when fed"
        " exact inputs: culprits have it, victims do not. Grey lines: pinned layers; red line: the first overflow; red"
        " triangles: values that are not finite. Hover for the numbers, drag to move, Ctrl + wheel to zoom.",
        spec,
        "layers",
    )


def _under(record: Record) -> str:
    return " with the plan" if record["command"] == "compare" else " with every layer in FP16"


def _ranges(record: Record) -> Figure:
    first = first_overflow(record)
    y = vertical("value", "largest magnitude")
    names = ("read", "written")
    points = {
        "transform": [{"fold": list(names), "as": ["series", "value"]}, positive("value")],
        "params": [zoom(), hover()],
        "mark": {"type": "point", "filled": True, "size": 22, "clip": True, "opacity": 0.85},
        "encoding": {
            "y": y,
            "color": colors("series", names, (CALM, OTHER)),
            "shape": shapes("series", names, ("circle", "diamond")),
            "tooltip": _layer_tips(),
        },
    }
    limits = []
    for value, text, color in (
        (HALF_MAX, "65504: FP16 becomes infinite", BAD),
        (HALF_NORMAL, "6.1e-5: FP16 loses digits", OTHER),
        (HALF_TINY, "6e-8: FP16 becomes 0", BAD),
    ):
        limits += [line_at(value, color), text_at(value, text, color, dy=11 if value > 1 else -6)]
    x = whole_numbers("i", "layer", 0, len(record["layers"]) - 1)
    spec = layered([*_marks(first), _found(), points, *limits], x=x, params=_inputs(), height=260)
    return Figure(
        "ranges",
        "Values against the range of FP16",
        "The largest magnitude of the floats that each layer reads and writes in FP32, weights aside."
        " What passes the upper line is infinite in FP16, what stays under the lowest line is 0 as a whole.",
        spec,
        "layers",
    )


def _trials(record: Record, which: str) -> Figure:
    rows = [
        {
            "trial": index + 1,
            "pins": trial["pins"],
            "times": None if trial["excess"] is None else min(max(trial["excess"], 1e-6), 1e9),
            "bad": trial["excess"] is None,
            "verdict": trial["verdict"],
            "because": plain(trial["because"]),
            "error": _trial_error(trial),
        }
        for index, trial in enumerate(record["search"])
    ]
    encoding = {
        "color": colors("verdict", ("pass", "fail", "unresolved"), (GOOD, BAD, OTHER)),
        "shape": shapes("verdict", ("pass", "fail", "unresolved"), ("circle", "cross", "square")),
        "tooltip": tooltips(trial="trial", because="why", pins="pins", verdict="verdict", error="error"),
    }
    pins = which == "pins"
    y = (
        vertical("pins", "pins", {"type": "symlog", "constant": 10}, "d")
        if pins
        else vertical("times", "error / allowed", log_scale(rows, "times", 0.5, 2))
    )
    mark = {"type": "point", "filled": True, "size": 60, "opacity": 1}
    shown = {"params": [hover()], "mark": mark, "encoding": {**encoding, "y": y}}
    layers: list[Spec] = [{**shown, "transform": [] if pins else [positive("times")]}]
    if not pins:
        layers.insert(0, line_at(1, GOOD))
        layers.append(
            {"transform": [{"filter": "datum.bad"}], "mark": mark, "encoding": {**encoding, "y": {"value": EDGE}}}
        )
    spec = layered(layers, x=whole_numbers("trial", "trial", 1, len(rows)), height=150)
    if pins:
        reading = "Each mark is one plan that was evaluated as a whole, in order: how many layers it keeps in FP32."
        return Figure("trials-pins", "The search: pins", reading, spec, rows)
    reading = (
        "The same trials: worst error over what is allowed. Under the green line a plan passes; marks on the upper"
        " edge are not finite or could not be computed. The last failures are the proof that each pin is needed."
    )
    return Figure("trials-error", "The search: error", reading, spec, rows)


def _trial_error(trial: Mapping[str, Any]) -> str:
    if trial["not_computed"]:
        return plain(trial["not_computed"])
    if trial["excess"] is None:
        return "not finite"
    return f"{times(trial['excess'])} times what is allowed"


def _curve(record: Record) -> Figure:
    rows = [
        {"pins": point["pins"], "kind": kind, "times": min(max(point[kind], 1e-6), 1e9)}
        for point in record["curve"]
        for kind in ("foreseen", "measured")
        if point[kind] is not None and point[kind] > LEAST
    ]
    y = vertical("times", "error / allowed", log_scale(rows, "times", 0.5, 2))
    line = {
        "transform": [{"filter": "datum.kind == 'foreseen'"}],
        "mark": {"clip": True, "type": "line", "color": CALM, "interpolate": "step-after"},
        "encoding": {"y": y},
    }
    points = {
        "mark": {"type": "point", "filled": True, "opacity": 1},
        "params": [hover()],
        "encoding": {
            "y": y,
            "color": colors("kind", ("foreseen", "measured"), (CALM, OTHER)),
            "size": {"condition": {"test": "datum.kind == 'measured'", "value": 80}, "value": 12},
            "tooltip": tooltips(pins="pins", kind="", times="error / allowed"),
        },
    }
    x = {
        "field": "pins",
        "type": "quantitative",
        "title": "layers in FP32",
        "scale": {"type": "symlog", "constant": 10},
        "axis": {"tickMinStep": 1, "format": "d"},
    }
    spec = layered([line_at(1, GOOD), line, points], x=x, height=120)
    return Figure(
        "curve",
        "From pins to error",
        "The most helpful pins first. The line is foreseen; large marks were measured and count. Green: the tolerance.",
        spec,
        rows,
    )


def _inputs() -> list[Spec]:
    """The parameters that the page sets: the name searched for, the clicked layer, and whether errors are relative."""
    return [{"name": "query", "value": ""}, {"name": "chosen", "value": -1}, {"name": "relative", "value": False}]


def _marks(first: int | None) -> list[Spec]:
    """Vertical lines at the pinned layers, at the first overflow, and at the clicked layer."""
    pinned = {
        "transform": [{"filter": "datum.kind == 'pinned'"}],
        "mark": {"type": "rule", "color": "#8888", "strokeWidth": 2, "clip": True},
    }
    chosen = {
        "transform": [{"filter": "datum.i == chosen"}],
        "mark": {"type": "rule", "color": CALM, "strokeWidth": 6, "opacity": 0.35, "clip": True},
    }
    if first is None:
        return [pinned, chosen]
    overflow = {
        "transform": [{"filter": f"datum.i == {first}"}],
        "mark": {"type": "rule", "color": BAD, "strokeDash": [4, 3], "strokeWidth": 2, "clip": True},
    }
    return [pinned, overflow, chosen]


def _bad(field: str, color: str) -> Spec:
    """Triangles at the upper edge for the layers whose `field`, a count of values that are not finite, is above 0."""
    return {
        "transform": [{"filter": f"datum.{field} > 0"}],
        "mark": {"type": "point", "shape": "triangle-down", "filled": True, "color": color, "size": 50, "clip": True},
        "encoding": {"y": {"value": EDGE}, "tooltip": _layer_tips()},
    }


def _found() -> Spec:
    """Vertical lines at the layers whose name, module or operator matches the search field."""
    text = "lower(datum.name + ' ' + datum.module + ' ' + datum.op)"
    return {
        "transform": [{"filter": f"query != '' && indexof({text}, lower(query)) >= 0"}],
        "mark": {"type": "rule", "color": OTHER, "opacity": 0.4, "strokeWidth": 2, "clip": True},
    }


def _layer_tips() -> list[Spec]:
    names = tooltips(name="layer", module="module", op="op", kind="kind", why="FP16 here")
    numbers = {
        "arrives": "error that arrives",
        "adds": "error it adds",
        "spread": "largest output",
        "read": "largest read",
        "written": "largest written",
    }
    counts = {"arrives_bad": "not finite", "overflow": "overflows", "underflow": "become 0"}
    return [
        *names,
        *(number(field, title, ".3g") for field, title in numbers.items()),
        *(number(field, title, "d") for field, title in counts.items()),
    ]
