"""The bases of an extended model: their attention waveforms and where they lie on a line.

Attention waveform of a base b (Chen et al. 2023, "Attention Buckets", arXiv 2312.04455), d rotary dimensions, distance
m:

    A_b(m) = (2 / sqrt(d)) sum_{i < d/2} cos(m b^(-2i/d))

Up to a constant it is the score of a query with a key at distance m when all entries of both are equal: its valleys are
distances that a head with base b attends to less. The figure draws it smoothed by a Gaussian of standard deviation s,
which has a closed form: cos(m f) becomes cos(m f) exp(-(s f)^2 / 2). Unsmoothed, the fast pairs hide the rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from harpe.report.figures.plot import Plot, blend, even_ticks, linear, log_ticks, logarithmic, quarters
from harpe.report.read.run import Run

BASE_COLOURS = ("7d4fc4", "b5479f", "d5475f", "d06a2a", "b08512")
"""From the lowest base to the highest; each is at least 3:1 against both page backgrounds."""
SPREAD = 32
"""The waveform is smoothed over the target length divided by this (a Gaussian as wide as an average of that many)."""


def waveform(base: float, rotary_dim: int, distances: NDArray[np.float64], window: float = 0.0) -> NDArray[np.float64]:
    """A_b at `distances`, smoothed by a Gaussian with the variance window^2 / 12 of an average over `window`."""
    frequencies = base ** -(np.arange(0, rotary_dim, 2, dtype=np.float64) / rotary_dim)
    damping = np.exp(-((window * frequencies) ** 2) / 24)
    return np.asarray(
        2 / math.sqrt(rotary_dim) * (np.cos(np.outer(distances, frequencies)) @ damping), dtype=np.float64
    )


def turning_points(values: NDArray[np.float64], count: int) -> tuple[list[int], list[int]]:
    """Indices of the `count` deepest valleys and highest peaks, by how far they stand out of a quarter of the curve."""
    reach = max(len(values) // 8, 1)

    def of(sign: float) -> list[int]:
        v = sign * values
        inner = [i for i in range(1, len(v) - 1) if v[i - 1] < v[i] >= v[i + 1]]
        stands = {i: v[i] - max(v[max(i - reach, 0) : i].min(), v[i + 1 : i + 1 + reach].min()) for i in inner}
        return sorted(sorted(inner, key=lambda i: -stands[i])[:count])

    return of(-1.0), of(1.0)


def base_style(base: float, bases: Sequence[float], what: str) -> str:
    low, high = min(bases), max(bases)
    share = math.log(base / low) / math.log(high / low) if high > low else 0.5
    return f"{what}:{blend(BASE_COLOURS, share)}"


def waveforms(run: Run) -> Markup | None:
    """The attention waveforms of HARPE's bases and of the control's one base, at distances up to the target length."""
    method, control = run.harpe, run.control
    if method is None:
        return None
    bases, target = sorted(set(method.bases)), run.target_length
    window = target / SPREAD
    distances = np.linspace(0, target, min(600, max(target, 2)))
    curves = {b: waveform(b, run.model.rotary_dim, distances, window) for b in bases}
    single = waveform(control.bases[0], run.model.rotary_dim, distances, window) if control else None
    shown = np.concatenate(
        [c[len(distances) // 12 :] for c in [*curves.values(), *([] if single is None else [single])]]
    )
    room = 0.08 * (float(shown.max() - shown.min()) or 1.0)
    low, high = float(shown.min()) - room, float(shown.max()) + 2 * room
    label = (
        f"Attention waveforms of the {len(bases)} bases of {method.title}, {bases[0]:,.0f} to {bases[-1]:,.0f}, over "
        f"distances of 0 to {target:,} tokens, smoothed over {window:,.0f} tokens. Their peaks and valleys fall at "
        "different distances."
    )
    label += f" A bold line shows the single base {control.bases[0]:,.0f} of the control." if control else ""
    plot = Plot(label, 760, 360, (44, 34, 718, 312), "wide")
    x, y = linear(0, target, plot.left, plot.right), linear(low, high, plot.bottom, plot.top)
    plot.axes(x, quarters(target), y, even_ticks(low, high, 4), "distance between two tokens", "attention waveform")
    plot.line(x(run.original_length), plot.top, x(run.original_length), plot.bottom, "limit")
    for base, values in curves.items():
        plot.path(zip(map(x, distances), map(y, values), strict=True), "wave", base_style(base, bases, "stroke"))
    if single is not None:
        plot.path(zip(map(x, distances), map(y, single), strict=True), "wave m-control bold")
    plot.text(
        x(run.original_length) + 6, plot.top + 8, f"trained length {run.original_length:,}", "t small halo", "start"
    )
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
