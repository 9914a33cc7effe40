"""Tables of results: a row of the run by measures.

Losses are kept in nats a token and shown as perplexities (their exponential), the ends of their intervals too.
"""

from __future__ import annotations

import math

from harpe.report.read.measures import NEEDLE_TITLES
from harpe.report.read.run import Row, Run
from harpe.report.read.summary import Measure, Value
from harpe.report.tables.table import NOT_RUN, Cell, Column, Table, TableRow
from harpe.report.wording import percent, plain

FAILED = "failed"


def table_row(run: Run, row: Row, cells: list[Cell | None]) -> TableRow:
    """A row's line: what it is to the others stands under its title."""
    notes = {"baseline": row is run.baseline, "control": row.control, "not trained": not row.trained}
    note = ", ".join(words for words, holds in notes.items() if holds)
    return TableRow(row.name, row.title, note, tuple(cells), row is run.baseline)


def absent(row: Row) -> Cell | None:
    """What stands where a row has no value."""
    return Cell(FAILED) if row.failures else None


def perplexity(nll: float) -> float:
    """exp of a loss in nats a token; infinite where that is no number any more."""
    return math.exp(nll) if nll < 700 else math.inf


def value_cell(value: Value, unit: str, published: float | None = None, verdict: str = "") -> Cell:
    """A value with its interval, and n as seeds x documents; in a single run as documents."""
    n = f"n = {value.documents:,}" if value.seeds is None else f"n = {value.seeds} × {value.documents:,}"
    paper = "" if published is None else f"{published:,.2f}"
    shown, low, high = (
        plain(perplexity(v)) if unit == "nats" else percent(v) for v in (value.value, value.low, value.high)
    )
    sign = "" if unit == "nats" else "%"
    return Cell(f"{shown}{sign}", f"{low}–{high}{sign}", n, value.value, paper, verdict)


def verdict(measure: Measure, name: str) -> str:
    """`better` or `worse` than the baseline; "" where no difference is shown."""
    found = measure.differences.get(name)
    if found is None or not found.real:
        return ""
    return "better" if (found.value > 0) == (measure.better == "higher") else "worse"


def measure_cell(measure: Measure | None, row: Row, published: float | None = None) -> Cell | None:
    """A row's cell of a measure."""
    value = measure.values.get(row.name) if measure else None
    if measure is None or value is None:
        missing = absent(row)
        if published is None:
            return missing
        return Cell(missing.value if missing else NOT_RUN, published=f"{published:,.2f}")
    return value_cell(value, measure.unit, published, verdict(measure, row.name))


def column_of(measure: Measure) -> Column:
    """Head and note of a measure."""
    falling, at = measure.better == "higher", f"at {measure.length:,}" if measure.length else ""
    if measure.unit == "nats":
        return Column("perplexity", measure.title.removeprefix("loss "), falling=falling)
    heads = {
        "needles-mean": ("needle mean", at),
        "grid-mean": ("needle grid", "all lengths and depths"),
        "ruler-niah": ("RULER needles", f"8 tasks {at}"),
        "ruler-all": ("RULER", f"13 tasks {at}"),
        "long-mean": ("long-context tasks", f"mean {at}"),
        "short-mean": ("short benchmarks", "mean"),
    }
    stem = measure.id.removesuffix(f"-{measure.length}")
    if stem in heads:
        return Column(*heads[stem], falling=falling)
    if measure.group == "needles" and measure.task:
        return Column(NEEDLE_TITLES.get(measure.task, measure.task), f"needles {at}".rstrip(), falling=falling)
    return Column(measure.title, falling=falling)


def _needles(run: Run, length: int) -> list[Measure]:
    """The needle tasks at a length and, last, their mean."""
    mean = f"needles-mean-{length}"
    found = [m for m in run.measures if m.group == "needles" and m.length == length and m.id != mean]
    return found + [m for m in run.measures if m.id == mean]


def _named(run: Run, names: list[str]) -> list[Measure]:
    return [measure for name in names if (measure := run.measure(name)) is not None]


def _table(run: Run, measures: list[Measure], title: str = "", caption: str = "") -> Table:
    rows = [table_row(run, row, [measure_cell(measure, row) for measure in measures]) for row in run.rows]
    return Table(tuple(column_of(measure) for measure in measures), tuple(rows), title, caption)


def main_table(run: Run) -> Table:
    """Short and long perplexity, the needle tasks at the target length, and the means of whatever else was measured."""
    target = run.target_length
    means = ["grid-mean", f"ruler-niah-{target}", f"ruler-all-{target}", f"long-mean-{target}", "short-mean"]
    return _table(run, _named(run, ["loss-short", "loss-long"]) + _needles(run, target) + _named(run, means))


def other_needles(run: Run) -> list[Table]:
    """The needle tasks at every other length that they were asked at."""
    lengths = sorted({m.length for m in run.measures if m.group == "needles" and m.length} - {run.target_length})
    captions = {run.original_length: "What the extension costs at the length that the model was trained with."}
    return [_table(run, _needles(run, n), f"Needles at {n:,} tokens", captions.get(n, "")) for n in lengths]


def chief_measures(run: Run) -> list[Measure]:
    """Perplexities and the mean of each kind of scores."""
    target = run.target_length
    means = [f"{kind}-{target}" for kind in ("needles-mean", "ruler-niah", "ruler-all", "long-mean")]
    return _named(run, ["loss-long", "loss-short", *means, "short-mean"])


def chief_table(run: Run) -> Table:
    """The chief measures of a comparison, which fit into a terminal."""
    return _table(run, chief_measures(run))
