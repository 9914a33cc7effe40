"""The page of a comparison, and its tables as Markdown and CSV."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from markupsafe import Markup

from harpe.files import write_text
from harpe.ownership import COMMENT
from harpe.report import comparison_figures as figures
from harpe.report import comparison_tables as tables
from harpe.report.comparison_paper import PaperTable, paper_tables
from harpe.report.comparison_read import INTERVALS, Comparison, read_comparison
from harpe.report.figures import heat_gradient
from harpe.report.position_figures import Drawn, difference_plot, position_table
from harpe.report.published import Published
from harpe.report.rendering import render
from harpe.report.tables import NOT_RUN, Table, facts, markdown

COLUMNS = (
    *("measure", "title", "group", "task", "length", "unit", "better", "method", "method_title", "control", "baseline", "status"),
    *("value", "low", "high", "seeds", "documents", "by_seed"),
    *("difference", "difference_low", "difference_high", "p", "p_holm", "verdict", "interval"),
)
"""Of tables.csv: one row a measure and method. Losses in nats a token, scores in per cent, differences to the baseline in the same unit."""


def model_facts(c: Comparison) -> dict[str, Any]:
    m = c.model
    heads = f"{m.layers} layers, {m.query_heads} query heads, {m.key_value_heads} key/value heads of {m.head_dim}"
    shape = {"model": m.name, "type": m.model_type, "parameters": m.parameters, "shape": heads}
    lengths = {"trained_length": f"{c.original_length:,} tokens", "target_length": f"{c.target_length:,} tokens"}
    return shape | {"rotary_dimensions": m.rotary_dim} | lengths | {"trained_base": m.base}


def interval_note(c: Comparison) -> str:
    """What the intervals are and what they leave out."""
    if c.summary is None:
        return ""
    count = len(c.seeds)
    words = "one seed" if count == 1 else f"{count} seeds"
    if c.summary.interval == INTERVALS[0]:
        return (
            f"Intervals cover seeds and documents: each of {c.summary.resamples:,} resamples draws from the {words}, and draws documents, "
            "the same for all seeds and for both methods of a difference. Methods without training have no seeds to draw from."
        )
    return (
        f"Intervals cover documents only ({words}, {c.summary.resamples:,} resamples): how much a result would change with another seed of "
        "training is not in them, and a difference that is called real here may not come back in another training."
    )


def lead(c: Comparison) -> str:
    """One paragraph on what was compared."""
    m, trained = c.model, [entry for entry in c.methods if entry.trained]
    seeds = ", ".join(map(str, c.seeds))
    words = (
        f"{m.name} ({m.parameters:,} parameters, {m.key_value_heads} key/value heads) was trained on contexts of {c.original_length:,} "
        f"tokens. {len(c.methods)} ways to read {c.target_length:,} tokens are compared from this one checkpoint, "
        f"{len(trained)} of them with training "
    )
    tokens = c.training.get("tokens")
    words += f"on {tokens:,} tokens each" if isinstance(tokens, int) else "on one budget"
    return words + f" (seed{'s' if len(c.seeds) > 1 else ''} {seeds}). Differences are taken to the baseline, {c.baseline.title}."


def drawn(c: Comparison) -> list[Drawn]:
    """The methods as pictures of differences show them."""
    return [Drawn(entry.name, entry.title, figures.kind(entry)) for entry in c.methods]


def paired_panels(c: Comparison) -> list[tuple[Drawn, Markup]]:
    """For each method its loss by position minus the baseline's, with the paired interval; empty where nothing was compared."""
    positions = c.summary.positions if c.summary else None
    if positions is None:
        return []
    found = [
        (m, difference_plot(positions, m, c.baseline.title, c.original_length, (270, 176), "panel"))
        for m in drawn(c)
        if m.name != c.baseline.name
    ]
    return [(m, panel) for m, panel in found if panel is not None]


