"""Figures that hold all rows. With a dozen of them colours tell kinds of rows apart, and labels the rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from markupsafe import Markup

from harpe.errors import HarpeError
from harpe.report.figures.plot import Plot, Scale, even_ticks, linear, logarithmic, minus_signs, powers_of_two
from harpe.report.means import mean_bins, mean_curve, smoothed
from harpe.report.read.run import Row, Run
from harpe.report.read.scores import Bin
from harpe.report.tables.results import perplexity
from harpe.report.wording import plain, signed

KINDS = {
    "harpe": "heads that differ",
    "control": "control",
    "a": "other training",
    "base": "no training",
}
"""Colour slot and what it stands for."""
GAP = 15.0
"""Between the labels of two lines."""
CHARACTER = 7
"""Room for one of a label, in pixels; a title that is cut off would not tell its row from others."""

Points = tuple[tuple[float, float], ...]


def kind(row: Row) -> str:
    """The colour slot of a row."""
    return "harpe" if row.per_head else "base" if not row.trained else "control" if row.control else "a"


@dataclass(frozen=True)
class Line:
    """A row's line."""

    row: Row
    points: Points
    tips: tuple[str, ...]
    """One for each point; "" for points that nothing is said of."""
    faint: Points = ()
    """What the points are a running mean of."""


@dataclass(frozen=True)
class Chart:
    """A figure with all rows in it."""

    svg: Markup
    names: frozenset[str]
    """Of the rows in it."""
    numbers: dict[str, int]
    """By which the script finds a row's line."""
    outside: tuple[str, ...]
    """Titles of the rows whose lines leave the frame."""


