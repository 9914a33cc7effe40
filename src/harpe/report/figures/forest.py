"""Differences to the baseline as points with their intervals, one picture for every line of their table."""

from __future__ import annotations

import math
from dataclasses import dataclass

from markupsafe import Markup, escape

from harpe.report.figures.charts import kind, limits
from harpe.report.figures.plot import Plot, even_ticks, linear, minus_signs
from harpe.report.read.run import Run
from harpe.report.read.summary import Measure
from harpe.report.tables.differences import in_words, signed_in, unit_words

WIDTH = 230
"""Of the pictures, in pixels."""
HEIGHT = 24


@dataclass(frozen=True)
class Forest:
    """Pictures of a measure's differences, one for every line of their table."""

    axis: Markup
    rows: dict[str, Markup]
    zero: float
    """Where no difference lies, in per cent of the width."""


def forest(run: Run, measure: Measure) -> Forest:
    """Differences to the baseline as points with their intervals: filled where real, hollow where not shown."""
    found = {row.name: (row, d) for row in run.rows if (d := measure.differences.get(row.name)) is not None}
    low, high = limits([(d.low, d.high) for _, d in found.values()])
    room = 0.07 * (high - low)
    x = linear(low - room, high + room, 8, WIDTH - 8)
    label = f"Axis of the differences in {unit_words(measure)}; {measure.better} is better."
    axis = Plot(label, WIDTH, 40, (8, 18, WIDTH - 8, 22), "axis-row")
    axis.text(2, 10, "← better" if measure.better == "lower" else "← worse", "t small", "start")
    axis.text(WIDTH - 2, 10, "worse →" if measure.better == "lower" else "better →", "t small", "end")
    for tick, words in minus_signs(even_ticks(low, high, 3)).items():
        axis.text(x(tick), 30, words, "t small")
        axis.line(x(tick), 35, x(tick), 40, "axis")
    rows = {}
    for name, (row, d) in found.items():
        value, interval = signed_in(measure, d)
        said = f"{value} ({interval}) {unit_words(measure)}, {in_words(measure, name)}"
        tip = f"{row.title} minus {run.baseline.title}: {said}"
        plot = Plot(tip, WIDTH, HEIGHT, (0, 0, WIDTH, HEIGHT), "forest")
        plot.add(f'<g class="tip m-{kind(row)}"><title>{escape(tip)}</title>')
        middle = HEIGHT / 2
        start, end = (min(max(v, low - room), high + room) if math.isfinite(v) else 0.0 for v in (d.low, d.high))
        plot.line(x(start), middle, x(end), middle, "reach")
        for at, inside, side in ((start, d.low >= low - room, -1), (end, d.high <= high + room, 1)):
            if inside and low - room <= at <= high + room:
                plot.line(x(at), middle - 4, x(at), middle + 4, "reach")
            elif not inside:
                plot.arrow(x(low - room if side < 0 else high + room) + 7 * side, middle, side, "fill")
        if math.isfinite(d.value) and low - room <= d.value <= high + room:
            plot.mark(x(d.value), middle, "circle", "fill" if d.real else "open", size=4.6)
        plot.add("</g>")
        rows[name] = plot.svg()
    return Forest(axis.svg(), rows, 100 * x(0) / WIDTH)
