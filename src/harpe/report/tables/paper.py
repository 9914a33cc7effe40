"""Tables 3 to 8 of the paper (arXiv 2412.07171) from a comparison's own measurements, with the published figures where
the setting is the paper's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from harpe.report.published import Published, PublishedTable, published
from harpe.report.read.run import Row, Run
from harpe.report.read.summary import Measure
from harpe.report.tables.results import absent, measure_cell, perplexity, table_row
from harpe.report.tables.table import NOT_RUN, Cell, Column, Table, TableRow
from harpe.report.titles import alike
from harpe.report.wording import percent, plain

_NAMES = "single_1 single_2 single_3 multikey_1 multikey_2 multikey_3 multivalue multiquery"
NEEDLES = tuple(f"niah_{name}" for name in _NAMES.split())
"""The eight RULER needle tasks, in the paper's order."""
CORPORA = {"proof-pile": "Proof-pile", "govreport": "GovReport"}
SHORT = {"mmlu": "MMLU", "hellaswag": "HellaSwag", "arc_challenge": "ARC-c", "piqa": "PIQA", "triviaqa": "TriviaQA"}
TITLES = {
    3: "perplexity by corpus",
    4: "the eight RULER needle tasks, mean by length",
    5: "short benchmarks",
    6: "how the bases are chosen",
    7: "all 13 RULER tasks, mean by length",
    8: "each RULER needle task, mean over lengths",
}


@dataclass(frozen=True)
class PaperTable:
    """A table in the paper's shape; `table` is None where nothing of it was measured."""

    number: int
    title: str
    table: Table | None
    note: str
    """On the published figures, where they are shown."""


@dataclass(frozen=True)
class _Spec:
    """A column: what it is called, where its published figures are, and which measures it is the mean of."""

    column: Column
    key: str
    measures: tuple[Measure, ...]
    mean: str = ""
    """Id of a measure that is this mean already, with an interval."""

    @property
    def over(self) -> tuple[str, ...]:
        """The lengths or tasks of its measures."""
        return tuple(str(m.length) if m.length is not None else m.id.removeprefix("short-") for m in self.measures)


def paper_tables(run: Run) -> tuple[list[PaperTable], Published | None]:
    """All six tables, and the published figures where the plan says that the setting is theirs.

    Raises HarpeError when the plan names published figures that there are not.
    """
    theirs = published(run.published) if run.published else None
    builders = {3: _corpora, 4: _by_length, 5: _short, 6: _choices, 7: _by_length, 8: _by_task}
    found = []
    for number, title in TITLES.items():
        specs = builders[number](run, "ruler-niah" if number == 4 else "ruler-all")
        figures = theirs.tables.get(number) if theirs else None
        entries = [row for row in run.rows if row.per_head] if number == 6 else list(run.rows)
        measured = any(row.name in m.values for spec in specs for m in spec.measures for row in entries)
        table = _table(run, entries, specs, figures, theirs) if measured else None
        found.append(PaperTable(number, title, table, _note(specs, figures) if figures and table else ""))
    return found, theirs


def _note(specs: Sequence[_Spec], figures: PublishedTable) -> str:
    left_out = any(spec.key in figures.columns and not figures.has(spec.key, spec.over) for spec in specs)
    return figures.note + (" A published mean over other lengths or tasks than ours is left out." if left_out else "")


def _family(run: Run, stem: str) -> list[Measure]:
    """Measures STEM-LENGTH by ascending length."""
    named = [m for m in run.measures if m.length is not None and m.id == f"{stem}-{m.length}"]
    return sorted(named, key=lambda m: m.length or 0)


def _average(measures: Sequence[Measure], stem: str, head: str = "average", note: str = "") -> _Spec:
    falling = all(m.better == "higher" for m in measures)
    column = Column(head, note or f"over {len(measures)} lengths", falling=falling)
    return _Spec(column, "mean", tuple(measures), f"{stem}-mean")


def _by_length(run: Run, stem: str) -> list[_Spec]:
    measures = _family(run, stem)
    specs = [_Spec(Column(f"{m.length:,}", falling=True), str(m.length), (m,)) for m in measures]
    return [*specs, _average(measures, stem)] if measures else []


