"""The figures of a comparison. With a dozen methods colours tell kinds of methods apart and labels the methods, and a small picture for
each shows its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from markupsafe import Markup, escape

from harpe.errors import HarpeError
from harpe.report.comparison_curves import mean_bins, mean_curve, mean_grid
from harpe.report.comparison_read import Comparison, Entry, Measure
from harpe.report.comparison_tables import in_words, perplexity, signed_in, unit_words
from harpe.report.figures import Plot, Scale, even_ticks, heat_cells, linear, log_ticks, logarithmic, smoothed
from harpe.report.read import Bin
from harpe.report.tables import plain, signed

KINDS = {"harpe": "a base for every head", "control": "control: one base of that range", "a": "other training", "base": "no training"}
"""Colour slot and what it stands for."""
FOREST = 230
"""Width of the pictures of differences, in pixels."""
ROW = 24
"""Their height."""
GAP = 15.0
"""Between the labels of two lines."""
CHARACTER = 7
"""Room for one of a label, in pixels; a title that is cut off would not tell its row from others."""


def kind(entry: Entry) -> str:
    """The colour slot of a method."""
    return "harpe" if entry.per_head else "control" if entry.control else "a" if entry.trained else "base"


def slots(c: Comparison) -> dict[str, str]:
    return {entry.name: kind(entry) for entry in c.methods}


@dataclass(frozen=True)
class Line:
    """A method's line."""

    entry: Entry
    points: tuple[tuple[float, float], ...]
    tips: tuple[str, ...]
    """One for each point; "" for points that nothing is said of."""


@dataclass(frozen=True)
class Chart:
    """A figure with all methods in it."""

    svg: Markup
    names: frozenset[str]
    """Of the methods in it."""
    numbers: dict[str, int]
    """By which the script finds a method's line."""
    outside: tuple[str, ...]
    """Titles of the methods whose lines leave the frame."""


