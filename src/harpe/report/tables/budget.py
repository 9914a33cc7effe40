"""Tables of what was spent on every row, and which rows failed."""

from __future__ import annotations

from harpe.report.read.run import Row, Run
from harpe.report.read.scores import Record
from harpe.report.tables.results import absent, table_row
from harpe.report.tables.table import Cell, Column, Table, TableRow
from harpe.report.wording import duration


def failures(run: Run) -> Table:
    """Methods that did not come to their end, and why."""
    rows: list[TableRow] = []
    for row in run.rows:
        rows += [
            table_row(run, row, [Cell(str(each.seed), order=each.seed), Cell(str(each.failed))])
            for each in row.failures
        ]
    return Table((Column("seed"), Column("reason", words=True)), tuple(rows))


def _mean_time(values: list[float | None]) -> Cell | None:
    known = [value for value in values if value is not None]
    return Cell(duration(sum(known) / len(known)), order=sum(known) / len(known)) if known else None


def _counts(values: list[int]) -> Cell | None:
    """A count, or the range of counts that differ between seeds."""
    if not values:
        return None
    low, high = min(values), max(values)
    return Cell(f"{low:,}" if low == high else f"{low:,}–{high:,}", order=float(high))


def _finished(row: Row) -> list[Record]:
    """Records of the runs that came to their end."""
    return [each.record for each in row.runs if each.record is not None and each.failed is None]


def budget_table(run: Run) -> Table:
    """Tokens, steps and time of every method."""
    rows: list[TableRow] = []
    none = Cell("none", order=0.0)
    for row in run.rows:
        records = _finished(row)
        cells: list[Cell | None] = [none, none, none]
        if row.trained:
            tokens, steps = [r.tokens for r in records], [sum(s.steps for s in r.stages) for r in records]
            cells = [_counts(tokens), _counts(steps), _mean_time([r.train_seconds for r in records])]
        cells.append(_mean_time([r.evaluate_seconds for r in records]))
        done = Cell(f"{len(records)} of {len(row.runs)}", order=float(len(records)))
        rows.append(table_row(run, row, [done, *(cell or absent(row) for cell in cells)]))
    columns = (
        Column("runs finished", "of the seeds"),
        Column("tokens", "a seed"),
        Column("steps", "a seed"),
        Column("training", "time a seed, mean"),
        Column("evaluation", "time a seed, mean"),
    )
    return Table(columns, tuple(rows))


def stage_table(run: Run) -> Table:
    """Every stage as planned and as it was."""
    rows = []
    for row in run.rows:
        for number, stage in enumerate(row.stages, 1):
            records = [each.record for each in row.runs if each.record is not None]
            done = [record.stages[number - 1] for record in records if len(record.stages) >= number]
            hashes = list(dict.fromkeys(s.data_hash[:12] for s in done if s.data_hash))
            cells = [
                Cell(f"{number} of {len(row.stages)}", order=float(number)),
                Cell(f"{stage.length:,}", order=float(stage.length)),
                Cell(stage.encoding) if stage.encoding else None,
                Cell(f"{stage.tokens:,}", order=float(stage.tokens)),
                _counts([s.tokens for s in done]),
                _counts([s.steps for s in done]),
                _mean_time([s.seconds for s in done]),
                Cell(" ".join(hashes)) if hashes else None,
            ]
            rows.append(table_row(run, row, cells))
    columns = (
        *(Column("stage"), Column("length", "tokens"), Column("encoding", words=True), Column("planned", "tokens")),
        *(Column("spent", "tokens a seed"), Column("steps", "a seed"), Column("time", "a seed, mean")),
        Column("data", "first digits of the SHA-256, by seed", words=True),
    )
    return Table(columns, tuple(rows))


def budget_sentences(run: Run) -> list[str]:
    """Whether the methods spent the same tokens, and read the same data: from the records, not from the plan."""
    records = [
        (each.seed, each.record)
        for row in run.rows
        if row.trained
        for each in row.runs
        if each.record is not None and each.failed is None
    ]
    totals = [record.tokens for _, record in records]
    if not totals:
        return []
    low, high, batch = min(totals), max(totals), run.training.get("batch_tokens")
    spent = f"Tokens trained on in each of the {len(totals)} finished runs: {low:,}"
    spent += f" to {high:,}." if high > low else ". The budgets are equal."
    if high > low and isinstance(batch, int):
        size = "not more" if high - low <= batch else "MORE"
        spent += f" The largest difference is {high - low:,}, {size} than one batch of {batch:,}."
    sentences = [spent]
    found: dict[tuple[int, int], set[str]] = {}
    for seed, record in records:
        for stage in record.stages:
            if stage.data_hash:
                found.setdefault((seed, stage.length), set()).add(stage.data_hash)
    unequal = [f"seed {seed} at {length:,} tokens" for (seed, length), data in sorted(found.items()) if len(data) > 1]
    if unequal:
        sentences.append(
            f"The training data DIFFER between methods: {', '.join(unequal)}. Differences between those methods mix "
            "with it."
        )
    elif found:
        sentences.append(
            "With the same seed and length all methods read the same documents in the same order: their data's hashes "
            "agree."
        )
    return sentences
