"""Needle scores by length and depth as heat maps.

On the page in colours that everybody can tell apart; as a file in the shape and colours in which such tests are mostly
shown.
"""

from __future__ import annotations

import base64
import math

from markupsafe import Markup, escape

from harpe.report.figures.base_sets import as_file
from harpe.report.figures.plot import Plot, blend
from harpe.report.means import MeanGrid, mean_grid
from harpe.report.read.run import Row, Run

KAMRADT = ("f0496e", "ebb839", "0cd79f")
"""Red, amber, green: github.com/gkamradt/LLMTest_NeedleInAHaystack, viz/CreateVizFromLLMTesting.ipynb."""
VIRIDIS = ("440154", "482878", "3e4a89", "31688e", "26828e", "1f9e89", "35b779", "6ece58", "b5de2b", "fde725")


def heat_maps(run: Run) -> list[tuple[Row, Markup | None]]:
    """The needle grid of every row with its file to save; empty where none was run."""
    grids = [(row, mean_grid(row)) for row in run.rows]
    if not any(grid for _, grid in grids):
        return []
    return [
        (row, heat_map(grid, row.title) + _saved(f"needles-{row.name}.svg", known_heat_map(grid, row.title)))
        if grid
        else (row, None)
        for row, grid in grids
    ]


def _saved(name: str, figure: str) -> Markup:
    """A link that saves a figure, which stands in the page itself."""
    data = base64.b64encode(figure.encode()).decode()
    link = '<p class="save"><a download="{}" href="data:image/svg+xml;base64,{}">SVG in red to green</a></p>'
    return Markup(link).format(name, data)


def known_heat_map(grid: MeanGrid, title: str) -> str:
    """The score as a file of its own: lengths across, depths down, red to green, with the scale beside it."""
    left, top, width, tall = 76, 56, 640, 300
    plot = Plot(
        f"{title}: single-needle score by context length and depth.", 840, 430, (left, top, left + width, top + tall)
    )
    wide, high = width / len(grid.lengths), tall / len(grid.depths)

    def cell(x: float, y: float, w: float, h: float, share: float) -> None:
        colour = blend(KAMRADT, share if math.isfinite(share) else 0.0)
        plot.add(f'<rect x="{x:.2f}" y="{y:.2f}" width="{w:.2f}" height="{h:.2f}" fill="{colour}"/>')

    plot.text(left, 26, title, "t name", "start")
    plot.text(left, 44, "one needle: share of the samples that are answered", "t small", "start")
    for column, (length, values) in enumerate(zip(grid.lengths, grid.values, strict=True)):
        for row, value in enumerate(values):
            cell(left + wide * column, top + high * row, wide + 0.5, high + 0.5, value)
        plot.text(left + wide * (column + 0.5), top + tall + 20, f"{length:,}")
    for row, depth in enumerate(grid.depths):
        plot.text(left - 8, top + high * (row + 0.5) + 4, f"{100 * depth:g}%", anchor="end")
    plot.text(left + width / 2, top + tall + 48, "context length in tokens", "t name")
    plot.text(left - 8, top - 8, "depth", "t name", "end")
    steps = 50
    for step in range(steps):
        height = tall / steps
        cell(left + width + 28, top + tall - height * (step + 1), 18, height + 0.5, step / (steps - 1))
    for share in (0.0, 0.5, 1.0):
        plot.text(left + width + 54, top + tall * (1 - share) + 4, f"{100 * share:.0f}%", anchor="start")
    return as_file(plot)


def ink_on(colour: str) -> str:
    """Black or white, whichever stands out more on `colour` (WCAG relative luminance)."""
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000" if luminance > 0.179 else "#fff"


def heat_map(grid: MeanGrid, title: str) -> Markup:
    """Single-needle score in percent: columns are lengths, rows depths from the start of the document to its end."""
    lengths, depths = grid.lengths, grid.depths
    places = [(n, d) for n in lengths for d in depths]
    worst = min((v, *place) for place, v in zip(places, (v for row in grid.values for v in row), strict=True))
    label = f"{title}: single-needle score by length and depth; "
    label += f"lowest {100 * worst[0]:.0f} % at {worst[1]:,} tokens, depth {100 * worst[2]:.0f} %."
    wide, tall, left, top = 58, 38, 52, 26
    plot = Plot(label, left + wide * len(lengths) + 4, top + tall * len(depths) + 46, (left, top, 0, 0), "heat")
    plot.text(left, 14, "depth", "t name", "end")
    for row, depth in enumerate(depths):
        plot.text(left - 8, top + tall * (row + 0.5) + 4, f"{100 * depth:.0f}%", anchor="end")
    for column, (length, cells) in enumerate(zip(lengths, grid.values, strict=True)):
        for row, value in enumerate(cells):
            colour = blend(VIRIDIS, value if math.isfinite(value) else 0.0)
            px, py = left + wide * column, top + tall * row
            place = f"{length:,} tokens, depth {100 * depths[row]:.0f} %"
            plot.add(f'<g class="tip"><title>{place}: {100 * value:.1f} %, {escape(grid.notes[column][row])}</title>')
            plot.add(f'<rect x="{px + 1}" y="{py + 1}" width="{wide - 2}" height="{tall - 2}" rx="3" fill="{colour}"/>')
            plot.text(px + wide / 2, py + tall / 2 + 5, f"{100 * value:.0f}", "cell", style=f"fill:{ink_on(colour)}")
            plot.add("</g>")
        plot.text(left + wide * (column + 0.5), top + tall * len(depths) + 18, f"{length:,}")
    plot.text(left + wide * len(lengths) / 2, plot.height - 6, "length in tokens", "t name")
    return plot.svg()


def heat_gradient() -> str:
    """The colour scale of the heat maps as a CSS gradient."""
    return "linear-gradient(90deg, " + ", ".join(f"#{c}" for c in VIRIDIS) + ")"
