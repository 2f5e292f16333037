"""The pieces that Vega-Lite figures are put together from: axes, scales, lines, tooltips."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

LEAST = 1e-30  # a logarithm of anything smaller tells nothing
Spec = dict[str, Any]


def layered(layers: list[Spec], *, height: float, x: Spec | None = None, params: list[Spec] | None = None) -> Spec:
    """A figure as wide as its place in the page; `x` is shared by its layers."""
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "width": "container",
        "config": {"customFormatTypes": True},
        "height": height,
        **({"params": params} if params else {}),
        **({"encoding": {"x": x}} if x else {}),
        "layer": layers,
    }


def whole_numbers(field: str, title: str, first: int, last: int) -> Spec:
    """An axis of whole numbers."""
    scale = {"domain": [first - 0.5, last + 0.5], "nice": False, "zero": False}
    axis = {"format": "d", "tickMinStep": 1}
    return {"field": field, "type": "quantitative", "title": title, "scale": scale, "axis": axis}


def zoom() -> Spec:
    """Drag to move, Ctrl + wheel to zoom, along x."""
    wheel, drag = "wheel![event.ctrlKey]", "[pointerdown, window:pointerup] > window:pointermove!"
    select = {"type": "interval", "encodings": ["x"], "zoom": wheel, "translate": drag}
    return {"name": "zoom", "select": select, "bind": "scales"}


def hover() -> Spec:
    """The mark nearest to the pointer answers for itself."""
    return {"name": "near", "select": {"type": "point", "on": "pointerover", "nearest": True, "clear": "pointerout"}}


def line_at(y: float | str, color: str) -> Spec:
    """A horizontal line across the figure, at a value or at a field of its own data."""
    return {**_alone(y), "mark": {"type": "rule", "color": color, "strokeWidth": 1.5}}


def text_at(y: float | str, text: str, color: str, *, dy: int = -6) -> Spec:
    """What a horizontal line means, at its left end."""
    mark = {"type": "text", "text": text, "align": "left", "color": color, "dy": dy, "fontSize": 11}
    alone = _alone(y)
    return {**alone, "mark": mark, "encoding": {**alone["encoding"], "x": {"value": 4}}}


def _alone(y: float | str) -> Spec:
    """Drawn once, not for every row of the figure's data."""
    where = {"field": y} if isinstance(y, str) else {"datum": y}
    return {"data": {"values": [{}]}, "encoding": {"x": None, "y": {**where, "type": "quantitative"}}}


def positive(field: str) -> Spec:
    """Only what a logarithmic axis can show."""
    return {"filter": f"isValid(datum.{field}) && datum.{field} > {LEAST}"}


def log_scale(rows: Iterable[Mapping[str, Any]], field: str, least: float, most: float) -> Spec:
    """A logarithmic scale that has the tolerance on it."""
    values = [float(row[field]) for row in rows if row[field]]
    return {"type": "log", "domain": [min([least, *values]), max([most, *values])]}


def vertical(field: str, title: str, scale: Spec | None = None, style: str = "~e") -> Spec:
    """A vertical axis, logarithmic unless `scale` says otherwise."""
    axis = {"format": style, "tickCount": 6, **({"tickMinStep": 1} if style == "d" else {})}
    return {"field": field, "type": "quantitative", "scale": scale or {"type": "log"}, "title": title, "axis": axis}


def number(field: str, title: str, style: str) -> Spec:
    """A number that hovering shows, in d3's format."""
    return {"field": field, "title": title, "type": "quantitative", "format": style}


def colors(field: str, names: Sequence[str], chosen: Sequence[str]) -> Spec:
    """A color for each name, with a legend on top."""
    scale = {"domain": list(names), "range": list(chosen)}
    return {"field": field, "type": "nominal", "scale": scale, "legend": {"orient": "top", "title": None}}


def shapes(field: str, names: Sequence[str], chosen: Sequence[str]) -> Spec:
    """A shape for each name: color alone tells some readers nothing."""
    return {"field": field, "type": "nominal", "scale": {"domain": list(names), "range": list(chosen)}}


def tooltips(**titles: str) -> list[Spec]:
    """What hovering shows, as it is: `same` is the page's own, for Vega-Lite forgets texts that it need not format."""
    as_it_is = {"type": "nominal", "format": "", "formatType": "same"}
    return [{"field": field, "title": title or field, **as_it_is} for field, title in titles.items()]
