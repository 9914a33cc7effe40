"""Tables by position: perplexity, and loss minus the baseline's."""

from __future__ import annotations

from collections.abc import Sequence

from harpe.report.means import mean_bins
from harpe.report.read.positions import PositionDifferences
from harpe.report.read.run import Row, Run
from harpe.report.tables.results import absent, perplexity, table_row
from harpe.report.tables.table import Cell, Column, Table, TableRow
from harpe.report.wording import plain, signed


def _columns(bins: Sequence[tuple[int, int]]) -> tuple[Column, ...]:
    return tuple(Column(f"{start:,}–{end:,}", "positions") for start, end in bins)


def difference_positions(p: PositionDifferences, rows: Sequence[Row]) -> Table:
    """Rows by positions; every cell the difference to the baseline and its interval, in nats a token."""
    shown = [(row, p.methods[row.name]) for row in rows if row.name in p.methods]
    lines = []
    for row, steps in shown:
        words = [signed(step.value, step.low, step.high, 3) for step in steps]
        cells = [Cell(value, interval, order=step.value) for step, (value, interval) in zip(steps, words, strict=True)]
        lines.append(TableRow(row.name, row.title, "", tuple(cells)))
    bins = [(step.start, step.end) for step in shown[0][1]] if shown else []
    return Table(_columns(bins), tuple(lines))


def perplexity_positions(run: Run) -> Table:
    """Rows by positions; every cell the perplexity and its interval, means over seeds as in the pictures."""
    found = {row.name: {(b.start, b.end): b for b in mean_bins(row)} for row in run.rows}
    bins = list(dict.fromkeys(edges for of in found.values() for edges in of))
    rows = []
    for row in run.rows:
        cells: list[Cell | None] = []
        for edges in bins:
            b = found[row.name].get(edges)
            low, value, high = (plain(perplexity(v)) for v in (b.low, b.nll, b.high)) if b else ("", "", "")
            cells.append(Cell(value, f"{low}–{high}", order=b.nll) if b else absent(row))
        rows.append(table_row(run, row, cells))
    return Table(_columns(bins), tuple(rows))
