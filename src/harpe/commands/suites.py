"""`harpe suites`: what harpe can measure of a model."""

from __future__ import annotations

from typing import Any

from harpe.evaluation.catalogue import COLUMNS, SUITES, as_markdown, cells
from harpe.options.measuring import SuitesOptions
from harpe.report.terminal import suites_table


def run(options: SuitesOptions, terminal: Any) -> None:
    """Print the list."""
    if options.markdown:
        terminal.say(as_markdown())
    else:
        terminal.table(suites_table(COLUMNS, [cells(suite) for suite in SUITES]))
