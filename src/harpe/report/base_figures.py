"""The figures of a base set as SVG files that stand on their own: ripples, coverage along the length, number line.

They are drawn from the JSON object that `harpe bases` writes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harpe.positions.base_sets import PUBLISHED_SET, uniform_bases
from harpe.positions.complementarity import first_position, ripples
from harpe.report.figures import Plot, base_style, linear, log_ticks, logarithmic, short_number

LANES = 12
"""Most bases whose ripples are drawn one above the other."""
SHOWN = 64
"""Positions that are shown of the ripples: about ten of their periods."""
BINS = 40
"""Bins of the coverage along the length."""
COVERED, UNCOVERED = "#1f9e89", "#c8321e"
OURS, EVEN, ONE = "#d05200", "#0072b2", "#79818b"
STYLE = """
svg{background:#fdfdfb;font-family:system-ui,"Segoe UI",Roboto,"Liberation Sans",Arial,sans-serif}
text{font-size:13px;fill:#5c626b}.name{fill:#1c1e22}.small{font-size:12px}
.halo{paint-order:stroke;stroke:#fdfdfb;stroke-width:4px;stroke-linejoin:round}
.grid{stroke:#e4e4de}.axis{stroke:#5c626b}.stem{stroke:#d6d6d0}.dot{stroke:#fdfdfb;stroke-width:1.2}
.wave{fill:none;stroke-width:1.4;stroke-linejoin:round}.area{stroke:none;opacity:.32}
.curve{fill:none;stroke-width:2.2;stroke-linejoin:round}.turn{stroke:#fdfdfb;stroke-width:.8}
"""


def _file(plot: Plot) -> str:
    """The figure as a file of its own: name space, size and style sheet inside."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{plot.width}" height="{plot.height}" viewBox'
    body = str(plot.svg()).replace("<svg viewBox", head, 1)
    close = body.index(">") + 1
    return f"{body[:close]}<style>{STYLE}</style>{body[close:]}\n"


def _some(bases: Sequence[float], count: int) -> list[float]:
    """At most `count` of the bases, spread evenly over them."""
    if len(bases) <= count:
        return list(bases)
    return [bases[round(i * (len(bases) - 1) / (count - 1))] for i in range(count)]


def waveforms(value: dict[str, Any]) -> str:
    """A lane for every base with its ripple around the middle of the length, and below them which positions the whole set covers."""
    bases, head_dim, length = value["bases"], value["head_dim"], value["length"]
    shown, middle = _some(bases, LANES), (first_position(length) + length) // 2
    lane, top, left, right = 34, 58, 96, 738
    foot = top + lane * len(shown)
    label = (
        f"Ripples of {len(shown)} of the {len(bases)} bases at distances {middle:,} to {middle + SHOWN:,}: filled where a base has a peak. "
        "Below, the distances at which the highest of all the bases is above zero. Where one base has a valley, others have peaks."
    )
    plot = Plot(label, 760, foot + 92, (left, top, right, foot))
    x = linear(middle, middle + SHOWN, left, right)
    positions = middle + np.arange(SHOWN + 1)
    fine = np.linspace(middle, middle + SHOWN, 8 * SHOWN + 1)
    whole = ripples(bases, head_dim, np.array([float(middle)]))[:, : SHOWN + 1]
    plot.text(left, 22, "ripple of the attention waveform around the middle of the length", "t name", "start")
    plot.text(left, 42, "filled: the base has a peak there   ▼ top of a peak   ▲ bottom of a valley", "t small", "start")
    for number, base in enumerate(shown):
        low, high = top + lane * (number + 1) - 3.0, top + lane * number + 3.0
        drawn = _ripple_at(base, head_dim, fine)
        y = linear(-2.6, 2.6, low, high)
        plot.line(left, y(0), right, y(0), "grid")
        colour = base_style(base, bases, "fill")
        area = [(x(fine[0]), y(0)), *((x(m), y(max(v, 0.0))) for m, v in zip(fine, drawn, strict=True)), (x(fine[-1]), y(0))]
        plot.path(area, "area", colour, closed=True)
        plot.path([(x(m), y(v)) for m, v in zip(fine, drawn, strict=True)], "wave", base_style(base, bases, "stroke"))
        inner = drawn[1:-1]
        for at in np.flatnonzero((inner > drawn[:-2]) & (inner > drawn[2:]) & (inner > 0.8)) + 1:
            plot.mark(x(fine[at]), y(drawn[at]) - 5, "down", "turn", colour, 3.0)
        for at in np.flatnonzero((inner < drawn[:-2]) & (inner < drawn[2:]) & (inner < -0.8)) + 1:
            plot.mark(x(fine[at]), y(drawn[at]) + 5, "up", "turn", colour, 3.0)
        plot.text(left - 8, y(0) + 4, short_number(base), "t", "end")
    covered = whole.max(axis=0) > 0
    width = (right - left) / (SHOWN + 1)
    for index, hit in enumerate(covered):
        px = left + index * width
        plot.add(
            f'<rect x="{px:.1f}" y="{foot + 10}" width="{width - 1:.1f}" height="16" fill="{COVERED if hit else UNCOVERED}">'
            f"<title>{positions[index]:,}: {'covered' if hit else 'not covered'} ({int((whole[:, index] > 0).sum())} bases)</title></rect>"
        )
    plot.text(left - 8, foot + 23, f"all {len(bases)}", "t name", "end")
    for k in range(5):
        at = middle + SHOWN * k // 4
        plot.text(x(at), foot + 46, f"{at:,}")
    plot.text((left + right) / 2, foot + 66, "distance between two tokens", "t name")
    plot.text(left, foot + 84, "green: some base has a peak there; red: none has", "t small", "start")
    return _file(plot)


def _ripple_at(base: float, head_dim: int, m: NDArray[np.float64]) -> NDArray[np.float64]:
    """The ripple at any m, whole or not."""
    frequency = base ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    weight = 1 - np.sinc(frequency)
    return np.asarray(np.cos(np.outer(m, frequency)) @ weight / math.sqrt((weight**2).sum() / 2))


def _covered_by_bins(bases: Sequence[float], head_dim: int, edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of covered positions in each bin: of at most 4,096 evenly spread ones in stretches of 256."""
    shares = []
    for start, end in pairwise(edges.tolist()):
        count = max(1, min(16, int((end - start) // 256)))
        starts = np.floor(np.linspace(start, max(start, end - 256), count))
        kept = int(min(256, max(1, end - start)))
        values = ripples(bases, head_dim, starts).reshape(len(bases), count, 256)[:, :, :kept]
        shares.append(float((values.max(axis=0) > 0).mean()))
    return np.array(shares)


def coverage(value: dict[str, Any]) -> str:
    """The share of covered distances along the length: the set, as many evenly spaced bases, and one base."""
    bases, head_dim, length, low, high = (value[name] for name in ("bases", "head_dim", "length", "min", "max"))
    edges = np.linspace(first_position(length), length, BINS + 1)
    middle = (edges[:-1] + edges[1:]) / 2
    found = value["comparison"]
    random = found["random_sets"]
    sets = (
        ("one base", ONE, [(low + high) / 2], found["one_base"]["covered"]),
        (f"{len(bases)} evenly spaced", EVEN, list(uniform_bases(len(bases), low, high)), found["uniform"]["covered"]),
        ("this set", OURS, bases, value["complementarity"]["covered"]),
    )
    curves = [(name, colour, _covered_by_bins(some, head_dim, edges), share) for name, colour, some, share in sets]
    if len(bases) == 1:
        curves = curves[::2]
    label = "Share of distances under a peak of some base, along the length: " + ", ".join(
        f"{name} {share:.2%} over the whole length" for name, _, _, share in curves
    )
    plot = Plot(label + ".", 760, 400, (62, 40, 560, 342))
    # uncovered on a logarithmic axis, so that 99% and 99.9% stand apart; a bin without any uncovered position is drawn at the bottom
    floor = 1e-4
    lowest = max(floor, min(float((1 - values).min()) for _, _, values, _ in curves))
    x, y = linear(0, length, plot.left, plot.right), logarithmic(lowest / 1.4, 1.0, plot.bottom, plot.top)
    marks = {
        u: f"{1 - u:.4%}".rstrip("0%").rstrip(".") + "%" for u in (1.0, 0.5, 0.2, 0.1, 0.05, 0.01, 0.005, 0.001, 1e-4) if u >= lowest / 1.4
    }
    ticks = {length * k / 4: f"{round(length * k / 4):,}" for k in range(5)}
    plot.axes(x, ticks, y, marks, "distance between two tokens", "share of distances under a peak of some base")
    for name, colour, values, share in curves:
        points = [(x(m), y(max(1 - v, lowest / 1.4))) for m, v in zip(middle, values, strict=True)]
        plot.path(points, "curve", f"stroke:{colour}")
        at = y(max(1 - float(np.median(values)), lowest / 1.3))
        plot.text(plot.right + 10, at, name, "t name", "start", style=f"fill:{colour}")
        plot.text(plot.right + 10, at + 16, f"C = {share:.3%}", "t small", "start")
    words = f"of {random['sets']} random sets, half are above {random['median']:.3%} and 5% above {random['p95']:.3%}"
    plot.text(plot.left, plot.height - 28 + 4, "", "t small", "start")
    plot.text(plot.right + 190, 20, words, "t small", "end")
    return _file(plot)


def number_line(value: dict[str, Any]) -> str:
    """The set and the published one on one logarithmic line."""
    bases = value["bases"]
    marked = [*bases, *PUBLISHED_SET]
    label = f"Bases on a logarithmic line: this set, {bases[0]:,.0f} to {bases[-1]:,.0f}, above the published set, 1M to 4.54M."
    plot = Plot(label, 760, 150, (110, 16, 738, 96))
    low, high = min(marked) / 1.08, max(marked) * 1.08
    x = logarithmic(low, high, plot.left, plot.right)
    for name, some, height in ((f"this set ({len(bases)})", bases, 36), ("published (32)", PUBLISHED_SET, 74)):
        plot.text(plot.left - 12, height + 4, name, "t name", "end")
        plot.line(plot.left, height, plot.right, height, "stem")
        for base in some:
            plot.mark(x(base), height, "circle", "dot", base_style(base, marked, "fill"), 5.0)
    plot.line(plot.left, plot.bottom, plot.right, plot.bottom, "axis")
    for at, words in log_ticks(low, high).items():
        plot.line(x(at), plot.bottom, x(at), plot.bottom + 5, "axis")
        plot.text(x(at), plot.bottom + 20, words)
    plot.text((plot.left + plot.right) / 2, plot.height - 8, "RoPE base", "t name")
    return _file(plot)


FIGURES: dict[str, Callable[[dict[str, Any]], str]] = {"waveforms": waveforms, "coverage": coverage, "number-line": number_line}
"""Name of the file, without ending, and what draws it."""
