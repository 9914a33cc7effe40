"""`harpe compare`: several methods from one checkpoint on one budget."""

from __future__ import annotations

from typing import Any

from harpe.comparison.run import compare
from harpe.options.runs import CompareOptions
from harpe.report.terminal import main_table


def run(options: CompareOptions, terminal: Any) -> None:
    """Compare, and show the table."""
    folder = compare(options, terminal)
    if not options.plan:
        terminal.table(main_table(folder))
        terminal.say(f"The report: {folder / 'report' / 'index.html'}")
