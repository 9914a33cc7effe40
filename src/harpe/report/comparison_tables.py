"""The tables of a comparison: the main one, differences to the baseline, what was spent.

Losses are kept in nats a token and shown as perplexities (their exponential), the ends of their intervals too; differences stay in nats.
"""

from __future__ import annotations

import math

from harpe.report.comparison_read import Comparison, Contrast, Entry, Measure, Record, Value
from harpe.report.tables import NOT_RUN, TASKS, Cell, Column, Row, Table, duration, percent, plain, signed

FAILED = "failed"


def row_of(c: Comparison, entry: Entry, cells: list[Cell | None]) -> Row:
    """A method's line: what it is to the comparison stands under its title."""
    notes = [
        words
        for words, holds in (
            ("baseline", entry is c.baseline),
            ("control", entry.control),
            ("not trained", not entry.trained),
        )
        if holds
    ]
    return Row(entry.name, entry.title, ", ".join(notes), tuple(cells), entry is c.baseline)


def absent(entry: Entry) -> Cell | None:
    """What stands where a method has no value."""
    return Cell(FAILED) if entry.failures else None


def perplexity(nll: float) -> float:
    """exp of a loss in nats a token; infinite where that is no number any more."""
    return math.exp(nll) if nll < 700 else math.inf


def value_cell(value: Value, unit: str, published: float | None = None, verdict: str = "") -> Cell:
    """A value with its interval, and n as seeds x documents."""
    n = f"n = {value.seeds} × {value.documents:,}"
    paper = "" if published is None else f"{published:,.2f}"
    if unit == "nats":
        shown, low, high = (plain(perplexity(v)) for v in (value.value, value.low, value.high))
        return Cell(shown, f"{low}–{high}", n, value.value, paper, verdict)
    shown, low, high = (percent(v) for v in (value.value, value.low, value.high))
    return Cell(f"{shown}%", f"{low}–{high}%", n, value.value, paper, verdict)


def verdict(measure: Measure, name: str) -> str:
    """`better` or `worse` than the baseline; "" where no difference is shown."""
    found = measure.differences.get(name)
    if found is None or not found.real:
        return ""
    return "better" if (found.value > 0) == (measure.better == "higher") else "worse"


def measure_cell(measure: Measure | None, entry: Entry, published: float | None = None) -> Cell | None:
    """A method's cell of a measure."""
    value = measure.values.get(entry.name) if measure else None
    if measure is None or value is None:
        missing = absent(entry)
        return missing if published is None else Cell(missing.value if missing else NOT_RUN, published=f"{published:,.2f}")
    return value_cell(value, measure.unit, published, verdict(measure, entry.name))


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
        "short-mean": ("short benchmarks", "mean"),
    }
    stem = measure.id.removesuffix(f"-{measure.length}")
    if stem in heads:
        return Column(*heads[stem], falling=falling)
    if measure.group == "needles" and measure.task:
        return Column(TASKS.get(measure.task, measure.task), f"needles {at}".rstrip(), falling=falling)
    return Column(measure.title, falling=falling)


def _needles(c: Comparison, length: int) -> list[Measure]:
    """The needle tasks at a length and, last, their mean."""
    mean = f"needles-mean-{length}"
    found = [m for m in c.measures if m.group == "needles" and m.length == length and m.id != mean]
    return found + [m for m in c.measures if m.id == mean]


def _named(c: Comparison, names: list[str]) -> list[Measure]:
    return [measure for name in names if (measure := c.measure(name)) is not None]


def _table(c: Comparison, measures: list[Measure], title: str = "", caption: str = "") -> Table:
    rows = [row_of(c, entry, [measure_cell(measure, entry) for measure in measures]) for entry in c.methods]
    return Table(tuple(column_of(measure) for measure in measures), tuple(rows), title, caption)


