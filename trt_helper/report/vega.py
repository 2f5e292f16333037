"""Building blocks of Vega-Lite specifications: axes, scales, lines and tooltips."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

LEAST = 1e-30  # smaller values are not shown on a logarithmic axis
Spec = dict[str, Any]


def layered(layers: list[Spec], *, height: float, x: Spec | None = None, params: list[Spec] | None = None) -> Spec:
    """A figure of several Vega-Lite layers, as wide as its container in the page.

    Args:
        layers: Drawn from the first, at the bottom, to the last.
        height: In pixels.
        x: The encoding of the x axis, which all layers share.
        params: Parameters that the page sets.
    """
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
    """The encoding of an axis of whole numbers from `first` to `last`."""
    scale = {"domain": [first - 0.5, last + 0.5], "nice": False, "zero": False}
    axis = {"format": "d", "tickMinStep": 1}
    return {"field": field, "type": "quantitative", "title": title, "scale": scale, "axis": axis}


def zoom() -> Spec:
    """A parameter with which dragging moves the x axis and Ctrl + wheel zooms it."""
    wheel, drag = "wheel![event.ctrlKey]", "[pointerdown, window:pointerup] > window:pointermove!"
    select = {"type": "interval", "encodings": ["x"], "zoom": wheel, "translate": drag}
    return {"name": "zoom", "select": select, "bind": "scales"}


def hover() -> Spec:
    """A parameter that selects the mark nearest to the pointer, whose tooltip is then shown."""
    return {"name": "near", "select": {"type": "point", "on": "pointerover", "nearest": True, "clear": "pointerout"}}


def line_at(y: float | str, color: str) -> Spec:
    """A horizontal line across the figure, at the value `y`, or at the field `y` of its own data."""
    return {**_alone(y), "mark": {"type": "rule", "color": color, "strokeWidth": 1.5}}


def text_at(y: float | str, text: str, color: str, *, dy: int = -6) -> Spec:
    """The label of a horizontal line, at its left end and `dy` pixels lower."""
    mark = {"type": "text", "text": text, "align": "left", "color": color, "dy": dy, "fontSize": 11}
    alone = _alone(y)
    return {**alone, "mark": mark, "encoding": {**alone["encoding"], "x": {"value": 4}}}


def _alone(y: float | str) -> Spec:
    """Data and encoding of a mark that is drawn once at `y`, not for every row of the figure's data."""
    where = {"field": y} if isinstance(y, str) else {"datum": y}
    return {"data": {"values": [{}]}, "encoding": {"x": None, "y": {**where, "type": "quantitative"}}}


def positive(field: str) -> Spec:
    """A filter for the values that a logarithmic axis can show."""
    return {"filter": f"isValid(datum.{field}) && datum.{field} > {LEAST}"}


def log_scale(rows: Iterable[Mapping[str, Any]], field: str, least: float, most: float) -> Spec:
    """A logarithmic scale over all values of `field`, and at least from `least` to `most`."""
    values = [float(row[field]) for row in rows if row[field]]
    return {"type": "log", "domain": [min([least, *values]), max([most, *values])]}


def vertical(field: str, title: str, scale: Spec | None = None, style: str = "~e") -> Spec:
    """The encoding of a vertical axis, logarithmic by default, with labels in the d3 format `style`."""
    axis = {"format": style, "tickCount": 6, **({"tickMinStep": 1} if style == "d" else {})}
    return {"field": field, "type": "quantitative", "scale": scale or {"type": "log"}, "title": title, "axis": axis}


def number(field: str, title: str, style: str) -> Spec:
    """A number in a tooltip, in the d3 format `style`."""
    return {"field": field, "title": title, "type": "quantitative", "format": style}


def colors(field: str, names: Sequence[str], chosen: Sequence[str]) -> Spec:
    """The color encoding of `field`: a color for each name, with a legend on top."""
    scale = {"domain": list(names), "range": list(chosen)}
    return {"field": field, "type": "nominal", "scale": scale, "legend": {"orient": "top", "title": None}}


def shapes(field: str, names: Sequence[str], chosen: Sequence[str]) -> Spec:
    """The shape encoding of `field`: a shape for each name, for readers who cannot tell the colors apart."""
    return {"field": field, "type": "nominal", "scale": {"domain": list(names), "range": list(chosen)}}


def tooltips(**titles: str) -> list[Spec]:
    """Texts in a tooltip, as field=title. The format `same` is defined by the page, and changes nothing.

    It is needed because Vega-Lite leaves out texts that have no format.
    """
    as_it_is = {"type": "nominal", "format": "", "formatType": "same"}
    return [{"field": field, "title": title or field, **as_it_is} for field, title in titles.items()]
