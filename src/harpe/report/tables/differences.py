"""Tables of differences. In a comparison they are to one baseline; losses stay in nats a token."""

from __future__ import annotations

from harpe.report.read.contrast import Contrast
from harpe.report.read.run import Row, Run
from harpe.report.read.summary import Measure
from harpe.report.tables.results import absent, chief_measures, column_of, table_row, verdict
from harpe.report.tables.table import Cell, Column, Table, TableRow
from harpe.report.wording import signed

DIFFERENCE = (
    Column("95% interval"),
    Column("p", "uncorrected"),
    Column("p", "Holm-corrected"),
    Column("verdict", words=True),
)


def compared(run: Run) -> list[Measure]:
    """What methods are compared by: each gets its own table and picture of differences."""
    return [measure for measure in chief_measures(run) if measure.differences]


def in_words(measure: Measure, name: str) -> str:
    """What a difference to the baseline says."""
    side = verdict(measure, name)
    return f"real: {side}" if side else "not shown"


def _chance(p: float | None) -> Cell:
    return Cell("–") if p is None else Cell("< 0.001" if p < 0.001 else f"{p:.3f}", order=p)


def signed_in(measure: Measure, found: Contrast) -> tuple[str, str]:
    """A difference and its interval: nats to three decimals, points to one."""
    return signed(found.value, found.low, found.high, 3 if measure.unit == "nats" else 1)


def unit_words(measure: Measure) -> str:
    return "nats a token" if measure.unit == "nats" else "percentage points"


def _contrast_cells(run: Run, measure: Measure, row: Row) -> list[Cell | None]:
    found = measure.differences.get(row.name)
    if found is None:
        return [absent(row), *(Cell("–") for _ in DIFFERENCE)] if row.failures else [None] * (1 + len(DIFFERENCE))
    value, interval = signed_in(measure, found)
    ours, theirs = measure.values.get(row.name), measure.values.get(run.baseline.name)
    seeds = [str(v.seeds) for v in (ours, theirs) if v is not None]
    if found.seeds is not None and row.trained and run.baseline.trained:
        seeds = [str(found.seeds)]
    n = f"n = {' and '.join(dict.fromkeys(seeds))} × {measure.documents:,}" if seeds else f"n = {measure.documents:,}"
    words = in_words(measure, row.name)
    order = 0.0 if words == "not shown" else found.value
    return [
        Cell(value, n=n, order=found.value),
        Cell(interval, order=found.low),
        _chance(found.p),
        _chance(found.holm),
        Cell(words, order=order),
    ]


def difference_table(run: Run, measure: Measure) -> Table:
    """Every method minus the baseline in one measure."""
    others = [row for row in run.rows if row is not run.baseline]
    rows = [table_row(run, row, _contrast_cells(run, measure, row)) for row in others]
    column = column_of(measure)
    comma = " " if column.note.startswith("at ") else ", "
    words = measure.title if measure.unit == "nats" else comma.join(part for part in (column.head, column.note) if part)
    title = words[:1].upper() + words[1:]
    caption = f"{unit_words(measure)}, minus {run.baseline.title}; {measure.better} is better"
    return Table((Column("difference", unit_words(measure)), *DIFFERENCE), tuple(rows), title, caption)


def all_differences(run: Run) -> Table:
    """The differences in all measures without a table of their own, but for those of a corpus at dozens of lengths."""
    shown = {measure.id for measure in compared(run)}
    rows: list[TableRow] = []
    for measure in run.measures:
        if measure.id in shown or (measure.id.startswith("curve-") and measure.length):
            continue
        for row in run.rows:
            if row.name in measure.differences:
                named = Cell(measure.title, "", unit_words(measure), order=float(len(rows)))
                rows.append(table_row(run, row, [named, *_contrast_cells(run, measure, row)]))
    return Table((Column("measure", words=True), Column("difference"), *DIFFERENCE), tuple(rows))


def paired_table(run: Run) -> Table:
    """The differences of a single run, each between two of its rows."""
    rows = []
    for d in run.summary.differences:
        value, interval = signed(d.value, d.low, d.high)
        numbers = Cell(value, n=d.unit, order=d.value), Cell(interval, order=d.low)
        rows.append(TableRow("", d.name, "", (Cell(d.measure), *numbers, Cell("yes" if d.significant else "no"))))
    columns = (Column("measure", words=True), Column("value"), Column("95% interval"), Column("clear?", words=True))
    return Table(columns, tuple(rows), first="Difference")
