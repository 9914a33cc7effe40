"""The main table of a run for the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from harpe.files import read_json
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


def score_table(folder: Path) -> Table:
    """What `harpe evaluate` measured of one checkpoint: loss by position and needle scores, with 95 % intervals."""
    table = Table(title=Text(str(folder)), box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for head in ("measure", "where", "value", "95% interval"):
        table.add_column(head, justify="left" if head in ("measure", "where") else "right")
    perplexity = read_json(folder / "perplexity.json")
    for b in perplexity["bins"]:
        table.add_row("loss (nats)", f"positions {b['start']}-{b['end']}", f"{b['nll']:.3f}", f"{b['low']:.3f} - {b['high']:.3f}")
    short = perplexity["short"]
    table.add_row("perplexity", f"windows of {short['length']}", *_number(short, "perplexity", 1, 2))
    if (folder / "needles.json").exists():
        for task in read_json(folder / "needles.json")["tasks"]:
            table.add_row(task["task"], f"{task['length']} tokens, n = {task['samples']}", *_number(task, "score", 100, 0, "%"))
    return table


def _number(value: dict[str, Any], key: str, factor: float, digits: int, unit: str = "") -> tuple[str, str]:
    shown = [f"{factor * value[k]:.{digits}f}{unit}" for k in (key, "low", "high")]
    return shown[0], f"{shown[1]} - {shown[2]}"
