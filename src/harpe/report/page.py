"""The page of a run directory; beside that of a comparison its tables as Markdown and CSV."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from markupsafe import Markup

from harpe.files import write_text
from harpe.ownership import COMMENT, refuse_foreign
from harpe.report.environment import environment
from harpe.report.figures.bases import SPREAD, number_line, waveforms
from harpe.report.figures.charts import KINDS, kind, over_seeds, position_chart, training_chart
from harpe.report.figures.forest import forest
from harpe.report.figures.heat_maps import heat_gradient, heat_maps
from harpe.report.figures.panels import difference_panels, position_panels
from harpe.report.figures.score_lengths import length_panels
from harpe.report.header import interval_note, lead, tiles
from harpe.report.read.lengths import LengthTask
from harpe.report.read.run import Row, Run, read_run
from harpe.report.read.summary import SEEDS_AND_DOCUMENTS
from harpe.report.tables.budget import budget_sentences, budget_table, failures, stage_table
from harpe.report.tables.differences import all_differences, compared, difference_table, paired_table
from harpe.report.tables.files import csv_table, markdown_tables
from harpe.report.tables.lengths import length_notes, length_table, tasks_of
from harpe.report.tables.paper import paper_tables
from harpe.report.tables.positions import difference_positions, perplexity_positions
from harpe.report.tables.results import main_table, other_needles
from harpe.report.tables.table import Table


def model_facts(run: Run) -> dict[str, Any]:
    """What the page says of the checkpoint."""
    m = run.model
    heads = f"{m.layers} layers, {m.query_heads} query heads, {m.key_value_heads} key/value heads of {m.head_dim}"
    shape = {"model": m.name, "type": m.model_type, "parameters": m.parameters, "shape": heads}
    lengths = {"trained_length": f"{run.original_length:,} tokens", "target_length": f"{run.target_length:,} tokens"}
    return shape | {"rotary_dimensions": m.rotary_dim} | lengths | {"trained_base": m.base}


def _only_of_a_run(run: Run) -> dict[str, Any]:
    """What only the page of a single run has: before and after, and the bases of its one extended model."""
    if run.comparison:
        return {"tiles": [], "waveforms": None, "pairs": None}
    drawn = {"waveforms": waveforms(run), "number_line": number_line(run), "window": run.target_length / SPREAD}
    return {"tiles": tiles(run), **drawn, "pairs": paired_table(run)}


def write_report(run: Path) -> Path:
    """Write `report/index.html` in the run directory: one page that needs no other file and no network. Beside the page
    of a comparison its tables as `tables.md` and `tables.csv`.

    Raises HarpeError when the directory holds no plan, a file in it is damaged, its scores are not of one measurement,
    the disk is full, or a file with the name of the page was not written by harpe.
    """
    folder = Path(run) / "report"
    refuse_foreign(*(folder / name for name in ("index.html", "tables.md", "tables.csv")))
    value = read_run(run)
    positions = value.summary.positions
    paper, theirs = paper_tables(value) if value.comparison else ([], None)
    page = render(
        run=value,
        slots={row.name: kind(row) for row in value.rows},
        kinds=KINDS,
        over_seeds=over_seeds(value),
        lead=lead(value),
        interval_note=interval_note(value),
        documents_only=value.summary.interval != SEEDS_AND_DOCUMENTS,
        main=main_table(value),
        needles=other_needles(value),
        differences=[(difference_table(value, m), forest(value, m)) for m in compared(value)],
        all_differences=all_differences(value),
        paper=paper,
        published=theirs,
        maps=heat_maps(value),
        gradient=heat_gradient(),
        lengths=[each_length(value, task) for task in tasks_of(value, chief=True)],
        single_lengths=[each_length(value, task) for task in tasks_of(value, chief=False)],
        length_scores=value.summary.lengths,
        training=training_chart(value),
        positions=position_chart(value),
        panels=position_panels(value),
        panels_table=perplexity_positions(value),
        paired=difference_panels(value),
        paired_table=difference_positions(positions, value.rows) if positions else None,
        budget=budget_table(value),
        budget_sentences=budget_sentences(value),
        stages=stage_table(value),
        failed=failures(value),
        model=model_facts(value),
        **_only_of_a_run(value),
    )
    if value.comparison:
        write_text(folder / "tables.md", COMMENT + markdown_tables(value, paper, theirs))
        write_text(folder / "tables.csv", csv_table(value))
    write_text(folder / "index.html", page)
    return folder / "index.html"


def each_length(run: Run, task: LengthTask) -> tuple[Table, list[str], list[tuple[Row, Markup | None]]]:
    """A task by length: its table, what that cannot say, and its pictures."""
    return length_table(run, task), length_notes(run, task), length_panels(run, task)


def render(**values: Any) -> str:
    """The page; everything in `values` that is no Markup is escaped.

    Its script stands in it, and its own policy lets no other script run: the policy holds its SHA-256.
    """
    script = (Path(__file__).parent / "templates" / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    template = environment().get_template("report.html.j2")
    return template.render(script=Markup(script), script_hash=Markup(digest), **values)
