"""Tables of effective length and length score."""

from __future__ import annotations

from harpe.report.read.lengths import Effective, LengthScores, LengthTask, MethodLengths
from harpe.report.read.run import Row, Run
from harpe.report.tables.results import absent, table_row
from harpe.report.tables.table import Cell, Column, Table
from harpe.report.wording import first_upper, listed, percent, signed

NONE = "none"


def tasks_of(run: Run, chief: bool) -> list[LengthTask]:
    """Means and the grid, or the single tasks, that any row was asked."""
    found = run.summary.lengths
    return [task for task in found.tasks if task.chief == chief and task.methods] if found else []


def tokens(length: int) -> str:
    return f"{length:,}" if length else NONE


def effective_cell(effective: Effective | None, longest: int) -> Cell:
    """At the longest length that was asked only "at least" is known."""
    if effective is None:
        return Cell("–")

    def shown(length: int) -> str:
        return f"≥ {tokens(length)}" if length == longest else tokens(length)

    return Cell(shown(effective.value), f"{tokens(effective.low)}–{shown(effective.high)}", order=effective.value)


def _percent(found: MethodLengths, name: str, note: str = "") -> Cell:
    each = getattr(found, name)
    return (
        Cell(f"{percent(each.value)}%", f"{percent(each.low)}–{percent(each.high)}%", note, each.value)
        if each
        else Cell("–")
    )


def _cells(run: Run, scores: LengthScores, task: LengthTask, row: Row) -> list[Cell | None]:
    found = task.methods.get(row.name)
    if found is None:
        return [absent(row)] * (3 + len(task.lengths))
    area, contrast = _percent(found, "area"), task.differences.get(row.name)
    verdict = ("better" if contrast.value > 0 else "worse") if contrast and contrast.real else ""
    if contrast:
        value, interval = signed(contrast.value, contrast.low, contrast.high, 1)
        note = f"{value} ({interval})"
    else:
        note = ""
    area = Cell(area.value, area.interval, note, area.order, verdict=verdict)
    threshold = f"× {scores.kept:g}: {percent(scores.kept * found.base.value)}%" if found.base else ""
    effective = effective_cell(found.effective, task.lengths[-1])
    cells: list[Cell | None] = [effective, _percent(found, "base", threshold), area]
    return cells + [
        Cell(f"{percent(s.value)}%", f"{percent(s.low)}–{percent(s.high)}%", order=s.value) for s in found.scores
    ]


def length_table(run: Run, task: LengthTask) -> Table:
    """Effective length, base score, length score and the scores at every length of one task, by row."""
    scores = run.summary.lengths
    assert scores is not None
    reference = next((row.title for row in run.rows if row.name == scores.reference), scores.reference)
    heads = (
        Column("effective length", "tokens", falling=True),
        Column("base score", f"best up to {scores.trained_length:,}", falling=True),
        Column("length score", f"and minus {reference}", falling=True),
        *(Column("score", f"at {length:,}", falling=True) for length in task.lengths),
    )
    rows = [table_row(run, row, _cells(run, scores, task, row)) for row in run.rows]
    return Table(heads, tuple(rows), first_upper(task.title))


def length_notes(run: Run, task: LengthTask) -> list[str]:
    """What the table cannot say: what a guesser scores, rows without an effective length and why, and shorter lengths
    that failed."""
    titles = {row.name: row.title for row in run.rows}
    reasons: dict[str, list[str]] = {}
    for name, found in task.methods.items():
        if found.reason:
            reasons.setdefault(found.reason, []).append(titles[name])
    guessed = list(dict.fromkeys(map(percent, (min(task.guessed, default=0.0), max(task.guessed, default=0.0)))))
    notes = [f"A guesser scores {'% to '.join(guessed)}%."] if task.guessed and max(task.guessed) > 0 else []
    notes += [f"No effective length: {listed(names)} ({reason})." for reason, names in reasons.items()]
    for name, found in task.methods.items():
        if found.effective and found.effective.failed_below:
            notes.append(_failed(titles[name], found.effective))
    if task.incomplete:
        notes.append(f"Not asked at every length yet, and left out: {listed([titles[n] for n in task.incomplete])}.")
    return notes


def _failed(title: str, found: Effective) -> str:
    below = listed([f"{length:,}" for length in found.failed_below])
    return f"{title} falls below at {below} tokens and keeps enough again at {found.value:,}."
