"""What heads do and want, for the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from harpe.report.tables.heads import head_facts, head_table, ratio_table
from harpe.report.tables.table import Table as Cells


def head_tables(value: dict[str, Any]) -> Iterator[Table]:
    """The facts, the ratios and the heads, one after the other."""
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="dim")
    facts.add_column(overflow="fold")
    for key, words in head_facts(value):
        facts.add_row(Text(key), Text(words))
    yield facts
    yield _grid(ratio_table(value))
    yield _grid(head_table(value))


def _grid(cells: Cells) -> Table:
    table = Table(title=Text(cells.title), caption=Text(cells.caption), caption_justify="left", box=box.SIMPLE_HEAD)
    table.add_column(Text(cells.first), no_wrap=True)
    for column in cells.columns:
        head = f"{column.head}\n{column.note}" if column.note else column.head
        table.add_column(Text(head), justify="left" if column.words else "right", overflow="fold")
    for row in cells.rows:
        parts = [(cell.value, cell.interval) if cell else ("–", "") for cell in row.cells]
        table.add_row(Text(row.title), *(Text("\n".join(filter(None, part))) for part in parts))
    return table
