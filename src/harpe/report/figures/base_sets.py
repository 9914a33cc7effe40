"""The figures of a base set as SVG files that stand on their own: ripples, coverage along the length, number line.

They are drawn from the JSON object that `harpe bases` writes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harpe.bases.base_sets import PUBLISHED_SET, uniform_bases
from harpe.bases.complementarity import first_position, ripples, sample_size, sample_starts, sampled_cover
from harpe.ownership import COMMENT
from harpe.report.figures.bases import base_style
from harpe.report.figures.plot import (
    Plot,
    even_ticks,
    linear,
    log_ticks,
    logarithmic,
    plain_ticks,
    quarters,
    short_number,
)

LANES = 12
"""Most bases whose ripples are drawn one above the other."""
SHOWN = 64
"""Positions that are shown of the ripples: about ten of their periods."""
BINS = 32
"""Bins of the coverage along the length."""
COVERED, UNCOVERED = "#1f9e89", "#c8321e"
OURS, EVEN = "#d05200", "#0072b2"
STYLE = """
svg{background:#fdfdfb;font-family:system-ui,"Segoe UI",Roboto,"Liberation Sans",Arial,sans-serif}
text{font-size:13px;fill:#5c626b}.name{fill:#1c1e22}.small{font-size:12px}
.halo{paint-order:stroke;stroke:#fdfdfb;stroke-width:4px;stroke-linejoin:round}
.grid{stroke:#e4e4de}.axis{stroke:#5c626b}.stem{stroke:#d6d6d0}.dot{stroke:#fdfdfb;stroke-width:1.2}
.wave{fill:none;stroke-width:1.4;stroke-linejoin:round}.area{stroke:none;opacity:.32}
.curve{fill:none;stroke-width:2.2;stroke-linejoin:round}.turn{stroke:#fdfdfb;stroke-width:.8}
"""


def as_file(plot: Plot) -> str:
    """The figure as a file of its own: name space, size and style sheet inside."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{plot.width}" height="{plot.height}" viewBox'
    body = str(plot.svg()).replace("<svg viewBox", head, 1)
    close = body.index(">") + 1
    return f"{COMMENT}{body[:close]}<style>{STYLE}</style>{body[close:]}\n"


def _some(bases: Sequence[float], count: int) -> list[float]:
    """At most `count` of the bases, spread evenly over them."""
    if len(bases) <= count:
        return list(bases)
    return [bases[round(i * (len(bases) - 1) / (count - 1))] for i in range(count)]


def waveforms(value: dict[str, Any]) -> str:
    """A lane for every base with its ripple around the middle of the length; below, what the whole set covers."""
    bases, head_dim, length = value["bases"], value["head_dim"], value["length"]
    shown, middle = _some(bases, LANES), (first_position(length) + length) // 2
    lane, top, left, right = 34, 58, 96, 722
    foot = top + lane * len(shown)
    label = (
        f"Ripples of {len(shown)} of the {len(bases)} bases at distances {middle:,} to {middle + SHOWN:,}: filled "
        "where a base has a peak. Below, the distances at which the highest of all the bases is above zero. Where one "
        "base has a valley, others have peaks."
    )
    plot = Plot(label, 760, foot + 92, (left, top, right, foot))
    x = linear(middle, middle + SHOWN, left, right)
    positions = middle + np.arange(SHOWN + 1)
    fine = np.linspace(middle, middle + SHOWN, 5 * SHOWN + 1)
    whole = ripples(bases, head_dim, np.array([float(middle)]))[:, : SHOWN + 1]
    plot.text(left, 22, "ripple of the attention waveform around the middle of the length", "t name", "start")
    plot.text(
        left, 42, "filled: the base has a peak there   ▼ top of a peak   ▲ bottom of a valley", "t small", "start"
    )
    for number, base in enumerate(shown):
        low, high = top + lane * (number + 1) - 3.0, top + lane * number + 3.0
        drawn = _ripple_at(base, head_dim, fine)
        y = linear(-2.6, 2.6, low, high)
        plot.line(left, y(0), right, y(0), "grid")
        colour = base_style(base, bases, "fill")
        above = [(x(m), y(max(v, 0.0))) for m, v in zip(fine, drawn, strict=True)]
        plot.path([(x(fine[0]), y(0)), *above, (x(fine[-1]), y(0))], "area", colour, closed=True)
        plot.path([(x(m), y(v)) for m, v in zip(fine, drawn, strict=True)], "wave", base_style(base, bases, "stroke"))
        inner = drawn[1:-1]
        for at in np.flatnonzero((inner > drawn[:-2]) & (inner > drawn[2:]) & (inner > 0.8)) + 1:
            plot.mark(x(fine[at]), y(drawn[at]) - 5, "down", "turn", colour, 3.0)
        for at in np.flatnonzero((inner < drawn[:-2]) & (inner < drawn[2:]) & (inner < -0.8)) + 1:
            plot.mark(x(fine[at]), y(drawn[at]) + 5, "up", "turn", colour, 3.0)
        plot.text(left - 8, y(0) + 4, short_number(base), "t", "end")
    covered = [bool(hit) for hit in whole.max(axis=0) > 0]
    width = (right - left) / (SHOWN + 1)
    for index, hit in enumerate(covered):
        px = left + index * width
        colour, said = (COVERED, "covered") if hit else (UNCOVERED, "not covered")
        plot.add(
            f'<rect x="{px:.1f}" y="{foot + 10}" width="{width - 1:.1f}" height="16" fill="{colour}">'
            f"<title>{positions[index]:,}: {said} ({int((whole[:, index] > 0).sum())} bases)</title></rect>"
        )
    plot.text(left - 8, foot + 23, f"all {len(bases)}", "t name", "end")
    for k in range(5):
        at = middle + SHOWN * k // 4
        plot.text(x(at), foot + 46, f"{at:,}")
    plot.text((left + right) / 2, foot + 66, "distance between two tokens", "t name")
    plot.text(left, foot + 84, "green: some base has a peak there; red: none has", "t small", "start")
    return as_file(plot)


def _ripple_at(base: float, head_dim: int, m: NDArray[np.float64]) -> NDArray[np.float64]:
    """The ripple at any m, whole or not."""
    frequency = base ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    weight = 1 - np.sinc(frequency)
    return np.asarray(np.cos(np.outer(m, frequency)) @ weight / math.sqrt((weight**2).sum() / 2))


def _uncovered_by_bins(
    bases: Sequence[float], head_dim: int, length: int, edges: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Share of positions under no peak in each bin, over the sample that sets are chosen on."""
    start = first_position(length)
    covered = np.asarray(sampled_cover(bases, head_dim, length).any(axis=0), dtype=np.bool_)
    starts, steps = sample_starts(start, length, sample_size(len(bases)))
    positions = (starts[:, None] + np.arange(steps)).ravel()[: len(covered)]
    of_all, _ = np.histogram(positions, edges)
    uncovered, _ = np.histogram(positions[~covered], edges)
    return np.asarray(uncovered / np.maximum(of_all, 1))


def coverage(value: dict[str, Any]) -> str:
    """Where along the length distances lie under no peak: the set beside as many evenly spaced bases."""
    bases, head_dim, length, low, high = (value[name] for name in ("bases", "head_dim", "length", "min", "max"))
    edges = np.linspace(first_position(length), length + 1, BINS + 1)
    found = value["comparison"]
    random = found["random_sets"]
    sets = (
        (f"{len(bases)} evenly spaced", EVEN, list(uniform_bases(len(bases), low, high)), found["uniform"]["covered"]),
        ("this set", OURS, bases, value["complementarity"]["covered"]),
    )
    curves = [
        (name, colour, _uncovered_by_bins(some, head_dim, length, edges), share) for name, colour, some, share in sets
    ]
    label = (
        "Share of distances under no peak of any base, along the length. Covered over the whole length: "
        + ", ".join(f"{name} {share:.3%}" for name, _, _, share in curves)
    )
    plot = Plot(label + ".", 760, 360, (70, 44, 540, 302))
    most = max(float(values.max()) for _, _, values, _ in curves) * 1.12 or 0.01
    x, y = linear(0, length, plot.left, plot.right), linear(0, most, plot.bottom, plot.top)
    ticks, marks = quarters(length), plain_ticks(0, most, "%", 100)
    name = "share of distances under no peak of any base (lower is better)"
    plot.axes(x, ticks, y, marks, "distance between two tokens", name)
    for _, colour, values, _ in curves:
        bins = zip(edges[:-1], edges[1:], values.tolist(), strict=True)
        steps = [point for start, end, v in bins for point in ((x(start), y(v)), (x(end), y(v)))]
        plot.path(steps, "curve", f"stroke:{colour}")
    shares = [(name, colour, share) for name, colour, _, share in curves[::-1]]
    shares += [("95% of random sets", "", random["p95"]), ("half of random sets", "", random["median"])]
    shares += [("published set", "", found["published_set"]["covered"]), ("one base", "", found["one_base"]["covered"])]
    plot.text(plot.right + 18, plot.top + 6, "covered over the whole length", "t name", "start")
    for row, (name, colour, share) in enumerate(shares):
        here = plot.top + 32 + 24 * row
        if colour:
            plot.add(f'<rect x="{plot.right + 18}" y="{here - 6}" width="14" height="3" fill="{colour}"/>')
        plot.text(plot.right + 38, here, name, "t name small" if colour else "t small", "start")
        plot.text(752, here, f"{share:.2%}", "t name small" if colour else "t small", "end")
    return as_file(plot)


def number_line(value: dict[str, Any]) -> str:
    """The set and the published one on one logarithmic line."""
    bases = value["bases"]
    label = f"Bases on a logarithmic line: this set, {bases[0]:,.0f} to {bases[-1]:,.0f}, above the published set, "
    label += "1M to 4.54M."
    return number_lines({f"this set ({len(bases)})": bases, "published (32)": list(PUBLISHED_SET)}, label)


def number_lines(sets: dict[str, list[float]], label: str) -> str:
    """Sets of bases, by name, one above the other on a logarithmic line."""
    marked = [base for bases in sets.values() for base in bases]
    foot = 38 * len(sets) + 20
    plot = Plot(label, 760, foot + 54, (110, 16, 738, foot))
    low, high = min(marked) / 1.08, max(marked) * 1.08
    x = logarithmic(low, high, plot.left, plot.right)
    for row, (name, bases) in enumerate(sets.items()):
        height = 36 + 38 * row
        plot.text(plot.left - 12, height + 4, name, "t name", "end")
        plot.line(plot.left, height, plot.right, height, "stem")
        for base in bases:
            plot.mark(x(base), height, "circle", "dot", base_style(base, marked, "fill"), 5.0)
    plot.line(plot.left, plot.bottom, plot.right, plot.bottom, "axis")
    for at, words in log_ticks(low, high).items():
        plot.line(x(at), plot.bottom, x(at), plot.bottom + 5, "axis")
        plot.text(x(at), plot.bottom + 20, words)
    plot.text((plot.left + plot.right) / 2, plot.height - 8, "RoPE base", "t name")
    return as_file(plot)


def scatter(
    label: str,
    xs: NDArray[np.float64],
    ys: NDArray[np.float64],
    bases: Sequence[float],
    axes: tuple[str, str],
    words: str,
) -> str:
    """One point for every base; axes from the smallest to the largest value."""
    plot = Plot(label, 760, 340, (70, 44, 738, 282))
    room = [0.04 * (float(v.max() - v.min()) or 1.0) for v in (xs, ys)]
    (x0, x1), (y0, y1) = ((float(v.min()) - r, float(v.max()) + r) for v, r in zip((xs, ys), room, strict=True))
    x, y = linear(x0, x1, plot.left, plot.right), linear(y0, y1, plot.bottom, plot.top)
    ticks = {at: f"{at:,.0f}" for at in even_ticks(x0, x1, 5)}
    plot.axes(x, ticks, y, plain_ticks(y0, y1), *axes)
    for base, at, value in zip(bases, xs, ys, strict=True):
        plot.mark(x(float(at)), y(float(value)), "circle", "dot", base_style(base, bases, "fill"), 4.5)
    plot.text(plot.right, plot.bottom - 12, words, "t small", "end")
    return as_file(plot)


FIGURES: dict[str, Callable[[dict[str, Any]], str]] = {
    "waveforms": waveforms,
    "coverage": coverage,
    "number-line": number_line,
}
"""Name of the file, without ending, and what draws it."""