def _corpora(run: Run, _: str) -> list[_Spec]:
    stems = list(
        dict.fromkeys(m.id.removesuffix(f"-{m.length}") for m in run.measures if m.id.startswith("curve-") and m.length)
    )
    specs = []
    for stem in stems:
        measures, name = _family(run, stem), stem.removeprefix("curve-")
        last, title = measures[-1], CORPORA.get(name, name)
        if len(measures) > 1:
            spread = f"average over {len(measures)} lengths, {measures[0].length:,} to {last.length:,}"
            specs.append(_Spec(Column(title, spread), name, tuple(measures), f"{stem}-mean"))
            specs.append(_Spec(Column(title, f"at {last.length:,} tokens"), "", (last,)))
        else:
            specs.append(_Spec(Column(title, f"{last.length:,} tokens"), name, (last,)))
    return specs


def _short(run: Run, _: str) -> list[_Spec]:
    found = {m.id.removeprefix("short-"): m for m in run.measures if m.group == "short"}
    tasks = [
        *(name for name in SHORT if name in found),
        *(name for name in found if name not in SHORT and name != "mean"),
    ]
    specs = [_Spec(Column(SHORT.get(name, name), falling=True), name, (found[name],)) for name in tasks]
    return [*specs, _average([found[name] for name in tasks], "short", note=f"of {len(tasks)}")] if tasks else []


def _choices(run: Run, _: str) -> list[_Spec]:
    measures = _family(run, "ruler-niah")
    note = f"8 tasks, mean of {len(measures)} lengths"
    specs = [_average(measures, "ruler-niah", "RULER needles", note)] if measures else []
    own = run.measure(f"needles-mean-{run.target_length}")
    loss = run.measure("loss-long")
    if own:
        specs.append(_Spec(Column("needle mean", f"at {run.target_length:,}", falling=True), "", (own,)))
    if loss:
        specs.append(_Spec(Column("perplexity", loss.title.removeprefix("loss ")), "", (loss,)))
    return specs


def _by_task(run: Run, _: str) -> list[_Spec]:
    specs = []
    for task in NEEDLES:
        measures = _family(run, f"ruler-{task}")
        if measures:
            name = task.removeprefix("niah_").replace("_", " ")
            column = Column(name, f"mean of {len(measures)} lengths", falling=True)
            specs.append(_Spec(column, task, tuple(measures), f"ruler-{task}-mean"))
    return specs


def _cell(run: Run, row: Row, spec: _Spec, figure: float | None) -> Cell | None:
    whole = run.measure(spec.mean) if spec.mean else None
    if whole is not None or len(spec.measures) == 1:
        return measure_cell(whole or spec.measures[0], row, figure)
    values = [m.values[row.name] for m in spec.measures if row.name in m.values]
    paper = "" if figure is None else f"{figure:,.2f}"
    if len(values) < len(spec.measures):
        missing = absent(row)
        return Cell(missing.value if missing else NOT_RUN, published=paper) if paper or missing else None
    nats = spec.measures[0].unit == "nats"
    mean = math.fsum(perplexity(v.value) if nats else v.value for v in values) / len(values)
    documents = [v.documents for v in values]
    # a curve reads the same documents at every length, samples are others
    n = max(documents) if nats else sum(documents)
    seeds = min(v.seeds or 1 for v in values)
    return Cell(plain(mean) if nats else f"{percent(mean)}%", "no interval", f"n = {seeds} × {n:,}", mean, paper)


def _table(
    run: Run, entries: list[Row], specs: list[_Spec], figures: PublishedTable | None, theirs: Published | None
) -> Table:
    def figure(name: str, spec: _Spec) -> float | None:
        return figures.figure(name, spec.key) if figures and figures.has(spec.key, spec.over) else None

    rows = [table_row(run, row, [_cell(run, row, spec, figure(row.name, spec)) for spec in specs]) for row in entries]
    here = {row.name for row in entries}
    for name in figures.rows if figures and theirs else ():
        if name not in here and theirs and not (name == "harpe-peak-valley-30k" and "harpe" in here):
            shown = [figure(name, spec) for spec in specs]
            cells = [None if f is None else Cell(NOT_RUN, published=f"{f:,.2f}") for f in shown]
            if any(cells):
                title = theirs.titles[name]
                ours = alike([title, *(row.title for row in entries)])
                title += " (paper)" if ours and 0 in ours[0] else ""
                rows.append(TableRow("", title, "in the paper only", tuple(cells)))
    return Table(tuple(spec.column for spec in specs), tuple(rows))