def main_table(c: Comparison) -> Table:
    """Short and long perplexity, the needle tasks at the target length, and the means of whatever else was measured."""
    target = c.target_length
    means = ["grid-mean", f"ruler-niah-{target}", f"ruler-all-{target}", "short-mean"]
    return _table(c, _named(c, ["loss-short", "loss-long"]) + _needles(c, target) + _named(c, means))


def other_needles(c: Comparison) -> list[Table]:
    """The needle tasks at every other length that they were asked at."""
    lengths = sorted({m.length for m in c.measures if m.group == "needles" and m.length} - {c.target_length})
    return [_table(c, _needles(c, length), f"Needles at {length:,} tokens") for length in lengths]


def _chief(c: Comparison) -> list[Measure]:
    target = c.target_length
    return _named(c, ["loss-long", "loss-short", f"needles-mean-{target}", f"ruler-niah-{target}", f"ruler-all-{target}", "short-mean"])


def chief_table(c: Comparison) -> Table:
    """Perplexities and the mean of each kind of scores."""
    return _table(c, _chief(c))


def chief_measures(c: Comparison) -> list[Measure]:
    """What methods are compared by: each gets its own table and picture of differences."""
    return [measure for measure in _chief(c) if measure.differences]


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


DIFFERENCE = (
    Column("95% interval"),
    Column("p", "uncorrected"),
    Column("p", "Holm-corrected"),
    Column("verdict", words=True),
)


def _contrast_cells(c: Comparison, measure: Measure, entry: Entry, found: Contrast | None) -> list[Cell | None]:
    if found is None:
        return [absent(entry), *(Cell("–") for _ in DIFFERENCE)] if entry.failures else [None] * (1 + len(DIFFERENCE))
    value, interval = signed_in(measure, found)
    ours, theirs = measure.values.get(entry.name), measure.values.get(c.baseline.name)
    seeds = [str(v.seeds) for v in (ours, theirs) if v is not None]
    n = f"n = {' and '.join(dict.fromkeys(seeds))} × {measure.documents:,}" if seeds else f"n = {measure.documents:,}"
    words = in_words(measure, entry.name)
    order = 0.0 if words == "not shown" else found.value
    return [
        Cell(value, n=n, order=found.value),
        Cell(interval, order=found.low),
        _chance(found.p),
        _chance(found.holm),
        Cell(words, order=order),
    ]


def difference_table(c: Comparison, measure: Measure) -> Table:
    """Every method minus the baseline in one measure."""
    others = [entry for entry in c.methods if entry is not c.baseline]
    rows = [row_of(c, entry, _contrast_cells(c, measure, entry, measure.differences.get(entry.name))) for entry in others]
    column = column_of(measure)
    joined = f"{column.head}{' ' if column.note.startswith('at ') else ', '}{column.note}" if column.note else column.head
    words = measure.title if measure.unit == "nats" else joined
    title = words[:1].upper() + words[1:]
    caption = f"{unit_words(measure)}, minus {c.baseline.title}; {measure.better} is better"
    return Table((Column("difference", unit_words(measure)), *DIFFERENCE), tuple(rows), title, caption)


def all_differences(c: Comparison) -> Table:
    """The differences in all measures that have no table of their own, but for those of a corpus at dozens of lengths."""
    left_out = {measure.id for measure in chief_measures(c)} | {m.id for m in c.measures if m.id.startswith("curve-") and m.length}
    rows: list[Row] = []
    for measure in c.measures:
        for entry in c.methods:
            found = measure.differences.get(entry.name)
            if measure.id not in left_out and found is not None:
                named = Cell(measure.title, "", unit_words(measure), order=float(len(rows)))
                rows.append(row_of(c, entry, [named, *_contrast_cells(c, measure, entry, found)]))
    return Table((Column("measure", words=True), Column("difference"), *DIFFERENCE), tuple(rows))


def failures(c: Comparison) -> Table:
    """Methods that did not come to their end, and why."""
    rows: list[Row] = []
    for entry in c.methods:
        rows += [row_of(c, entry, [Cell(str(run.seed), order=run.seed), Cell(str(run.failed))]) for run in entry.failures]
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


