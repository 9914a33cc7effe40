"""The figures as inline SVG: no script, no fonts; colours from the page's style sheet, so that they follow light and dark.

Attention waveform of a base b (Chen et al. 2023, "Attention Buckets", arXiv 2312.04455), d rotary dimensions, distance m:

    A_b(m) = (2 / sqrt(d)) sum_{i < d/2} cos(m b^(-2i/d))

Up to a constant it is the score of a query with a key at distance m when all entries of both are equal: its valleys are
distances that a head with base b attends to less. The figure draws it smoothed by a Gaussian of standard deviation s, which has
a closed form: cos(m f) becomes cos(m f) exp(-(s f)^2 / 2). Unsmoothed, the fast pairs hide the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from harpe.report.read import Curve, Grid, Run

VIRIDIS = ("440154", "482878", "3e4a89", "31688e", "26828e", "1f9e89", "35b779", "6ece58", "b5de2b", "fde725")
BASE_COLOURS = ("7d4fc4", "b5479f", "d5475f", "d06a2a", "b08512")
"""From the lowest base to the highest; each is at least 3:1 against both page backgrounds."""
EXTRA_SLOTS = ("a", "b", "c", "d", "e")
SPREAD = 32
"""The waveform is smoothed over the target length divided by this (a Gaussian as wide as a plain average of that many)."""

Scale = Callable[[float], float]


def slots(run: Run) -> dict[str, str]:
    """The colour slot of every method: fixed for the model before, HARPE and the control; by display order for any other."""
    roles = ((run.before, "base"), (run.harpe, "harpe"), (run.control, "control"))
    fixed = {method.name: slot for method, slot in roles if method}
    others = [m.name for m in run.methods if m.name not in fixed]
    return fixed | {name: EXTRA_SLOTS[i % len(EXTRA_SLOTS)] for i, name in enumerate(others)}


def blend(colours: Sequence[str], share: float) -> str:
    """The colour at `share` (0..1) of a scale that is given by hexadecimal stops."""
    place = min(max(share, 0.0), 1.0) * (len(colours) - 1)
    left = min(int(place), len(colours) - 2)
    pairs = [(int(colours[left][k : k + 2], 16), int(colours[left + 1][k : k + 2], 16)) for k in (0, 2, 4)]
    return "#" + "".join(f"{round(a + (b - a) * (place - left)):02x}" for a, b in pairs)


def ink_on(colour: str) -> str:
    """Black or white, whichever stands out more on `colour` (WCAG relative luminance)."""
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000" if luminance > 0.179 else "#fff"


def waveform(base: float, rotary_dim: int, distances: NDArray[np.float64], window: float = 0.0) -> NDArray[np.float64]:
    """A_b at `distances`, smoothed by a Gaussian with the variance window^2 / 12 of an average over `window` positions."""
    frequencies = base ** -(np.arange(0, rotary_dim, 2, dtype=np.float64) / rotary_dim)
    damping = np.exp(-((window * frequencies) ** 2) / 24)
    return np.asarray(2 / math.sqrt(rotary_dim) * (np.cos(np.outer(distances, frequencies)) @ damping), dtype=np.float64)


def turning_points(values: NDArray[np.float64], count: int) -> tuple[list[int], list[int]]:
    """Indices of the `count` deepest valleys and highest peaks, by how far they stand out from a quarter of the curve."""
    reach = max(len(values) // 8, 1)

    def of(sign: float) -> list[int]:
        v = sign * values
        inner = [i for i in range(1, len(v) - 1) if v[i - 1] < v[i] >= v[i + 1]]
        stands = {i: v[i] - max(v[max(i - reach, 0) : i].min(), v[i + 1 : i + 1 + reach].min()) for i in inner}
        return sorted(sorted(inner, key=lambda i: -stands[i])[:count])

    return of(-1.0), of(1.0)


class Plot:
    """A drawing area with axes; everything is appended as SVG text."""

    def __init__(self, label: str, width: int, height: int, box: tuple[int, int, int, int], kind: str = "") -> None:
        self.label, self.width, self.height, self.kind = label, width, height, kind
        self.left, self.top, self.right, self.bottom = box
        self.parts: list[str] = []

    def add(self, part: str) -> None:
        self.parts.append(part)

    def text(self, x: float, y: float, words: str, css: str = "t", anchor: str = "middle", style: str = "") -> None:
        extra = f' style="{style}"' if style else ""
        self.add(f'<text x="{x:.1f}" y="{y:.1f}" class="{css}" text-anchor="{anchor}"{extra}>{escape(words)}</text>')

    def line(self, x1: float, y1: float, x2: float, y2: float, css: str) -> None:
        self.add(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{css}"/>')

    def path(self, points: Iterable[tuple[float, float]], css: str, style: str = "", closed: bool = False) -> None:
        """A line through the finite points, clipped to the drawing area by the nested svg around it."""
        inside = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
        if inside:
            way = "M" + "L".join(f"{x - self.left:.1f} {y - self.top:.1f}" for x, y in inside) + ("Z" if closed else "")
            extra = f' style="{style}"' if style else ""
            frame = f'x="{self.left}" y="{self.top}" width="{self.right - self.left}" height="{self.bottom - self.top}"'
            self.add(f'<svg {frame} overflow="hidden"><path d="{way}" class="{css}"{extra}/></svg>')

    def mark(self, x: float, y: float, shape: str, css: str = "", style: str = "", size: float = 4.0, tip: str = "") -> None:
        """A circle, square, diamond, or triangle (up, down) around a point; `tip` is shown to a reader who points at it."""
        s = size
        outlines = {
            "square": [(-s, -s), (s, -s), (s, s), (-s, s)],
            "diamond": [(0, -1.4 * s), (1.4 * s, 0), (0, 1.4 * s), (-1.4 * s, 0)],
            "up": [(0, -1.2 * s), (1.2 * s, s), (-1.2 * s, s)],
            "down": [(0, 1.2 * s), (1.2 * s, -s), (-1.2 * s, -s)],
        }
        if shape == "circle":
            tag, place = "circle", f'cx="{x:.1f}" cy="{y:.1f}" r="{s:.1f}"'
        else:
            corners = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in outlines[shape])
            tag, place = "polygon", f'points="{corners}"'
        extra = f' style="{style}"' if style else ""
        end = f"><title>{escape(tip)}</title></{tag}>" if tip else "/>"
        self.add(f'<{tag} {place} class="{css}"{extra}{end}')

    def arrow(self, x: float, y: float, side: int, css: str) -> None:
        """An arrow head with its point at (x, y), to the left (side -1) or to the right (1)."""
        back = x - 9 * side
        self.add(f'<polygon points="{x:.1f},{y:.1f} {back:.1f},{y - 5:.1f} {back:.1f},{y + 5:.1f}" class="{css}"/>')

    def axes(self, x: Scale, xs: dict[float, str], y: Scale, ys: dict[float, str], x_name: str, y_name: str) -> None:
        """Grid lines and tick labels at the values `xs` and `ys`, and the names of both axes."""
        for value, words in ys.items():
            self.line(self.left, y(value), self.right, y(value), "grid")
            self.text(self.left - 8, y(value) + 4, words, anchor="end")
        self.line(self.left, self.bottom, self.right, self.bottom, "axis")
        for value, words in xs.items():
            self.line(x(value), self.bottom, x(value), self.bottom + 4, "axis")
            self.text(x(value), self.bottom + 19, words)
        self.text((self.left + self.right) / 2, self.height - 6, x_name, "t name")
        self.text(self.left, self.top - 12, y_name, "t name", "start")

    def svg(self) -> Markup:
        head = f'<svg viewBox="0 0 {self.width} {self.height}" class="figure {self.kind}" role="img"'
        return Markup(f'{head} aria-label="{escape(self.label)}">{"".join(self.parts)}</svg>')


def linear(low: float, high: float, start: float, end: float) -> Scale:
    return lambda value: start + (value - low) / (high - low or 1.0) * (end - start)


def logarithmic(low: float, high: float, start: float, end: float) -> Scale:
    inner = linear(math.log(low), math.log(high), start, end)
    return lambda value: inner(math.log(value)) if value > 0 else math.nan


def short_number(value: float) -> str:
    """4096 as 4,096; 1500000 as 1.5M."""
    for size, letter in ((1e9, "B"), (1e6, "M")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value / 1e3:.3g}k" if abs(value) >= 1e4 else f"{value:,.10g}"


def even_ticks(low: float, high: float, count: int = 5) -> dict[float, str]:
    """About `count` round values between `low` and `high`."""
    raw = (high - low) / count or 1.0
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * k for k in (1, 2, 2.5, 5, 10) if size * k >= raw * 0.999)
    values = [k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    return {round(v, 12): short_number(round(v, 12)) for v in values}


def log_ticks(low: float, high: float) -> dict[float, str]:
    """Powers of ten times 1, 2, 5; fewer over a wide range."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    wide = math.log10(high / low)
    steps = (1,) if wide > 3 else (1, 2, 5) if wide > 0.7 else (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)
    values = [round(k * 10.0**d, 12) for d in decades for k in steps]
    return {v: short_number(v) for v in values if low * 0.999 <= v <= high * 1.001}