def markdown_tables(c: Comparison, paper: list[PaperTable], theirs: Published | None) -> str:
    """All tables of values in one Markdown text."""

    def line(words: str) -> str:
        return " ".join(words.replace("<", "&lt;").split())

    parts = [f"# {line(c.title)}\n", f"{line(lead(c))}\n", f"{interval_note(c)}\n" if c.summary else f"Results: {NOT_RUN}.\n"]
    parts += [f"* {line(sentence)}\n" for sentence in (c.summary.reading if c.summary else ())]

    def section(title: str, table: Table | None, note: str = "") -> None:
        parts.append(f"\n## {line(title)}\n")
        if note:
            parts.append(f"{line(note)}\n")
        parts.append(markdown(table) if table is not None and table.rows else f"{NOT_RUN} in this comparison\n")

    main = tables.main_table(c)
    section("Results", main if main.columns else None, "Value (95% interval; n = seeds × documents or samples).")
    for table in tables.other_needles(c):
        section(table.title, table)
    for measure in tables.chief_measures(c):
        table = tables.difference_table(c, measure)
        section(f"Differences: {table.title}", table, table.caption)
    for entry in paper:
        cited = f"Paper: {theirs.citation}; {theirs.setting}. " if theirs and entry.table else ""
        section(f"Table {entry.number} of the paper: {entry.title}", entry.table, cited + entry.note)
    section("Budget", tables.budget_table(c), " ".join(tables.budget_sentences(c)))
    failed = tables.failures(c)
    if failed.rows:
        section("Failed", failed)
    return "\n".join(parts)


def _text(words: str) -> str:
    """With an apostrophe before what a spreadsheet would compute (https://owasp.org/www-community/attacks/CSV_Injection)."""
    return f"'{words}" if words.lstrip().startswith(("=", "+", "-", "@")) or words[:1].isspace() else words


def csv_table(c: Comparison) -> str:
    """All values and differences, one row a measure and method, in full precision; empty where there is nothing."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for m in c.measures:
        for entry in c.methods:
            value, d = m.values.get(entry.name), m.differences.get(entry.name)
            status = "measured" if value else tables.FAILED if entry.failures else NOT_RUN
            row: list[Any] = [m.id, m.title, m.group, m.task, m.length, m.unit, m.better, entry.name, entry.title]
            row = [_text(cell) if isinstance(cell, str) else cell for cell in (*row, entry.control, c.baseline.name, status)]
            row += [value.value, value.low, value.high, value.seeds, value.documents] if value else [None] * 5
            row += [" ".join(map(repr, value.by_seed)) if value else None]
            row += [d.value, d.low, d.high, d.p, d.holm, tables.in_words(m, entry.name)] if d else [None] * 6
            writer.writerow([*row, c.summary.interval if c.summary else None])
    return stream.getvalue()


def write_comparison(run: Path) -> Path:
    """Write `report/index.html`, `tables.md` and `tables.csv` in the run directory of a comparison; returns the page.

    Raises
    ------
    HarpeError
        When the directory holds no plan, a file in it is damaged, or the disk is full.
    """
    c = read_comparison(run)
    paper, theirs = paper_tables(c)
    page = render(
        "comparison.html.j2",
        script="page.js",
        run=c,
        slots=figures.slots(c),
        kinds=figures.KINDS,
        lead=lead(c),
        interval_note=interval_note(c),
        documents_only=c.summary is not None and c.summary.interval != INTERVALS[0],
        main=tables.main_table(c),
        needles=tables.other_needles(c),
        differences=[(tables.difference_table(c, m), figures.forest(c, m)) for m in tables.chief_measures(c)],
        all_differences=tables.all_differences(c),
        paper=paper,
        published=theirs,
        maps=figures.heat_maps(c),
        gradient=heat_gradient(),
        training=figures.training_chart(c),
        positions=figures.position_chart(c),
        panels=figures.position_panels(c),
        paired=paired_panels(c),
        paired_table=position_table(c.summary.positions, drawn(c)) if c.summary and c.summary.positions else None,
        budget=tables.budget_table(c),
        budget_sentences=tables.budget_sentences(c),
        stages=tables.stage_table(c),
        failed=tables.failures(c),
        model=model_facts(c),
        options=[(entry, facts(entry.options)) for entry in c.methods],
    )
    folder = Path(run) / "report"
    write_text(folder / "tables.md", COMMENT + markdown_tables(c, paper, theirs))
    write_text(folder / "tables.csv", csv_table(c))
    write_text(folder / "index.html", page)
    return folder / "index.html"
