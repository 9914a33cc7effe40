"""A drawing area with axes, scales and ticks, as inline SVG.

No script and no fonts; colours from the page's style sheet, so that they follow light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from markupsafe import Markup, escape

Scale = Callable[[float], float]


def blend(colours: Sequence[str], share: float) -> str:
    """The colour at `share` (0..1) of a scale that is given by hexadecimal stops."""
    place = min(max(share, 0.0), 1.0) * (len(colours) - 1)
    left = min(int(place), len(colours) - 2)
    pairs = [(int(colours[left][k : k + 2], 16), int(colours[left + 1][k : k + 2], 16)) for k in (0, 2, 4)]
    return "#" + "".join(f"{round(a + (b - a) * (place - left)):02x}" for a, b in pairs)


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

    def mark(
        self, x: float, y: float, shape: str, css: str = "", style: str = "", size: float = 4.0, tip: str = ""
    ) -> None:
        """A circle, square, diamond, or triangle (up, down) around a point; `tip` is told who points at it."""
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


def quarters(end: float) -> dict[float, str]:
    """0, `end`, and the three quarters between."""
    return {end * k / 4: f"{round(end * k / 4):,}" for k in range(5)}


def plain_ticks(low: float, high: float, unit: str = "", times: float = 1) -> dict[float, str]:
    """`even_ticks` whose numbers are written out, `times` as large and with a unit behind them."""
    return {at: f"{times * at:.6g}{unit}" for at in even_ticks(low, high, 5)}


def log_ticks(low: float, high: float) -> dict[float, str]:
    """Powers of ten times 1, 2, 5; fewer over a wide range."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    wide = math.log10(high / low)
    steps = (1,) if wide > 3 else (1, 2, 5) if wide > 0.7 else (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)
    values = [round(k * 10.0**d, 12) for d in decades for k in steps]
    return {v: short_number(v) for v in values if low * 0.999 <= v <= high * 1.001}


def powers_of_two(first: float, last: float, most: int) -> dict[float, str]:
    """At most `most` powers of two, evenly among those between `first` and `last`; the largest is one of them."""
    powers = [2**k for k in range(64) if first <= 2**k <= last]
    return {float(p): f"{p:,}" for p in powers[:: -max(-(-len(powers) // most), 1)]}


def minus_signs(ticks: dict[float, str]) -> dict[float, str]:
    """Ticks with a proper minus."""
    return {value: words.replace("-", "−") for value, words in ticks.items()}