def base_style(base: float, bases: Sequence[float], what: str) -> str:
    low, high = min(bases), max(bases)
    share = math.log(base / low) / math.log(high / low) if high > low else 0.5
    return f"{what}:{blend(BASE_COLOURS, share)}"


def waveforms(run: Run) -> Markup | None:
    """The attention waveforms of HARPE's bases and of the control's one base, over distances up to the target length."""
    method, control = run.harpe, run.control
    if method is None:
        return None
    bases, target = sorted(set(method.bases)), run.target_length
    window = target / SPREAD
    distances = np.linspace(0, target, min(600, max(target, 2)))
    curves = {b: waveform(b, run.model.rotary_dim, distances, window) for b in bases}
    single = waveform(control.bases[0], run.model.rotary_dim, distances, window) if control else None
    shown = np.concatenate([c[len(distances) // 12 :] for c in [*curves.values(), *([] if single is None else [single])]])
    room = 0.08 * (float(shown.max() - shown.min()) or 1.0)
    low, high = float(shown.min()) - room, float(shown.max()) + 2 * room
    label = (
        f"Attention waveforms of the {len(bases)} bases of {method.title}, {bases[0]:,.0f} to {bases[-1]:,.0f}, over distances "
        f"of 0 to {target:,} tokens, smoothed over {window:,.0f} tokens. Their peaks and valleys fall at different distances."
    )
    label += f" A bold line shows the single base {control.bases[0]:,.0f} of the control." if control else ""
    plot = Plot(label, 760, 360, (44, 34, 718, 312), "wide")
    x, y = linear(0, target, plot.left, plot.right), linear(low, high, plot.bottom, plot.top)
    ticks = {target * k / 4: f"{round(target * k / 4):,}" for k in range(5)}
    plot.axes(x, ticks, y, even_ticks(low, high, 4), "distance between two tokens", "attention waveform")
    plot.line(x(run.original_length), plot.top, x(run.original_length), plot.bottom, "limit")
    for base, values in curves.items():
        plot.path(zip(map(x, distances), map(y, values), strict=True), "wave", base_style(base, bases, "stroke"))
    if single is not None:
        plot.path(zip(map(x, distances), map(y, single), strict=True), "wave m-control bold")
    plot.text(x(run.original_length) + 6, plot.top + 8, f"trained length {run.original_length:,}", "t small halo", "start")
    for base in dict.fromkeys((bases[0], bases[-1])):
        skip = len(distances) // 8
        valleys, peaks = turning_points(curves[base][skip:], 3)
        for indices, shape, away in ((valleys, "down", 9.0), (peaks, "up", -9.0)):
            for i in indices:
                px, py = x(distances[skip + i]), y(curves[base][skip + i]) + away
                plot.mark(px, py, "up" if shape == "down" else "down", "turn", base_style(base, bases, "fill"), 3.6)
    return plot.svg()


def number_line(run: Run) -> Markup | None:
    """The bases on a logarithmic line, with the trained base and the control's."""
    method, control = run.harpe, run.control
    if method is None:
        return None
    bases, trained = sorted(set(method.bases)), run.model.base
    marked = [*bases, trained, *([control.bases[0]] if control else [])]
    label = f"Bases on a logarithmic line: the trained base {trained:,.0f}; {method.title}: "
    label += ", ".join(f"{b:,.0f}" for b in bases) + (f"; the control {control.bases[0]:,.0f}." if control else ".")
    plot = Plot(label, 760, 96, (44, 20, 718, 44), "wide")
    x = logarithmic(min(marked) / 1.5, max(marked) * 1.25, plot.left, plot.right)
    plot.line(plot.left, plot.bottom, plot.right, plot.bottom, "axis")
    for value, words in log_ticks(min(marked) / 1.5, max(marked) * 1.25).items():
        plot.line(x(value), plot.bottom, x(value), plot.bottom + 5, "axis")
        plot.text(x(value), plot.bottom + 20, words)
    for base in bases:
        plot.line(x(base), plot.bottom - 16, x(base), plot.bottom, "stem")
        plot.mark(x(base), plot.bottom - 18, "circle", "dot", base_style(base, bases, "fill"), 5.5)
    plot.mark(x(trained), plot.bottom, "circle", "hollow", size=5.5)
    if control:
        plot.mark(x(control.bases[0]), plot.bottom, "diamond", "fill m-control", size=5.5)
    plot.text((plot.left + plot.right) / 2, plot.height - 8, "RoPE base", "t name")
    return plot.svg()


SHAPES = {"harpe": "circle", "control": "diamond", "base": "square", "a": "up", "b": "down"}


def smoothed(curve: Curve) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]] | None:
    """Tokens, loss and running mean of the loss, each [n] with n <= 400; None where no loss is finite."""
    tokens, loss = np.array(curve.tokens), np.array(curve.loss)
    tokens, loss = tokens[np.isfinite(loss)], loss[np.isfinite(loss)]
    size = -(-len(loss) // 400)
    if not size:
        return None
    cuts = np.arange(0, len(loss), size)
    counts = np.diff(np.append(cuts, len(loss)))
    tokens, loss = np.add.reduceat(tokens, cuts) / counts, np.add.reduceat(loss, cuts) / counts
    half = max(len(loss) // 40, 0)
    return tokens, loss, np.array([loss[max(i - half, 0) : i + half + 1].mean() for i in range(len(loss))])


def training_curves(run: Run) -> Markup | None:
    """Training loss by tokens: every logged step faint, a running mean on top."""
    drawn = [(m, *curve) for m in run.methods if m.curve is not None and (curve := smoothed(m.curve)) is not None]
    if not drawn:
        return None
    names = ", ".join(f"{m.title} ends at {mean[-1]:.3f}" for m, _, _, mean in drawn)
    plot = Plot(f"Training loss in nats a token by tokens trained on: {names}.", 520, 340, (52, 34, 508, 286))
    low, high = min(float(mean.min()) for *_, mean in drawn), max(float(mean.max()) for *_, mean in drawn)
    low, high = low - 0.08 * (high - low or 1), high + 0.08 * (high - low or 1)
    most = max(float(tokens[-1]) for _, tokens, *_ in drawn) or 1.0
    x, y = linear(0, most, plot.left, plot.right), linear(low, high, plot.bottom, plot.top)
    plot.axes(x, even_ticks(0, most * 0.97, 4), y, even_ticks(low, high, 5), "tokens trained on", "loss (nats a token)")
    colour = slots(run)
    for method, tokens, loss, _ in drawn:
        plot.path(zip(map(x, tokens), map(y, loss), strict=True), f"faint m-{colour[method.name]}")
    for method, tokens, _, mean in drawn:
        plot.path(zip(map(x, tokens), map(y, mean), strict=True), f"curve m-{colour[method.name]}")
    return plot.svg()


def perplexity_by_position(run: Run) -> Markup | None:
    """Perplexity by position in the document, both axes logarithmic, with the 95 % interval as a band."""
    measured = [(m, m.perplexity.bins) for m in run.methods if m.perplexity and m.perplexity.bins]
    values = [math.exp(v) for _, bins in measured for b in bins for v in (b.low, b.high) if math.isfinite(v) and v < 700]
    if not values:
        return None
    last_bins = ((m, next((b for b in reversed(bins) if math.isfinite(b.nll)), None)) for m, bins in measured)
    ends = [f"{m.title} {_exp(b.nll):,.3g}" for m, b in last_bins if b]
    label = "Perplexity by position in the document, with 95 % intervals; in the last positions: " + ", ".join(ends) + "."
    plot = Plot(label, 520, 340, (52, 34, 494, 286))
    first = min(max(b.start, 1) for _, bins in measured for b in bins)
    last = max(b.end for _, bins in measured for b in bins)
    span = (max(values) / min(values)) ** 0.06 * 1.01
    low, high = min(values) / span, max(values) * span
    x, y = logarithmic(first, last, plot.left, plot.right), logarithmic(low, high, plot.bottom, plot.top)
    powers = [2**k for k in range(64) if first <= 2**k <= last]
    ticks = {p: f"{p:,}" for p in powers[:: -max(-(-len(powers) // 7), 1)]}
    plot.axes(x, ticks, y, log_ticks(low, high), "position", "perplexity")
    if first <= run.original_length <= last:
        here = x(run.original_length)
        plot.line(here, plot.top, here, plot.bottom, "limit")
        plot.text(here - 6, plot.top + 8, f"trained length {run.original_length:,}", "t small halo", "end")
    colour = slots(run)
    for method, bins in measured:
        edge = [(x(b.middle), y(_exp(b.high))) for b in bins] + [(x(b.middle), y(_exp(b.low))) for b in reversed(bins)]
        plot.path(edge, f"band m-{colour[method.name]}", closed=True)
    for method, bins in measured:
        slot = colour[method.name]
        points = [(x(b.middle), y(_exp(b.nll))) for b in bins]
        plot.path(points, f"curve m-{slot}")
        for px, py in points:
            if math.isfinite(py):
                plot.mark(px, py, SHAPES.get(slot, "circle"), f"point m-{slot}", size=3.2)
    return plot.svg()


def _exp(nll: float) -> float:
    return math.exp(nll) if nll < 700 else math.nan


def heat_map(grid: Grid, title: str) -> Markup:
    """Single-needle score in percent: columns are lengths, rows are depths from the start of the document to its end."""
    values = [[cell.value for cell in row] for row in grid.cells]
    notes = [[cell.interval_words() for cell in row] for row in grid.cells]
    return heat_cells(grid.lengths, grid.depths, values, notes, title)


def heat_cells(
    lengths: Sequence[int], depths: Sequence[float], values: Sequence[Sequence[float]], notes: Sequence[Sequence[str]], title: str
) -> Markup:
    """A heat map of scores 0..1, `values[length][depth]`, with a note on every cell."""
    places = [(n, d) for n in lengths for d in depths]
    worst = min((v, *place) for place, v in zip(places, (v for row in values for v in row), strict=True))
    label = f"{title}: single-needle score by length and depth; "
    label += f"lowest {100 * worst[0]:.0f} % at {worst[1]:,} tokens, depth {100 * worst[2]:.0f} %."
    wide, tall, left, top = 58, 38, 52, 26
    plot = Plot(label, left + wide * len(lengths) + 4, top + tall * len(depths) + 46, (left, top, 0, 0), "heat")
    plot.text(left, 14, "depth", "t name", "end")
    for row, depth in enumerate(depths):
        plot.text(left - 8, top + tall * (row + 0.5) + 4, f"{100 * depth:.0f}%", anchor="end")
    for column, (length, cells) in enumerate(zip(lengths, values, strict=True)):
        for row, value in enumerate(cells):
            colour = blend(VIRIDIS, value if math.isfinite(value) else 0.0)
            px, py = left + wide * column, top + tall * row
            place = f"{length:,} tokens, depth {100 * depths[row]:.0f} %"
            plot.add(f'<g class="tip"><title>{place}: {100 * value:.1f} %, {escape(notes[column][row])}</title>')
            plot.add(f'<rect x="{px + 1}" y="{py + 1}" width="{wide - 2}" height="{tall - 2}" rx="3" fill="{colour}"/>')
            plot.text(px + wide / 2, py + tall / 2 + 5, f"{100 * value:.0f}", "cell", style=f"fill:{ink_on(colour)}")
            plot.add("</g>")
        plot.text(left + wide * (column + 0.5), top + tall * len(depths) + 18, f"{length:,}")
    plot.text(left + wide * len(lengths) / 2, plot.height - 6, "length in tokens", "t name")
    return plot.svg()


def heat_gradient() -> str:
    """The colour scale of the heat maps as a CSS gradient."""
    return "linear-gradient(90deg, " + ", ".join(f"#{c}" for c in VIRIDIS) + ")"
