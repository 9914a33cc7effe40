"""The figure of `harpe long` as an SVG file: score by length, a picture for each task, drawn from long.json."""

from __future__ import annotations

from typing import Any

from harpe.report.figures.base_sets import EVEN, OURS, as_file
from harpe.report.figures.plot import Plot, linear, logarithmic, short_number

ACROSS, WIDE, HIGH = 4, 190, 164
LEFT, HEAD = 44, 62
"""Of the pictures, and above them."""


def long_figure(value: dict[str, Any], model: str) -> str:
    """Scores in per cent with their 95 % intervals; a thin line is what a guesser scores, an upright one the trained
    context."""
    tasks, trained = value["tasks"], value["original_length"]
    rows = -(-len(tasks) // ACROSS)
    ends = ", ".join(f"{name} {task['lengths'][-1]['score']:.0f}%" for name, task in tasks.items())
    plot = Plot(
        f"Score by length of {len(tasks)} long-context tasks; at the longest: {ends}.",
        LEFT + WIDE * min(ACROSS, max(len(tasks), 3)),
        HEAD + HIGH * rows,
        (LEFT, HEAD, 0, 0),
    )
    plot.text(12, 20, f"{model}: score by length in tokens, %", "t name", "start")
    plot.text(12, 38, "bars: 95% intervals; blue: a guesser; upright line: the trained context", "t small", "start")
    lengths = [cell["length"] for task in tasks.values() for cell in task["lengths"]]
    for number, (name, task) in enumerate(tasks.items()):
        plot.left, plot.top = LEFT + WIDE * (number % ACROSS), HEAD + 18 + HIGH * (number // ACROSS)
        plot.right, plot.bottom = plot.left + WIDE - 56, plot.top + HIGH - 58
        x = logarithmic(min(lengths) / 1.25, max(lengths) * 1.25, plot.left, plot.right)
        y = linear(-4, 104, plot.bottom, plot.top)
        cells = task["lengths"]
        ticks = {float(n): short_number(n) for n in sorted({cells[0]["length"], cells[-1]["length"]})}
        plot.axes(x, ticks, y, {0.0: "0", 50.0: "50", 100.0: "100"}, "", name)
        if trained is not None and min(lengths) / 1.25 <= trained <= max(lengths) * 1.25:
            plot.line(x(trained), plot.top, x(trained), plot.bottom, "axis")
        plot.path([(x(c["length"]), y(c["chance"])) for c in cells], "curve", f"stroke:{EVEN};stroke-width:1")
        plot.path([(x(c["length"]), y(c["score"])) for c in cells], "curve", f"stroke:{OURS}")
        for c in cells:
            at = x(c["length"])
            plot.path([(at, y(c["low"])), (at, y(c["high"]))], "curve", f"stroke:{OURS};stroke-width:1")
            words = f"{c['length']:,} tokens: {c['score']:.1f}% ({c['low']:.1f} to {c['high']:.1f}%)"
            plot.mark(at, y(c["score"]), "circle", "dot", f"fill:{OURS}", 3.2, words)
    return as_file(plot)
