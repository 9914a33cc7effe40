"""What a table is, and how it is written in Markdown."""

from __future__ import annotations

from dataclasses import dataclass

NOT_RUN = "not run"


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    head: str
    note: str = ""
    words: bool = False
    """Holds text and not numbers: set flush left."""
    falling: bool = False
    """The first click on its head puts the largest value on top."""


@dataclass(frozen=True)
class Cell:
    """A value with its 95 % interval and what it was measured on, as text."""

    value: str
    interval: str = ""
    n: str = ""
    order: float | None = None
    """What a reader's click sorts by; None sorts behind all numbers."""
    published: str = ""
    """The published figure of the same measure."""
    verdict: str = ""
    """`better` or `worse` than the baseline where that difference is real."""

    def plain(self) -> str:
        """The cell in one line."""
        found = "; ".join(part for part in (self.interval, self.n) if part)
        parts = [self.value, f"({found})" if found else "", f"[paper {self.published}]" if self.published else ""]
        return " ".join(part for part in parts if part)


@dataclass(frozen=True)
class TableRow:
    """A line of a table: whose it is, and its cells. None: not run."""

    name: str
    """Of the row of the run, or "" where the line belongs to none."""
    title: str
    note: str
    cells: tuple[Cell | None, ...]
    baseline: bool = False
    """Others are compared with this one."""


@dataclass(frozen=True)
class Table:
    """A table of values, methods by measures."""

    columns: tuple[Column, ...]
    rows: tuple[TableRow, ...]
    title: str = ""
    caption: str = ""
    first: str = "Method"
    """Head of the first column."""


def _safe(words: str) -> str:
    words = " ".join(words.replace("&", "&amp;").replace("<", "&lt;").split())
    return words.replace("\\", "\\\\").replace("|", "\\|")


def markdown(table: Table) -> str:
    """A table in GitHub's Markdown; every cell: value (95 % interval; n)."""
    heads = [table.first.lower(), *(f"{c.head}, {c.note}" if c.note else c.head for c in table.columns)]
    lines = ["| " + " | ".join(_safe(head) for head in heads) + " |"]
    lines.append("|---|" + "".join("---|" if c.words else "---:|" for c in table.columns))
    for row in table.rows:
        cells = [_safe(cell.plain()) if cell else NOT_RUN for cell in row.cells]
        lines.append("| " + " | ".join([_safe(row.title), *cells]) + " |")
    return "\n".join(lines) + "\n"
