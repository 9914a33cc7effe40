"""Tables of everything that was measured of one model, and of two beside each other."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from harpe.report.read.model import ModelScores, Number, OverLengths, Pair
from harpe.report.read.scores import Bin
from harpe.report.tables.files import cell_text
from harpe.report.tables.lengths import effective_cell
from harpe.report.tables.table import Cell, Column, Table, TableRow
from harpe.report.wording import first_upper, listed, percent, plain, signed

COLUMNS = tuple(
    "measure title group task length unit better method method_title value low high samples file difference "
    "difference_low difference_high difference_unit no_difference".split()
)
"""Of tables.csv: one row a number; differences (this model minus the other) stand in this model's rows. The beginning
is that of a comparison's."""


def _cell(number: Number | None) -> Cell:
    if number is None:
        return Cell("–")
    unit, shown = ("%", percent) if number.unit == "%" else ("", plain)
    what = ("document" if number.unit == "perplexity" else "sample") + "s" * (number.samples != 1)
    ends = (number.low, number.high)
    interval = "no interval" if None in ends else "–".join(shown(end) for end in ends if end is not None) + unit
    return Cell(
        f"{shown(number.value)}{unit}",
        interval,
        f"{number.samples:,} {what}",
        number.value,
    )


def suite_tables(scores: ModelScores) -> list[Table]:
    """A table for each suite: tasks by lengths, with effective length and length score where a suite has those."""
    tables = []
    for suite in dict.fromkeys(number.suite for number in scores.numbers):
        those = [number for number in scores.numbers if number.suite == suite]
        lengths = sorted({number.length for number in those}, key=lambda length: length or 0)
        over = {each.task: each for each in scores.lengths if each.suite == suite}
        unit = "score" if those[0].unit == "%" else "perplexity"
        columns = [Column(unit, f"at {length:,}" if length else "") for length in lengths]
        columns += [Column("effective length", "tokens"), Column("length score")] if over else []
        rows = []
        for task in dict.fromkeys(number.task for number in those):
            at = {number.length: number for number in those if number.task == task}
            cells: list[Cell] = [_cell(at.get(length)) for length in lengths]
            if over:
                cells += _over(over.get(task), max(at, key=lambda length: length or 0) or 0)
            rows.append(TableRow("", task, "", tuple(cells)))
        without: dict[str, list[str]] = {}
        for task, each in over.items():
            without.setdefault(each.reason or "", []).append(task)
        notes = [f"No effective length: {listed(names)} ({why})." for why, names in without.items() if why]
        tables.append(Table(tuple(columns), tuple(rows), suite, " ".join(notes), first="Task"))
    return tables


def _over(found: OverLengths | None, longest: int) -> list[Cell]:
    if found is None:
        return [Cell("–"), Cell("–")]
    area = found.area
    score = Cell(f"{percent(area.value)}%", f"{percent(area.low)}–{percent(area.high)}%") if area else Cell("–")
    return [effective_cell(found.effective, longest), score]


def position_table(title: str, bins: Sequence[Bin]) -> Table:
    """Loss by position of one set of texts."""
    rows = []
    for b in bins:
        loss = Cell(f"{b.nll:.3f}", f"{b.low:.3f}–{b.high:.3f}", order=b.nll)
        rows.append(TableRow("", f"{b.start:,}–{b.end:,}", "", (loss, Cell(f"{b.tokens:,}"))))
    return Table((Column("loss", "nats a token"), Column("tokens")), tuple(rows), title, first="Positions")


def against_tables(pairs: Sequence[Pair], other: str) -> list[Table]:
    """A table for each suite: task and length, this model, the other, and the paired difference."""
    tables: dict[str, list[TableRow]] = {}
    units = {}
    for pair in pairs:
        number = pair.ours or pair.theirs
        assert number is not None
        units[number.suite] = number.unit
        if d := pair.difference:
            value, interval = signed(d.value, d.low, d.high, 1 if number.unit == "%" else 3)
            cell = Cell(value, interval, "" if d.real else "not clear", d.value)
        else:
            cell = Cell("–", pair.why)
        note = f" at {number.length:,} tokens" if number.length else ""
        row = TableRow("", f"{number.task}{note}", "", (_cell(pair.ours), _cell(pair.theirs), cell))
        tables.setdefault(number.suite, []).append(row)
    return [
        Table(
            (
                Column("this model"),
                Column("the other", other),
                Column("difference", "points" if units[suite] == "%" else "nats a token"),
            ),
            tuple(rows),
            suite,
            first="Task",
        )
        for suite, rows in tables.items()
    ]


def file_table(scores: ModelScores) -> Table:
    """Where the numbers stand, which engine gave them, and whether the model was trained on the texts."""
    rows = []
    for each in scores.files:
        cells = (each.suite, each.engine, each.written, first_upper(each.overlap))
        rows.append(TableRow("", each.file, "", tuple(map(Cell, cells))))
    heads = ("suite", ""), ("engine", ""), ("written", "time of the file"), ("overlap", "with its run's training data")
    return Table(tuple(Column(head, note, words=True) for head, note in heads), tuple(rows), "Files", first="File")


def numbers_csv(ours: ModelScores, theirs: ModelScores | None, pairs: Sequence[Pair]) -> str:
    """All numbers in full precision."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    by_key = {pair.ours.key: pair for pair in pairs if pair.ours}
    for method, scores in (("this", ours), ("other", theirs)):
        for n in scores.numbers if scores else ():
            pair = by_key.get(n.key) if method == "this" else None
            better = "higher" if n.unit == "%" else "lower"
            place = f" at {n.length}" if n.length else ""
            line: list[Any] = [
                f"{n.suite}: {n.task}{place}",
                f"{n.task}{place}",
                n.suite,
                n.task,
                n.length,
                n.unit,
                better,
            ]
            line += [method, scores.name if scores else "", n.value, n.low, n.high, n.samples, n.file]
            d = pair.difference if pair else None
            line += [d.value, d.low, d.high, "points" if n.unit == "%" else "nats"] if d else [None] * 4
            line.append(pair.why if pair else None)
            writer.writerow([cell_text(cell) if isinstance(cell, str) else cell for cell in line])
    return stream.getvalue()
