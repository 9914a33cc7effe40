"""The main table of a run for the terminal."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from harpe.report.page import NOT_RUN, Cell, main_cells
from harpe.report.read import read_run

CAPTION = "ppl: perplexity; under each value its 95% interval and n"


def main_table(run: Path) -> Table:
    """The main table: a row a method; in every cell the value, its 95 % interval and n. It fits 80 columns uncut."""
    value = read_run(run)
    cells = main_cells(value)
    table = Table(title=Text(value.title), caption=CAPTION, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.padding = (0, 1, 1, 0)
    titles = [Text(row.method.title, style="bold") for row in cells.rows]
    longest = max((len(word) for title in titles for word in title.plain.split()), default=0)
    table.add_column("method", overflow="fold", width=min(max(longest, 8), 12))
    for column in cells.columns:
        head, note = (words.replace("-", " ").replace("perplexity", "ppl") for words in (column.head, column.note))
        table.add_column(Text.assemble(head, "\n", (note, "dim")), justify="right", overflow="fold")
    for title, row in zip(titles, cells.rows, strict=True):
        table.add_row(title, *(_text(cell) for cell in row.cells))
    return table


def _text(cell: Cell | None) -> Text:
    if cell is None:
        return Text(NOT_RUN, style="dim")
    interval = cell.interval.replace("–", " – ")  # a narrow terminal breaks lines at spaces
    return Text.assemble((cell.value, "bold"), "\n", (f"{interval}\n{cell.n}", "dim"))
