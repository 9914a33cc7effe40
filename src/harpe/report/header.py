"""What stands at the top of a page: what was done, in a paragraph, and the key numbers before and after."""

from __future__ import annotations

from dataclasses import dataclass

from harpe.report.read.run import Row, Run
from harpe.report.read.summary import SEEDS_AND_DOCUMENTS
from harpe.report.tables.results import main_table
from harpe.report.tables.table import NOT_RUN


def lead(run: Run) -> str:
    """One paragraph on what was compared, or extended."""
    m = run.model
    begin = (
        f"{m.name} ({m.parameters:,} parameters, {m.key_value_heads} key/value heads) was trained on contexts of "
        f"{run.original_length:,} tokens."
    )
    return f"{begin} {_compared(run) if run.comparison else _extended(run)}".rstrip()


def _compared(run: Run) -> str:
    seeds, trained = run.seeds or (), sum(row.trained for row in run.rows)
    tokens = run.training.get("tokens")
    budget = f"on {tokens:,} tokens each" if isinstance(tokens, int) else "on one budget"
    return (
        f"{len(run.rows)} ways to read {run.target_length:,} tokens are compared from this one checkpoint, {trained} "
        f"of them with training {budget} (seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}). "
        f"Differences are taken to the baseline, {run.baseline.title}."
    )


def _extended(run: Run) -> str:
    words = ""
    if row := run.after:
        tokens, words = run.training.get("tokens"), f"It was extended to {run.target_length:,} tokens by "
        if row.distinct_bases > 1:
            words += (
                f"giving each key/value head a RoPE base of its own, between {min(row.bases):,.0f} and "
                f"{max(row.bases):,.0f}"
            )
        else:
            words += row.title
        words += f", and training on {tokens:,} tokens at the full length. " if isinstance(tokens, int) else ". "
    perplexity, needles = tiles(run)[:2]
    if NOT_RUN not in (perplexity.before, perplexity.after, needles.before, needles.after):
        where = perplexity.title.removeprefix("Perplexity, ")
        words += (
            f"On held-out documents ({where}) the perplexity went from {perplexity.before} to {perplexity.after}; of "
            f"the needles hidden in {run.target_length:,} tokens, {needles.before} were found before and "
            f"{needles.after} after."
        )
    return words


@dataclass(frozen=True)
class Tile:
    """A key number before and after the extension."""

    title: str
    before: str
    after: str
    note: str


def tiles(run: Run) -> list[Tile]:
    """Long perplexity, needles at the target length, short perplexity: before, after, and the other trained rows."""
    table = main_table(run)
    by_name = {row.name: row.cells for row in table.rows}
    notes = [column.note for column in table.columns]
    mean = [column.head for column in table.columns].index("needle mean")

    def tile(title: str, column: int) -> Tile:
        def value(row: Row | None) -> str:
            cell = by_name[row.name][column] if row else None
            return cell.value if cell else NOT_RUN

        others = [row for row in run.rows if row.trained and row is not run.after]
        note = ", ".join(f"{row.title}: {value(row)}" for row in others)
        return Tile(title, value(run.before), value(run.after), note)

    titles = (f"Perplexity, {notes[1]}", f"Needles found at {run.target_length:,} tokens", f"Perplexity, {notes[0]}")
    return [tile(title, column) for title, column in zip(titles, (1, mean, 0), strict=True)]


def interval_note(run: Run) -> str:
    """What the intervals are and what they leave out."""
    summary = run.summary
    if summary.interval is None:
        return ""
    count = len(run.seeds or ())
    words = "one seed" if count == 1 else f"{count} seeds"
    if summary.interval == SEEDS_AND_DOCUMENTS:
        student = summary.seeds_spread is not None
        seeds = f"what other seeds than these {count} would add has Student's distribution" if student else ""
        drawn = "draws documents" if student else f"draws from the {words}, and draws documents"
        few = "" if student else " Three to five seeds that are drawn so make intervals too narrow where seeds differ."
        return (
            f"Intervals cover seeds and documents: each of {summary.resamples:,} resamples {drawn}, the same for all "
            f"seeds and for both methods of a difference{'; ' * student}{seeds}. Methods without training have no "
            "seeds, and the interval of a difference of methods with fewer than three seeds in common is over "
            f"documents alone.{few}"
        )
    return (
        f"Intervals cover documents only ({words}, {summary.resamples:,} resamples): how much a result would change "
        "with another seed of training is not in them, and a difference that is called real here may not come back in "
        "another training."
    )
