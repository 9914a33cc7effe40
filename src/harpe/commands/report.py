"""`harpe report`: the page of a run or of a comparison, from its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harpe.comparison.summary import complete
from harpe.options.runs import ReportOptions
from harpe.ownership import refuse_foreign
from harpe.report.page import write_report
from harpe.report.read.run import is_comparison
from harpe.report.terminal import main_table
from harpe.runs.length_scores import write_lengths
from harpe.runs.position_losses import write_positions
from harpe.runs.scored import check_models


def run(options: ReportOptions, terminal: Any) -> None:
    """Write the page again; also the statistics behind it, where the run was cut short or an earlier version left them
    out."""
    folder = Path(options.run)
    pages = [folder / "report" / name for name in ("index.html", "tables.md", "tables.csv")]
    refuse_foreign(*pages, folder / "positions.json", folder / "lengths.json", folder / "summary.json")
    check_models(folder)
    if is_comparison(folder):
        complete(folder)
    else:
        write_positions(folder)
        write_lengths(folder)
    page = write_report(folder)
    terminal.table(main_table(folder))
    terminal.say(f"The report: {page}")
