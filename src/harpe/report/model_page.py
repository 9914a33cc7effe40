"""The page of a folder of scores: one model over all suites, and another one beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harpe.files import write_text
from harpe.ownership import COMMENT, refuse_foreign
from harpe.report.environment import environment
from harpe.report.read.model import ModelScores, Pair
from harpe.report.tables.model import against_tables, file_table, numbers_csv, position_table, suite_tables
from harpe.report.tables.table import Table, markdown
from harpe.report.wording import printable

WRITTEN = ("index.html", "tables.md", "tables.csv")


def write_model_page(
    folder: Path, ours: ModelScores, theirs: ModelScores | None = None, pairs: Sequence[Pair] = ()
) -> Path:
    """Write `report/index.html`, `tables.md` and `tables.csv` into the folder of scores; returns the page.

    Raises HarpeError where a file with one of these names was not written by harpe.
    """
    out = folder / "report"
    refuse_foreign(*(out / name for name in WRITTEN))
    tables = suite_tables(ours)
    compared = against_tables(pairs, theirs.name) if theirs else []
    positions = [position_table(title, bins) for title, bins in ours.positions.items() if bins]
    page = (
        environment()
        .get_template("model.html.j2")
        .render(
            ours=ours,
            theirs=theirs,
            name=printable(ours.name),
            suites=tables,
            compared=compared,
            positions=positions,
            files=file_table(ours),
            their_files=file_table(theirs) if theirs else None,
        )
    )
    title = f"# {' '.join(printable(ours.name).replace('<', '&lt;').split())}\n"
    sections = [
        *tables,
        *(Table(t.columns, t.rows, f"{t.title}, two models", t.caption, t.first) for t in compared),
        *positions,
        file_table(ours),
    ]
    parts = ["\n\n".join(part for part in (f"\n## {t.title}", t.caption, markdown(t)) if part) for t in sections]
    parts += [f"\n* {note}\n" for note in ours.notes]
    write_text(out / "tables.md", COMMENT + title + "".join(parts))
    write_text(out / "tables.csv", numbers_csv(ours, theirs, pairs))
    write_text(out / "index.html", page)
    return out / "index.html"
