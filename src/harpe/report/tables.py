"""Tables of values, made once and written as HTML, Markdown and for the terminal; and how numbers are written in them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

NOT_RUN = "not run"
TASKS = {"single": "single", "multi_key": "multi-key", "multi_query": "multi-query", "multi_value": "multi-value"}
"""harpe's own needle tasks."""


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
class Row:
    """A line of a table: whose it is, and its cells. None: not run."""

    name: str
    """The method's name, or "" where the line belongs to none."""
    title: str
    note: str
    cells: tuple[Cell | None, ...]
    baseline: bool = False
    """Others are compared with this one."""


@dataclass(frozen=True)
class Table:
    """A table of values, methods by measures."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
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


def plain(value: float) -> str:
    """A perplexity: two decimals, fewer where it is large."""
    if not math.isfinite(value):
        return "not finite"
    return f"{value:,.{2 if abs(value) < 1000 else 0}f}"


def signed(value: float, low: float, high: float, decimals: int | None = None) -> tuple[str, str]:
    """A difference and its interval, with as many decimals as their size asks for where no number of them is given."""
    if decimals is None:
        largest = max((abs(v) for v in (value, low, high) if math.isfinite(v)), default=0.0)
        decimals = 1 if largest >= 10 else 2 if largest >= 1 else 3

    def one(number: float) -> str:
        return f"{number:+,.{decimals}f}".replace("-", "−") if math.isfinite(number) else "not finite"

    return one(value), f"{one(low)} to {one(high)}"


def percent(value: float) -> str:
    """A score in per cent; an interval can end a rounding error below nothing."""
    return f"{max(0.0, value):.1f}" if math.isfinite(value) else "not finite"


def duration(seconds: float) -> str:
    """Seconds for people: 40 s, 5.2 min, 3.2 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def facts(entries: dict[str, Any]) -> list[tuple[str, str]]:
    """Keys and values of a JSON object as readable text."""

    def words(value: Any) -> str:
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, int):
            return f"{value:,}"
        if isinstance(value, float):
            return f"{value:,.10g}" if value == 0 or abs(value) >= 1e-3 else f"{value:g}"
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    return [(key.replace("_", " "), words(value)) for key, value in entries.items() if key != "schema_version"]


def listed(words: Sequence[str]) -> str:
    """a; a and b; a, b and c."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)
