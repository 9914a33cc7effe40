"""Loss by position minus that of a reference on the same documents, with its paired interval: the pictures and the table.

The pictures have scales of their own: differences of a hundredth and of two nats in one frame would hide the small ones, about which there
can be doubt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from markupsafe import Markup

from harpe.report.figures import Plot, even_ticks, linear, logarithmic
from harpe.report.position_differences import PositionDifferences
from harpe.report.tables import Cell, Column, Row, Table, signed


@dataclass(frozen=True)
class Drawn:
    """Whose differences a picture shows."""

    name: str
    title: str
    slot: str
    """Of the colours."""


def position_table(p: PositionDifferences, methods: Sequence[Drawn]) -> Table:
    """Methods by positions; every cell the difference and its interval in nats a token."""
    shown = [(m, p.methods[m.name]) for m in methods if m.name in p.methods]
    steps = shown[0][1] if shown else ()
    rows = []
    for method, found in shown:
        words = [signed(step.value, step.low, step.high, 3) for step in found]
        cells = [Cell(value, interval, order=step.value) for step, (value, interval) in zip(found, words, strict=True)]
        rows.append(Row(method.name, method.title, "", tuple(cells)))
    return Table(tuple(Column(f"{step.start:,}–{step.end:,}", "positions") for step in steps), tuple(rows))


def difference_plot(
    p: PositionDifferences, method: Drawn, reference: str, trained: int, box: tuple[int, int] = (520, 340), kind: str = ""
) -> Markup | None:
    """A method's differences by position (logarithmic): a line with a band; points are filled where the interval leaves out zero.

    Parameters
    ----------
    reference
        Title of the method that is subtracted.
    trained
        The length that the model was trained with, in tokens.
    box
        Width and height of the picture; below 300 it has no names of axes.
    """
    steps = p.methods.get(method.name, ())
    finite = [v for s in steps for v in (s.value, s.low, s.high) if math.isfinite(v)]
    if not finite:
        return None
    small = box[0] < 300
    clear = sum(step.clear for step in steps)
    label = (
        f"{method.title}: loss by position minus that of {reference} on the same documents, with 95 % intervals, which leave out zero at "
        f"{clear} of {len(steps)} positions; {steps[-1].words()}."
    )
    area = (50, 10, box[0] - 8, box[1] - 38) if small else (62, 34, box[0] - 26, box[1] - 54)
    plot = Plot(label, *box, area, kind)
    low, high = min(0.0, *finite), max(0.0, *finite)
    room = 0.07 * (high - low or 1.0)
    ends = steps[0].middle / 1.25, steps[-1].middle * 1.25
    x = logarithmic(*ends, plot.left, plot.right)
    y = linear(low - room, high + room, plot.bottom, plot.top)
    powers = [2**k for k in range(64) if ends[0] <= 2**k <= ends[1]]
    across = {float(n): f"{n:,}" for n in powers[:: -max(-(-len(powers) // (4 if small else 7)), 1)]}
    up = {value: tick.replace("-", "−") for value, tick in even_ticks(low - room, high + room, 3 if small else 6).items()}
    names = ("", "") if small else ("position", "nats a token (below zero: better)")  # the heading says, minus what
    plot.axes(x, across, y, up, *names)
    plot.line(plot.left, y(0.0), plot.right, y(0.0), "axis")
    if ends[0] <= trained <= ends[1]:
        plot.line(x(trained), plot.top, x(trained), plot.bottom, "limit")
        if not small:
            plot.text(x(trained) - 6, plot.bottom - 8, f"trained length {trained:,}", "t small halo", "end")
    plot.add(f'<g class="m-{method.slot}">')
    _band(plot, [(x(s.middle), y(s.low), y(s.high)) for s in steps])
    plot.path([(x(s.middle), y(s.value)) for s in steps], "curve")
    for s in steps:
        if math.isfinite(s.value):
            tip = f"{method.title} minus {reference}, {s.words()}"
            plot.mark(x(s.middle), y(s.value), "circle", f"tip {'point' if s.clear else 'open'}", size=3.0, tip=tip)
    plot.add("</g>")
    return plot.svg()


def _band(plot: Plot, edges: Sequence[tuple[float, float, float]]) -> None:
    """Between the lower and the upper ends, in one piece for each row of finite ones."""
    for finite, group in groupby(edges, key=lambda edge: all(map(math.isfinite, edge))):
        if finite:
            row = list(group)
            plot.path([*((x, low) for x, low, _ in row), *((x, high) for x, _, high in reversed(row))], "band", closed=True)
