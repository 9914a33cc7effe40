"""Speaks to a terminal with rich: text, tables and progress bars."""

from __future__ import annotations

import os
import time
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from harpe.report.wording import duration
from harpe.reporter import Reporter

WIDEST = 200
"""Characters of a table's lines at most where the output is no terminal."""
LINE_EVERY = 15.0
"""Seconds between lines of progress where the output is no terminal (a log file, CI)."""


class Terminal(Reporter):
    """Writes to standard error's or output's console; bars on a terminal, plain lines elsewhere."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        if not self.console.is_terminal and "COLUMNS" not in os.environ:
            self.console.width = WIDEST
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._printed: dict[str, float] = {}
        self._first: dict[str, tuple[float, int]] = {}

    def say(self, text: str) -> None:
        self.close()
        self.console.print(text, markup=False)

    def table(self, table: Any) -> None:
        """Nothing is cut off: a log has longer lines, and what is too narrow breaks names and numbers."""
        self.close()
        for column in getattr(table, "columns", ()):  # words between tables have none
            column.overflow = "fold"
        self.console.print(table)

    def progress(self, what: str, done: int, total: int | None, note: str = "") -> None:
        if not self.console.is_terminal:
            self._line(what, done, total, note)
            return
        if self._bars is None:
            self._bars = Progress(
                TextColumn("{task.description:34}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=self.console,
            )
            self._bars.start()
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, total=total, note=note)
        self._bars.update(self._tasks[what], completed=done, total=total, note=note)

    def _line(self, what: str, done: int, total: int | None, note: str) -> None:
        now = time.monotonic()
        began, before = self._first.setdefault(what, (now, done))
        ended = total is not None and done >= total
        if not ended and now - self._printed.get(what, now - LINE_EVERY) < LINE_EVERY:
            return
        self._printed[what] = now
        parts = [f"{what}: {done}/{total}" if total is not None else f"{what}: {done}", *([note] if note else [])]
        if total is not None and before < done < total:
            parts.append(f"{duration((now - began) / (done - before) * (total - done))} left")
        if ended:
            del self._first[what]  # the next work of that name
        self.console.print(", ".join(parts), markup=False)

    def close(self) -> None:
        """End the bars, so that what follows is printed below them."""
        if self._bars is not None:
            self._bars.stop()
        self._bars, self._tasks = None, {}