def _finished(entry: Entry) -> list[Record]:
    """Records of the runs that came to their end."""
    return [run.record for run in entry.runs if run.record is not None and run.failed is None]


def budget_table(c: Comparison) -> Table:
    """Tokens, steps and time of every method."""
    rows: list[Row] = []
    none = Cell("none", order=0.0)
    for entry in c.methods:
        records = _finished(entry)
        cells: list[Cell | None] = [none, none, none]
        if entry.trained:
            tokens, steps = [r.tokens for r in records], [sum(s.steps for s in r.stages) for r in records]
            cells = [_counts(tokens), _counts(steps), _mean_time([r.train_seconds for r in records])]
        cells.append(_mean_time([r.evaluate_seconds for r in records]))
        done = Cell(f"{len(records)} of {len(entry.runs)}", order=float(len(records)))
        rows.append(row_of(c, entry, [done, *(cell or absent(entry) for cell in cells)]))
    columns = (
        Column("runs finished", "of the seeds"),
        Column("tokens", "a seed"),
        Column("steps", "a seed"),
        Column("training", "time a seed, mean"),
        Column("evaluation", "time a seed, mean"),
    )
    return Table(columns, tuple(rows))


def stage_table(c: Comparison) -> Table:
    """Every stage as planned and as it was."""
    rows = []
    for entry in c.methods:
        for number, stage in enumerate(entry.stages, 1):
            done = [run.record.stages[number - 1] for run in entry.runs if run.record and len(run.record.stages) >= number]
            hashes = list(dict.fromkeys(s.data_hash[:12] for s in done if s.data_hash))
            cells = [
                Cell(f"{number} of {len(entry.stages)}", order=float(number)),
                Cell(f"{stage.length:,}", order=float(stage.length)),
                Cell(stage.encoding) if stage.encoding else None,
                Cell(f"{stage.tokens:,}", order=float(stage.tokens)),
                _counts([s.tokens for s in done]),
                _counts([s.steps for s in done]),
                _mean_time([s.seconds for s in done]),
                Cell(" ".join(hashes)) if hashes else None,
            ]
            rows.append(row_of(c, entry, cells))
    columns = (
        *(Column("stage"), Column("length", "tokens"), Column("encoding", words=True), Column("planned", "tokens")),
        *(Column("spent", "tokens a seed"), Column("steps", "a seed"), Column("time", "a seed, mean")),
        Column("data", "first digits of the SHA-256, by seed", words=True),
    )
    return Table(columns, tuple(rows))


def budget_sentences(c: Comparison) -> list[str]:
    """Whether the methods spent the same tokens, and read the same data: from the records, not from the plan."""
    records = [(run.seed, run.record) for entry in c.methods if entry.trained for run in entry.runs if run.record and run.failed is None]
    totals = [record.tokens for _, record in records]
    if not totals:
        return []
    low, high, batch = min(totals), max(totals), c.training.get("batch_tokens")
    sentences = [f"Tokens trained on in each of the {len(totals)} finished runs: {low:,}" + (f" to {high:,}." if high > low else ".")]
    if high == low:
        sentences[0] += " The budgets are equal."
    elif isinstance(batch, int):
        equal = high - low <= batch
        sentences[0] += f" The largest difference is {high - low:,}, {'not more' if equal else 'MORE'} than one batch of {batch:,}."
    found: dict[tuple[int, int], set[str]] = {}
    for seed, record in records:
        for stage in record.stages:
            if stage.data_hash:
                found.setdefault((seed, stage.length), set()).add(stage.data_hash)
    unequal = [f"seed {seed} at {length:,} tokens" for (seed, length), hashes in sorted(found.items()) if len(hashes) > 1]
    if unequal:
        sentences.append(f"The training data DIFFER between methods: {', '.join(unequal)}. Differences between those methods mix with it.")
    elif found:
        sentences.append("With the same seed and length all methods read the same documents in the same order: their data's hashes agree.")
    return sentences
