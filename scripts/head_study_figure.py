"""The figures of the study of heads in docs/results.md, from what `head_study.py` has written.

    python scripts/head_study_figure.py results/2026-11-27-head-study-16x/16x.json --out docs/figures/head-study-16x.svg
    python scripts/head_study_figure.py results/DATE/head-study-16x-plane.json --plane --out docs/figures/plane.svg

--plane draws content against order: a line through the rows `base-…`, each one base for all heads, and the other rows.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from harpe.files import read_json, write_text
from harpe.report.figures.base_sets import as_file
from harpe.report.figures.plot import Plot, even_ticks, linear, minus_signs

PANELS = {
    "loss at the far end": "loss at the far end, nats",
    "needles": "needles, points",
    "multi-value": "multi-value",
}
LABELS, WIDTH, GAP, ROW, TOP = 300, 190, 18, 21, 52


def draw(study: dict[str, Any]) -> str:
    """Differences with their intervals: heads that differ minus their control above, rows minus YaRN below."""
    measures = study["measures"]
    parts = {
        "heads that differ, minus one table for all heads": "pairs",
        "rows, minus YaRN": "bounds",
    }
    lines = [
        (title, part, names)
        for title, part in parts.items()
        if (names := list(dict.fromkeys(n for panel in PANELS for n in measures[panel][part] if n != "none")))
    ]
    height = TOP + sum(ROW * (len(names) + 1) + 12 for _, _, names in lines) + 36
    width = LABELS + len(PANELS) * (WIDTH + GAP)
    plot = Plot("Differences of the study of heads with 95% intervals.", width, height, (LABELS, TOP, width, height))
    for column, (panel, words) in enumerate(PANELS.items()):
        left, better = LABELS + column * (WIDTH + GAP), measures[panel]["better"]
        plot.text(left + WIDTH / 2, 20, words, "t name")
        plot.text(left + WIDTH / 2, 36, "← better" if better == "lower" else "better →", "t small")
    y = TOP
    for title, part, names in lines:
        plot.text(8, y + 14, title, "t name", "start")
        first = y = y + ROW
        for name in names:
            plot.text(LABELS - 12, y + ROW / 2 + 4, study["titles"][name], "t small", "end")
            y += ROW
        for column, panel in enumerate(PANELS):
            _panel(plot, measures[panel][part], names, LABELS + column * (WIDTH + GAP), first)
        y += 12 + ROW * (part == "pairs")
    return as_file(plot)


def _panel(plot: Plot, found: dict[str, Any], names: list[str], left: int, top: int) -> None:
    ends = [0.0, *(found[name][end] for name in names if name in found for end in ("low", "high"))]
    x = linear(min(ends), max(ends), left + 6, left + WIDTH - 6)
    bottom = top + ROW * len(names)
    plot.line(x(0.0), top, x(0.0), bottom, "axis")
    for at, words in minus_signs(even_ticks(min(ends), max(ends), 3)).items():
        plot.line(x(at), bottom, x(at), bottom + 4, "axis")
        plot.text(x(at), bottom + 16, words, "t small")
    for number, name in enumerate(names):
        if name in found:
            row, y = found[name], top + ROW * number + ROW / 2
            style = "stroke:currentColor;stroke-width:1.6"
            plot.add(f'<line x1="{x(row["low"]):.1f}" y1="{y}" x2="{x(row["high"]):.1f}" y2="{y}" style="{style}"/>')
            plot.mark(x(row["value"]), y, "circle", style="fill:currentColor", size=3.6)


def plane(study: dict[str, Any]) -> str:
    """Order over content, with 95% intervals; single bases are joined in the order of the recipe, from small to
    large."""
    across, up = (study["measures"][name]["values"] for name in ("content", "order"))
    names = [name for name in across if name in up]
    plot = Plot("Order against content, in percent, with 95% intervals.", 640, 480, (64, 40, 620, 430))
    ends = {axis: [row[e] for row in of.values() for e in ("low", "high")] for axis, of in (("x", across), ("y", up))}
    x = linear(min(ends["x"]), max(ends["x"]), plot.left + 10, plot.right - 10)
    y = linear(min(ends["y"]), max(ends["y"]), plot.bottom - 10, plot.top + 10)
    plot.axes(x, even_ticks(*_ends(ends["x"])), y, even_ticks(*_ends(ends["y"])), "needles among others, %", "order, %")
    single = [name for name in names if name.startswith("base-")]
    plot.path(
        [(x(across[name]["value"]), y(up[name]["value"])) for name in single], "", "fill:none;stroke:currentColor"
    )
    for name in names:
        at, level = x(across[name]["value"]), y(up[name]["value"])
        for x1, y1, x2, y2 in (
            (x(across[name]["low"]), level, x(across[name]["high"]), level),
            (at, y(up[name]["low"]), at, y(up[name]["high"])),
        ):
            plot.line(x1, y1, x2, y2, "axis")
        shape = "circle" if name in single else "diamond"
        plot.mark(at, level, shape, style="fill:currentColor", size=4.0)
        others = [each for each in names if each not in single]
        above = level - 6 if name in single else level + 16 + 28 * others.index(name)  # they lie close together
        plot.text(at + 8, above, study["titles"][name], "t small", "start" if at < 420 else "end")
    return as_file(plot)


def _ends(values: list[float]) -> tuple[float, float]:
    return min(values), max(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--plane", action="store_true", help="content against order")
    args = parser.parse_args()
    write_text(args.out, (plane if args.plane else draw)(read_json(args.study)))


if __name__ == "__main__":
    main()
