"""All tables of a comparison in one Markdown text, and all its values as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any

from harpe.report.header import interval_note, lead
from harpe.report.published import Published
from harpe.report.read.run import Run
from harpe.report.tables.budget import budget_sentences, budget_table, failures
from harpe.report.tables.differences import compared, difference_table, in_words
from harpe.report.tables.lengths import length_notes, length_table, tasks_of
from harpe.report.tables.paper import PaperTable
from harpe.report.tables.results import FAILED, main_table, other_needles
from harpe.report.tables.table import NOT_RUN, Table, markdown

COLUMNS = tuple(
    "measure title group task length unit better method method_title control baseline status value low high seeds "
    "documents by_seed difference difference_low difference_high p p_holm verdict interval".split()
)
"""Of tables.csv: one row a measure and method. Losses in nats a token, scores in per cent, differences to the baseline
in the same unit."""


def markdown_tables(run: Run, paper: list[PaperTable], theirs: Published | None) -> str:
    """All tables of values in one Markdown text."""

    def line(words: str) -> str:
        return " ".join(words.replace("<", "&lt;").split())

    parts = [f"# {line(run.title)}\n", f"{line(lead(run))}\n", f"{interval_note(run) or f'Results: {NOT_RUN}.'}\n"]
    parts += [f"* {line(sentence)}\n" for sentence in run.summary.reading]

    def section(title: str, table: Table | None, note: str = "") -> None:
        parts.append(f"\n## {line(title)}\n")
        if note:
            parts.append(f"{line(note)}\n")
        parts.append(markdown(table) if table is not None and table.rows else f"{NOT_RUN} in this comparison\n")

    main = main_table(run)
    section("Results", main if main.columns else None, "Value (95% interval; n = seeds × documents or samples).")
    for table in other_needles(run):
        section(table.title, table)
    for task in (*tasks_of(run, chief=True), *tasks_of(run, chief=False)):
        section(f"By length: {task.title}", length_table(run, task), " ".join(length_notes(run, task)))
    for measure in compared(run):
        table = difference_table(run, measure)
        section(f"Differences: {table.title}", table, table.caption)
    for entry in paper:
        cited = f"Paper: {theirs.citation}; {theirs.setting}. " if theirs and entry.table else ""
        section(f"Table {entry.number} of the paper: {entry.title}", entry.table, cited + entry.note)
    section("Budget", budget_table(run), " ".join(budget_sentences(run)))
    failed = failures(run)
    if failed.rows:
        section("Failed", failed)
    return "\n".join(parts)


def cell_text(words: str) -> str:
    """With an apostrophe before what a spreadsheet would compute.

    https://owasp.org/www-community/attacks/CSV_Injection
    """
    return f"'{words}" if words.lstrip().startswith(("=", "+", "-", "@")) or words[:1].isspace() else words


def csv_table(run: Run) -> str:
    """All values and differences, one row a measure and method, in full precision; empty where there is nothing."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for m in run.measures:
        for row in run.rows:
            value, d = m.values.get(row.name), m.differences.get(row.name)
            status = "measured" if value else FAILED if row.failures else NOT_RUN
            line: list[Any] = [m.id, m.title, m.group, m.task, m.length, m.unit, m.better, row.name, row.title]
            line += [row.control, run.baseline.name, status]
            line = [cell_text(cell) if isinstance(cell, str) else cell for cell in line]
            line += [value.value, value.low, value.high, value.seeds, value.documents] if value else [None] * 5
            line += [" ".join(map(repr, value.by_seed)) if value else None]
            line += [d.value, d.low, d.high, d.p, d.holm, in_words(m, row.name)] if d else [None] * 6
            writer.writerow([*line, run.summary.interval])
    for values in _lengths(run):
        writer.writerow([cell_text(cell) if isinstance(cell, str) else cell for cell in values])
    return stream.getvalue()


def _lengths(run: Run) -> Iterator[list[Any]]:
    """Lines of effective lengths (in tokens; 0: none) and length scores."""
    for task in (*tasks_of(run, chief=True), *tasks_of(run, chief=False)):
        for row in run.rows:
            found, d = task.methods.get(row.name), task.differences.get(row.name)
            missing = FAILED if row.failures else NOT_RUN
            for kind, unit, each in (
                ("effective length", "tokens", found.effective if found else None),
                ("length score", "%", found.area if found else None),
            ):
                measure = f"{kind.replace(' ', '-')}-{task.id}"
                line: list[Any] = [measure, f"{kind}, {task.title}", task.group, task.task, None, unit, "higher"]
                line += [row.name, row.title, row.control, run.baseline.name, "measured" if each else missing]
                seeds = found.seeds if found else None
                line += [each.value, each.low, each.high, seeds, task.units, None] if each else [None] * 6
                shown = d if kind == "length score" else None
                words = ("real: better" if d.value > 0 else "real: worse") if d and d.real else "not shown"
                line += [shown.value, shown.low, shown.high, shown.p, shown.holm, words] if shown else [None] * 6
                yield [*line, run.summary.interval]
