"""Figures of `harpe heads`: a map of a number over layers and heads, and the ratios with their intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from markupsafe import Markup, escape

from harpe.report.figures.heat_maps import VIRIDIS
from harpe.report.figures.plot import Plot, blend, log_ticks, logarithmic

DIVERGING = ("2166ac", "67a9cf", "d1e5f0", "f7f7f7", "fddbc7", "ef8a62", "b2182b")
KINDS = {"all": "all heads of all layers", "layers": "between layers", "heads": "between the heads of a layer"}
MOST = 1e4
"""The largest ratio that is drawn: beyond it, and without a bound, it ends in an arrow."""


def head_map(
    name: str, layers: Sequence[int], values: Sequence[Sequence[float]], words: Callable[[float], str], kind: str
) -> Markup:
    """A square for every key/value head: a column a head, a row a layer.

    Parameters
    ----------
    kind
        `log` for positive numbers over decades, `share` for 0 to 1, `signed` for numbers around zero, where one far
        out does not make all others pale.
    """
    heads = len(values[0])
    size = max(12, min(30, 560 // max(heads, len(layers))))
    left, top = 52, 26
    plot = Plot(name, left + size * heads + 4, top + size * len(layers) + 40, (left, top, 0, 0), "map")
    shade = _shade([value for row in values for value in row], kind)
    every = max(1, math.ceil(22 / size))
    plot.text(left, 14, "layer", "t name small", "end")
    for y, (layer, row) in enumerate(zip(layers, values, strict=True)):
        if y % every == 0:
            plot.text(left - 8, top + size * (y + 0.5) + 4, str(layer), "t small", "end")
        for head, value in enumerate(row):
            plot.add(
                f'<rect x="{left + size * head + 1}" y="{top + size * y + 1}" width="{size - 2}" height="{size - 2}" '
                f'rx="2" fill="{shade(value)}"><title>{escape(f"layer {layer}, head {head}: {words(value)}")}</title>'
                "</rect>"
            )
    for head in range(0, heads, every):
        plot.text(left + size * (head + 0.5), top + size * len(layers) + 16, str(head), "t small")
    plot.text(left + size * heads / 2, plot.height - 4, "key/value head", "t name small")
    return plot.svg()


def _shade(values: list[float], kind: str) -> Callable[[float], str]:
    if kind == "share":
        return lambda value: blend(VIRIDIS, value)
    if kind == "log":
        low, high = math.log(min(values)), math.log(max(values))
        return lambda value: blend(VIRIDIS, (math.log(value) - low) / (high - low or 1.0))
    sizes = sorted(abs(value) for value in values)
    most = sizes[int(0.95 * (len(sizes) - 1))] or 1.0
    return lambda value: blend(DIVERGING, 0.5 + 0.5 * max(-1.0, min(1.0, value / most)))


def ratios(bands: Sequence[dict[str, Any]]) -> Markup:
    """R2 of every band of pairs with its interval, on a logarithmic axis; 1 is marked."""
    rows = [(band, kind) for band in bands for kind in KINDS]
    found = [v for band, kind in rows for v in band["heterogeneity"][kind].values() if v is not None and v > 0]
    low, high = min([0.5, *found]), min(MOST, max([4.0, *found]) * 1.3)
    low = max(low, 0.05)
    plot = Plot("R2 by bands of pairs, with 95 % intervals.", 760, 26 * len(rows) + 70, (300, 16, 726, 0))
    plot.bottom = plot.height - 50
    x = logarithmic(low, high, plot.left, plot.right)
    plot.line(x(1.0), plot.top, x(1.0), plot.bottom, "limit")
    for at, words in log_ticks(low, high).items():
        plot.line(x(at), plot.bottom, x(at), plot.bottom + 5, "axis")
        plot.text(x(at), plot.bottom + 20, words)
    plot.line(plot.left, plot.bottom, plot.right, plot.bottom, "axis")
    plot.text((plot.left + plot.right) / 2, plot.height - 8, "R2 (1: all want the same)", "t name")
    for number, (band, kind) in enumerate(rows):
        y, ratio = plot.top + 26 * number + 14, band["heterogeneity"][kind]
        plot.text(plot.left - 12, y + 4, f"{band['name']} pairs, {KINDS[kind]}", "t small", "end")
        value, start, end = (ratio[key] for key in ("value", "low", "high"))
        first = x(min(max(start, low), high)) if start is not None else plot.right
        last = x(min(max(end, low), high)) if end is not None else plot.right
        plot.add(f'<g class="m-a"><line x1="{first:.1f}" y1="{y}" x2="{last:.1f}" y2="{y}" class="curve"/>')
        if end is None or end > high:
            plot.arrow(plot.right, y, 1, "fill")
        if value is not None and low <= value <= high:
            plot.mark(x(value), y, "circle", "point", size=4.5, tip=f"{value:.3g}")
        plot.add("</g>")
    return plot.svg()
