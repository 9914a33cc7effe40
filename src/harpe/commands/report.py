"""`harpe report`: the page of a run, of a comparison, or of one model's scores, from its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harpe.comparison.summary import complete
from harpe.errors import HarpeError
from harpe.options.runs import ReportOptions
from harpe.ownership import refuse_foreign
from harpe.report.model_page import WRITTEN, write_model_page
from harpe.report.page import write_report
from harpe.report.read.run import is_comparison
from harpe.report.terminal import main_table
from harpe.runs.differences import renew_summary
from harpe.runs.length_scores import write_lengths
from harpe.runs.model_scores import read_model
from harpe.runs.paired_models import pairs
from harpe.runs.position_losses import write_positions
from harpe.runs.scored import check_models


def run(options: ReportOptions, terminal: Any) -> None:
    """Write the page again; also the statistics behind it, where the run was cut short or an earlier version left them
    out."""
    folder = Path(options.run)
    if not (folder / "plan.json").is_file():
        page = report_scores(folder, options.against)
        terminal.say(f"The report: {page}")
        return
    if options.against is not None:
        raise HarpeError(
            f"--against: {folder} is a run, whose page compares its own models. Leave --against out, or name a folder "
            "with the scores of one model."
        )
    pages = [folder / "report" / name for name in WRITTEN]
    refuse_foreign(*pages, folder / "positions.json", folder / "lengths.json", folder / "summary.json")
    check_models(folder)
    if is_comparison(folder):
        complete(folder)
    else:
        write_positions(folder)
        write_lengths(folder)
        renew_summary(folder)
    page = write_report(folder)
    terminal.table(main_table(folder))
    terminal.say(f"The report: {page}")


def report_scores(folder: Path, against: str | None) -> Path:
    """Write the page of a folder with the scores of one model; returns it.

    Raises HarpeError as `read_model` does, and where both folders are the same.
    """
    other = Path(against) if against is not None else None
    if other is not None and other.resolve() == folder.resolve():
        raise HarpeError(f"--against {against} is the same folder: name the scores of another model.")
    refuse_foreign(*(folder / "report" / name for name in WRITTEN))
    ours = read_model(folder)
    theirs = read_model(other) if other is not None else None
    return write_model_page(folder, ours, theirs, pairs(ours, theirs) if theirs else ())