def limits(ranges: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """A frame around zero for the finite ranges of differences, unless few of them lie far from the others."""
    finite = [(low, high) for low, high in ranges if math.isfinite(low) and math.isfinite(high)] or [(-1.0, 1.0)]
    sizes = [max(abs(low), abs(high)) for low, high in finite]
    most = min(max(sizes), 3 * median(sizes)) or 1.0
    return max(min(0.0, *(low for low, _ in finite)), -most), min(max(0.0, *(high for _, high in finite)), most)


def frame_top(tops: Sequence[float], bottom: float) -> float:
    """Top of a frame that begins at `bottom`: the highest of the lines' tops, unless few lines lie far above the others."""
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


def _overview(label: str, lines: Sequence[Line]) -> tuple[Plot, float]:
    """An empty plot with room for a label at the end of every line, as wide as the longest title asks for; and where the labels begin."""
    right, longest = 640, max(len(line.entry.title) for line in lines)
    height = max(380, round(GAP * len(lines)) + 110)
    plot = Plot(label, max(860, right + 42 + CHARACTER * longest), height, (58, 34, right, height - 54), "overview lines")
    return plot, plot.right + 34.0


def _draw(plot: Plot, lines: Sequence[Line], numbers: dict[str, int], x: Scale, y: Scale, labels: float) -> None:
    ends = [next((p for p in reversed(line.points) if math.isfinite(p[1])), line.points[-1]) for line in lines]
    shown = [min(max(y(value), plot.top), plot.bottom) if math.isfinite(value) else plot.top for _, value in ends]
    for line, end, at, place in zip(lines, ends, shown, spread(shown, GAP, plot.top, plot.bottom), strict=True):
        plot.add(f'<g class="series m-{kind(line.entry)}" data-m="{numbers[line.entry.name]}">')
        plot.path([(x(a), y(b)) for a, b in line.points], "curve")
        for (a, b), tip in zip(line.points, line.tips, strict=True):
            if tip and math.isfinite(b) and plot.top <= y(b) <= plot.bottom:
                plot.mark(x(a), y(b), "circle", "tip point", size=2.6, tip=f"{line.entry.title}, {tip}")
        plot.line(x(end[0]) + 3, at, labels - 5, place, "leader")
        plot.text(labels, place + 4, line.entry.title, "t name label", "start")
        plot.add("</g>")


def _numbers(c: Comparison) -> dict[str, int]:
    return {entry.name: number for number, entry in enumerate(c.methods)}


def _outside(lines: Sequence[Line], top: float, start: float) -> tuple[str, ...]:
    return tuple(line.entry.title for line in lines if any(b > top for a, b in line.points if a >= start))


def _chart(c: Comparison, plot: Plot, lines: Sequence[Line], outside: tuple[str, ...]) -> Chart:
    return Chart(plot.svg(), frozenset(line.entry.name for line in lines), _numbers(c), outside)


def training_chart(c: Comparison) -> Chart | None:
    """Running mean of the training loss by tokens, the mean over seeds."""
    lines = []
    for entry in c.methods:
        curve = mean_curve(entry)
        drawn = smoothed(curve) if curve else None
        if drawn is not None:
            tokens, _, mean = (values.tolist() for values in drawn)
            every = max(len(tokens) // 24, 1)
            pairs = list(zip(tokens, mean, strict=True))
            tips = [f"{t:,.0f} tokens: {m:.3f}" if (len(pairs) - 1 - i) % every == 0 else "" for i, (t, m) in enumerate(pairs)]
            lines.append(Line(entry, tuple(pairs), tuple(tips)))
    if not lines:
        return None
    most = max(line.points[-1][0] for line in lines) or 1.0
    late = [[b for a, b in line.points if a >= 0.1 * most] or [line.points[-1][1]] for line in lines]
    low = min(map(min, late))
    top = frame_top([max(values) for values in late], low)
    room = 0.06 * (top - low or 1.0)
    names = ", ".join(f"{line.entry.title} {line.points[-1][1]:.3f}" for line in lines)
    label = f"Training loss in nats a token by tokens trained on, mean over seeds. It ends at: {names}."
    plot, labels = _overview(label, lines)
    x, y = linear(0, most, plot.left, plot.right), linear(low - room, top + room, plot.bottom, plot.top)
    plot.axes(x, even_ticks(0, most, 5), y, even_ticks(low - room, top + room, 5), "tokens trained on", "loss (nats a token)")
    _draw(plot, lines, _numbers(c), x, y, labels)
    return _chart(c, plot, lines, _outside(lines, top + room, 0.1 * most))


def _position_lines(c: Comparison) -> list[tuple[Line, tuple[Bin, ...]]]:
    found = []
    for entry in c.methods:
        bins = mean_bins(entry)
        if bins:
            points = tuple((b.middle, perplexity(b.nll)) for b in bins)
            found.append((Line(entry, points, tuple(_bin_words(b) for b in bins)), bins))
    return found


def _bin_words(b: Bin) -> str:
    middle, low, high = (plain(perplexity(v)) for v in (b.nll, b.low, b.high))
    return f"positions {b.start:,} to {b.end:,}: perplexity {middle} ({low}–{high})"


def _position_scales(c: Comparison, lines: Sequence[Line], plot: Plot) -> tuple[Scale, Scale, tuple[float, float], tuple[float, float]]:
    """Scales of both axes, the same in all pictures. In the frame: half the trained length and beyond."""
    first, last = min(line.points[0][0] for line in lines) / 1.2, max(line.points[-1][0] for line in lines) * 1.2
    late = [[math.log(b) for a, b in line.points if a >= c.original_length / 2 and math.isfinite(b)] for line in lines]
    late = [values for values in late if values] or [[0.0, 1.0]]
    low = min(map(min, late))
    top = frame_top([max(values) for values in late], low)
    room = 0.08 * (top - low or 0.5)
    ends = math.exp(low - room), math.exp(min(top + room, 700.0))
    return logarithmic(first, last, plot.left, plot.right), logarithmic(*ends, plot.bottom, plot.top), (first, last), ends


def _powers(first: float, last: float, most: int) -> dict[float, str]:
    powers = [2**k for k in range(64) if first <= 2**k <= last]
    return {float(p): f"{p:,}" for p in powers[:: -max(-(-len(powers) // most), 1)]}


def _signed(nats: float) -> str:
    return signed(nats, nats, nats, 3)[0]


def position_chart(c: Comparison) -> Chart | None:
    """Loss by position minus the baseline's at the same positions, the mean over seeds; None unless the baseline was measured."""
    found = _position_lines(c)
    base = next((bins for line, bins in found if line.entry is c.baseline), None)
    if base is None:
        return None
    lines = []
    for line, bins in found:
        if [(b.start, b.end) for b in bins] != [(b.start, b.end) for b in base]:
            raise HarpeError(f"The losses of {line.entry.name} and of {c.baseline.name} are of other positions. Evaluate both in one way.")
        points = tuple((b.middle, b.nll - other.nll) for b, other in zip(bins, base, strict=True))
        tips = [f"{tip}; {_signed(d)} nats" for tip, (_, d) in zip(line.tips, points, strict=True)]
        lines.append(Line(line.entry, points, tuple(tips)))
    spans = [[d for _, d in line.points if math.isfinite(d)] for line in lines if line.entry is not c.baseline]
    low, high = limits([(min(span), max(span)) for span in spans if span])
    room = 0.06 * (high - low)
    ends = ", ".join(f"{line.entry.title} {_signed(line.points[-1][1])}" for line in lines)
    label = f"Loss by position minus that of {c.baseline.title}, in nats a token, mean over seeds; in the last positions: {ends}."
    plot, labels = _overview(label, lines)
    first, last = lines[0].points[0][0] / 1.2, lines[0].points[-1][0] * 1.2
    x, y = logarithmic(first, last, plot.left, plot.right), linear(low - room, high + room, plot.bottom, plot.top)
    words = f"nats a token, minus {c.baseline.title} (below zero: better)"
    marks = {value: tick.replace("-", "−") for value, tick in even_ticks(low - room, high + room, 6).items()}
    plot.axes(x, _powers(first, last, 9), y, marks, "position", words)
    here = x(c.original_length)
    plot.line(here, plot.top, here, plot.bottom, "limit")
    plot.text(here - 6, plot.bottom - 8, f"trained length {c.original_length:,}", "t small halo", "end")
    _draw(plot, lines, _numbers(c), x, y, labels)
    outside = tuple(line.entry.title for line in lines if any(not low - room <= d <= high + room for _, d in line.points))
    return _chart(c, plot, lines, outside)


def position_panels(c: Comparison) -> list[tuple[Entry, Markup | None]]:
    """For each method its perplexity by position with the 95 % interval as a band, and the baseline's as a thin line."""
    found = _position_lines(c)
    panels: list[tuple[Entry, Markup | None]] = []
    by_name = {line.entry.name: (line, bins) for line, bins in found}
    base = by_name.get(c.baseline.name)
    for entry in c.methods:
        if entry.name not in by_name:
            panels.append((entry, None))
            continue
        line, bins = by_name[entry.name]
        label = f"{entry.title}: perplexity by position with 95 % intervals; {line.tips[-1]}."
        plot = Plot(label, 270, 176, (46, 10, 262, 138), "panel")
        x, y, across, up = _position_scales(c, [found_line for found_line, _ in found], plot)
        plot.axes(x, _powers(*across, 4), y, dict(list(log_ticks(*up).items())[-5:]), "", "")
        plot.line(x(c.original_length), plot.top, x(c.original_length), plot.bottom, "limit")
        plot.add(f'<g class="m-{kind(entry)}">')
        low = [(x(b.middle), y(perplexity(b.low))) for b in bins]
        high = [(x(b.middle), y(perplexity(b.high))) for b in bins]
        plot.path(high + low[::-1], "band", closed=True)
        if base and base[0].entry is not entry:
            plot.path([(x(a), y(b)) for a, b in base[0].points], "reference")
        plot.path([(x(a), y(b)) for a, b in line.points], "curve")
        for (a, b), tip in zip(line.points, line.tips, strict=True):
            if math.isfinite(b) and plot.top <= y(b) <= plot.bottom:
                plot.mark(x(a), y(b), "circle", "tip point", size=3.0, tip=tip)
        plot.add("</g>")
        panels.append((entry, plot.svg()))
    return panels if found else []


def heat_maps(c: Comparison) -> list[tuple[Entry, Markup | None]]:
    """The needle grid of every method; empty where none was run."""
    grids = [(entry, mean_grid(entry)) for entry in c.methods]
    drawn = [(e, heat_cells(g.lengths, g.depths, g.values, g.notes, e.title) if g else None) for e, g in grids]
    return drawn if any(map_ for _, map_ in drawn) else []


@dataclass(frozen=True)
class Forest:
    """Pictures of a measure's differences, one for every line of their table."""

    axis: Markup
    rows: dict[str, Markup]
    zero: float
    """Where no difference lies, in per cent of the width."""


def forest(c: Comparison, measure: Measure) -> Forest:
    """Differences to the baseline as points with their intervals: filled where real, hollow where not shown."""
    found = {entry.name: (entry, d) for entry in c.methods if (d := measure.differences.get(entry.name)) is not None}
    low, high = limits([(d.low, d.high) for _, d in found.values()])
    room = 0.07 * (high - low)
    x = linear(low - room, high + room, 8, FOREST - 8)
    better = "lower" if measure.better == "lower" else "higher"
    axis = Plot(f"Axis of the differences in {unit_words(measure)}; {better} is better.", FOREST, 40, (8, 18, FOREST - 8, 22), "axis-row")
    axis.text(2, 10, "← better" if better == "lower" else "← worse", "t small", "start")
    axis.text(FOREST - 2, 10, "worse →" if better == "lower" else "better →", "t small", "end")
    for tick, words in even_ticks(low, high, 3).items():
        axis.text(x(tick), 30, words.replace("-", "−"), "t small")
        axis.line(x(tick), 35, x(tick), 40, "axis")
    rows = {}
    for name, (entry, d) in found.items():
        value, interval = signed_in(measure, d)
        tip = f"{entry.title} minus {c.baseline.title}: {value} ({interval}) {unit_words(measure)}, {in_words(measure, name)}"
        plot = Plot(tip, FOREST, ROW, (0, 0, FOREST, ROW), "forest")
        plot.add(f'<g class="tip m-{kind(entry)}"><title>{escape(tip)}</title>')
        middle = ROW / 2
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
    return Forest(axis.svg(), rows, 100 * x(0) / FOREST)
