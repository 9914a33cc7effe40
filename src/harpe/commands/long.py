"""`harpe long`: long-context tasks whose samples are made here."""

from __future__ import annotations

from typing import Any

from harpe.distributed.processes import is_first
from harpe.options.measuring import LongOptions
from harpe.report.terminal import against_table, long_table
from harpe.suites.long import run_long


def run(options: LongOptions, terminal: Any) -> None:
    """Ask, and show the scores."""
    folder = run_long(options, terminal)
    if is_first():
        terminal.table(long_table(folder))
    if options.against is not None and is_first():
        terminal.table(against_table(folder))
