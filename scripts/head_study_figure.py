"""The figure of the study of heads in docs/results.md, from what `head_study.py` has written.

python scripts/head_study_figure.py results/2026-11-27-head-study-16x/16x.json --out docs/figures/head-study-16x.svg
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    write_text(args.out, draw(read_json(args.study)))


if __name__ == "__main__":
    main()