def limits(ranges: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """A frame around zero for the finite ranges of differences, unless few of them lie far from the others."""
    finite = [(low, high) for low, high in ranges if math.isfinite(low) and math.isfinite(high)] or [(-1.0, 1.0)]
    sizes = [max(abs(low), abs(high)) for low, high in finite]
    most = min(max(sizes), 3 * median(sizes)) or 1.0
    return max(min(0.0, *(low for low, _ in finite)), -most), min(max(0.0, *(high for _, high in finite)), most)


def frame_top(tops: Sequence[float], bottom: float) -> float:
    """Top of a frame that begins at `bottom`: the highest of the lines' tops, unless few lines lie far above others."""
    middle = median(tops)
    return min(max(tops), middle + 2 * (middle - bottom)) if middle > bottom else max(tops)


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places for labels near `places`, in their order, at least `gap` apart where they fit between `low` and `high`."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    gap = min(gap, (high - low) / max(len(places) - 1, 1))
    found = [0.0] * len(places)
    last = low - gap
    for i in order:
        last = found[i] = max(places[i], last + gap)
    last = high + gap
    for i in reversed(order):
        last = found[i] = min(found[i], last - gap)
    return found


def _overview(label: str, lines: Sequence[Line]) -> Plot:
    """An empty plot with room for a label at the end of every line, as wide as the longest title asks for."""
    right, longest = 640, max(len(line.row.title) for line in lines)
    height = max(380, round(GAP * len(lines)) + 110)
    width = max(860, right + 42 + CHARACTER * longest)
    return Plot(label, width, height, (58, 34, right, height - 54), "overview lines")


def _chart(run: Run, plot: Plot, lines: Sequence[Line], x: Scale, y: Scale, outside: Sequence[Line]) -> Chart:
    """The lines in their frame, each with its title beside its end; `outside` are those that leave it."""
    numbers = {row.name: number for number, row in enumerate(run.rows)}
    labels = plot.right + 34.0
    ends = [next((p for p in reversed(line.points) if math.isfinite(p[1])), line.points[-1]) for line in lines]
    shown = [min(max(y(value), plot.top), plot.bottom) if math.isfinite(value) else plot.top for _, value in ends]
    for line, end, at, place in zip(lines, ends, shown, spread(shown, GAP, plot.top, plot.bottom), strict=True):
        plot.add(f'<g class="series m-{kind(line.row)}" data-m="{numbers[line.row.name]}">')
        plot.path([(x(a), y(b)) for a, b in line.faint], "faint")
        plot.path([(x(a), y(b)) for a, b in line.points], "curve")
        for (a, b), tip in zip(line.points, line.tips, strict=True):
            if tip and math.isfinite(b) and plot.top <= y(b) <= plot.bottom:
                plot.mark(x(a), y(b), "circle", "tip point", size=2.6, tip=f"{line.row.title}, {tip}")
        plot.line(x(end[0]) + 3, at, labels - 5, place, "leader")
        plot.text(labels, place + 4, line.row.title, "t name label", "start")
        plot.add("</g>")
    names = frozenset(line.row.name for line in lines)
    return Chart(plot.svg(), names, numbers, tuple(line.row.title for line in outside))


def over_seeds(run: Run) -> str:
    """Words for what is a mean over seeds in a comparison."""
    return ", mean over seeds" if run.comparison else ""


def training_chart(run: Run) -> Chart | None:
    """Running mean of the training loss by tokens, the mean over seeds; of a single run also the losses themselves."""
    lines = []
    for row in run.rows:
        curve = mean_curve(row)
        drawn = smoothed(curve) if curve else None
        if drawn is not None:
            tokens, logged, mean = (values.tolist() for values in drawn)
            every = max(len(tokens) // 24, 1)
            pairs = list(zip(tokens, mean, strict=True))
            tips = [
                f"{t:,.0f} tokens: {m:.3f}" if (len(pairs) - 1 - i) % every == 0 else ""
                for i, (t, m) in enumerate(pairs)
            ]
            faint = () if run.comparison else tuple(zip(tokens, logged, strict=True))
            lines.append(Line(row, tuple(pairs), tuple(tips), faint))
    if not lines:
        return None
    most = max(line.points[-1][0] for line in lines) or 1.0
    late = [[b for a, b in line.points if a >= 0.1 * most] or [line.points[-1][1]] for line in lines]
    low = min(map(min, late))
    top = frame_top([max(values) for values in late], low)
    room = 0.06 * (top - low or 1.0)
    names = ", ".join(f"{line.row.title} {line.points[-1][1]:.3f}" for line in lines)
    label = f"Training loss in nats a token by tokens trained on{over_seeds(run)}. It ends at: {names}."
    plot = _overview(label, lines)
    x, y = linear(0, most, plot.left, plot.right), linear(low - room, top + room, plot.bottom, plot.top)
    plot.axes(
        x, even_ticks(0, most, 5), y, even_ticks(low - room, top + room, 5), "tokens trained on", "loss (nats a token)"
    )
    outside = [line for line in lines if any(b > top + room for a, b in line.points if a >= 0.1 * most)]
    return _chart(run, plot, lines, x, y, outside)


def bin_words(b: Bin) -> str:
    """Perplexity in a bin with its interval."""
    middle, low, high = (plain(perplexity(v)) for v in (b.nll, b.low, b.high))
    return f"positions {b.start:,} to {b.end:,}: perplexity {middle} ({low}–{high})"


def _signed(nats: float) -> str:
    return signed(nats, nats, nats, 3)[0]


def position_chart(run: Run) -> Chart | None:
    """Loss by position minus the baseline's, the mean over the seeds of both; None unless the baseline was measured."""
    baseline = run.baseline
    if not mean_bins(baseline):
        return None
    lines = []
    for row in run.rows:
        bins, base = mean_bins(row, baseline), mean_bins(baseline, row)
        if not bins:
            continue
        if [(b.start, b.end) for b in bins] != [(b.start, b.end) for b in base]:
            raise HarpeError(
                f"The losses of {row.name} and of {baseline.name} are of other positions. Evaluate both in one way."
            )
        points = tuple((b.middle, b.nll - other.nll) for b, other in zip(bins, base, strict=True))
        tips = [f"{bin_words(b)}; {_signed(d)} nats" for b, (_, d) in zip(bins, points, strict=True)]
        lines.append(Line(row, points, tuple(tips)))
    spans = [[d for _, d in line.points if math.isfinite(d)] for line in lines if line.row is not baseline]
    low, high = limits([(min(span), max(span)) for span in spans if span])
    room = 0.06 * (high - low)
    ends = ", ".join(f"{line.row.title} {_signed(line.points[-1][1])}" for line in lines)
    label = f"Loss by position minus that of {baseline.title}, in nats a token{over_seeds(run)}; "
    label += f"in the last positions: {ends}."
    plot = _overview(label, lines)
    first, last = lines[0].points[0][0] / 1.2, lines[0].points[-1][0] * 1.2
    x, y = logarithmic(first, last, plot.left, plot.right), linear(low - room, high + room, plot.bottom, plot.top)
    words = f"nats a token, minus {baseline.title} (below zero: better)"
    up = minus_signs(even_ticks(low - room, high + room, 6))
    plot.axes(x, powers_of_two(first, last, 9), y, up, "position", words)
    here = x(run.original_length)
    plot.line(here, plot.top, here, plot.bottom, "limit")
    drawn = [d for line in lines for at, d in line.points if at <= run.original_length and low <= d <= high] or [0.0]
    upper = high - max(drawn) >= min(drawn) - low  # where the lines leave more room
    at = plot.top + 12 if upper else plot.bottom - 8
    plot.text(here - 6, at, f"trained length {run.original_length:,}", "t small halo", "end")
    outside = [line for line in lines if any(not low - room <= d <= high + room for _, d in line.points)]
    return _chart(run, plot, lines, x, y, outside)
