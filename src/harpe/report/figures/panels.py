"""Small pictures by position, one for each row, with the 95 % interval as a band.

Perplexities share their scales. Differences have scales of their own: a hundredth and two nats in one frame would hide
the small ones, about which there can be doubt.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from markupsafe import Markup

from harpe.report.figures.charts import bin_words, frame_top, kind
from harpe.report.figures.plot import (
    Plot,
    Scale,
    even_ticks,
    linear,
    log_ticks,
    logarithmic,
    minus_signs,
    powers_of_two,
)
from harpe.report.means import mean_bins
from harpe.report.read.positions import PositionDifferences
from harpe.report.read.run import Row, Run
from harpe.report.read.scores import Bin
from harpe.report.tables.results import perplexity

Ends = tuple[float, float]


@dataclass(frozen=True)
class Point:
    """A value at a position or a length, with its interval."""

    at: float
    value: float
    low: float
    high: float
    tip: str
    css: str = "point"


@dataclass(frozen=True)
class Frame:
    """Both axes of a picture."""

    across: Ends
    up: Ends
    scale: Callable[[float, float, float, float], Scale]
    """Of the values; positions are always logarithmic."""
    ticks: dict[float, str]
    level: float | None = None
    """A value that a line marks."""


def panel(
    label: str, row: Row, trained: int, frame: Frame, points: Sequence[Point], reference: Sequence[Ends]
) -> Markup:
    """One picture: the line through `points` with its band, and a thin one through `reference`; a dotted line at the
    trained length."""
    plot = Plot(label, 270, 176, (50, 10, 262, 138), "panel")
    x, y = logarithmic(*frame.across, plot.left, plot.right), frame.scale(*frame.up, plot.bottom, plot.top)
    plot.axes(x, powers_of_two(*frame.across, 4), y, frame.ticks, "", "")
    if frame.level is not None:
        plot.line(plot.left, y(frame.level), plot.right, y(frame.level), "axis")
    if frame.across[0] <= trained <= frame.across[1]:
        plot.line(x(trained), plot.top, x(trained), plot.bottom, "limit")
    plot.add(f'<g class="m-{kind(row)}">')
    edges = [(x(p.at), y(p.low), y(p.high)) for p in points]
    for finite, group in groupby(edges, key=lambda edge: all(map(math.isfinite, edge))):
        if finite:
            part = list(group)
            outline = [*((at, low) for at, low, _ in part), *((at, high) for at, _, high in reversed(part))]
            plot.path(outline, "band", closed=True)
    if reference:
        plot.path([(x(a), y(b)) for a, b in reference], "reference")
    plot.path([(x(p.at), y(p.value)) for p in points], "curve")
    for p in points:
        if math.isfinite(p.value) and plot.top <= y(p.value) <= plot.bottom:
            plot.mark(x(p.at), y(p.value), "circle", f"tip {p.css}", size=3.0, tip=p.tip)
    plot.add("</g>")
    return plot.svg()


def position_panels(run: Run) -> list[tuple[Row, Markup | None]]:
    """For each row its perplexity by position, and the baseline's as a thin line; empty where none was measured.

    The frame is the same for all. With the many rows of a comparison it holds half the trained length and beyond, and
    not the few rows that lie far from the others; in a single run it holds everything.
    """

    def point(b: Bin) -> Point:
        return Point(b.middle, perplexity(b.nll), perplexity(b.low), perplexity(b.high), bin_words(b))

    found = {row.name: [point(b) for b in bins] for row in run.rows if (bins := mean_bins(row))}
    if not found:
        return []
    first, last = min(p[0].at for p in found.values()) / 1.2, max(p[-1].at for p in found.values()) * 1.2
    start = run.original_length / 2 if run.comparison else 0
    late = [
        [math.log(p.value) for p in points if p.at >= start and math.isfinite(p.value)] for points in found.values()
    ]
    late = [values for values in late if values] or [[0.0, 1.0]]
    low = min(map(min, late))
    top = frame_top([max(values) for values in late], low) if run.comparison else max(map(max, late))
    room = max(0.08 * (top - low), (math.log(4) - (top - low)) / 2)  # a factor of 4 has a tick or two in it
    up = math.exp(low - room), math.exp(min(top + room, 700.0))
    frame = Frame((first, last), up, logarithmic, dict(list(log_ticks(*up).items())[-5:]))
    base = [(p.at, p.value) for p in found.get(run.baseline_name, [])]
    panels: list[tuple[Row, Markup | None]] = []
    for row in run.rows:
        points = found.get(row.name, [])
        label = f"{row.title}: perplexity by position with 95 % intervals; {points[-1].tip}." if points else ""
        other = base if row is not run.baseline else []
        panels.append((row, panel(label, row, run.original_length, frame, points, other) if points else None))
    return panels


def difference_panels(run: Run) -> list[tuple[Row, Markup]]:
    """For each row its loss by position minus the baseline's, with its interval; empty where nothing was compared."""
    positions = run.summary.positions
    others = [row for row in run.rows if row is not run.baseline] if positions else []
    drawn = [
        (row, difference_panel(positions, row, run.baseline.title, run.original_length)) for row in others if positions
    ]
    return [(row, picture) for row, picture in drawn if picture is not None]


def difference_panel(p: PositionDifferences, row: Row, reference: str, trained: int) -> Markup | None:
    """A row's differences by position; points are filled where the interval leaves out zero.

    Parameters
    ----------
    reference
        Title of the row that is subtracted.
    trained
        The length that the model was trained with, in tokens.
    """
    steps = p.methods.get(row.name, ())
    finite = [v for s in steps for v in (s.value, s.low, s.high) if math.isfinite(v)]
    if not finite:
        return None
    clear = sum(step.clear for step in steps)
    label = (
        f"{row.title}: loss by position minus that of {reference} on the same documents, with 95 % intervals, which "
        f"leave out zero at {clear} of {len(steps)} positions; {steps[-1].words()}."
    )
    low, high = min(0.0, *finite), max(0.0, *finite)
    room = 0.07 * (high - low or 1.0)
    up = low - room, high + room
    frame = Frame((steps[0].middle / 1.25, steps[-1].middle * 1.25), up, linear, minus_signs(even_ticks(*up, 3)), 0.0)
    tip = f"{row.title} minus {reference}, "
    points = [Point(s.middle, s.value, s.low, s.high, tip + s.words(), "point" if s.clear else "open") for s in steps]
    return panel(label, row, trained, frame, points, ())
