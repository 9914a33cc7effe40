"""`harpe ruler`: RULER's samples, and the answers of a model."""

from __future__ import annotations

from typing import Any

from harpe.distributed.processes import is_first
from harpe.options.measuring import RulerOptions
from harpe.report.terminal import against_table, ruler_table
from harpe.suites.ruler import run_ruler


def run(options: RulerOptions, terminal: Any) -> None:
    """Write RULER samples, and answer them where a model is named."""
    folder = run_ruler(options, terminal)
    if options.model is not None and is_first():
        terminal.table(ruler_table(folder))
    if options.against is not None and is_first():
        terminal.table(against_table(folder))
