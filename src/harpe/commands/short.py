"""`harpe short`: short benchmarks of one checkpoint."""

from __future__ import annotations

from typing import Any

from harpe.distributed.processes import is_first
from harpe.options.measuring import ShortOptions
from harpe.report.terminal import against_table, short_table
from harpe.suites.short import measure_short


def run(options: ShortOptions, terminal: Any) -> None:
    """Run short benchmarks."""
    folder = measure_short(options, terminal)
    if is_first():
        terminal.table(short_table(folder))
    if options.against is not None and is_first():
        terminal.table(against_table(folder))
