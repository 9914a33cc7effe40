"""The HTML page and the Markdown table of a run; also the cells that the terminal table shows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harpe.files import write_text
from harpe.ownership import refuse_foreign
from harpe.report import figures
from harpe.report.comparison_page import write_comparison
from harpe.report.comparison_read import is_comparison
from harpe.report.position_figures import Drawn, difference_plot, position_table
from harpe.report.read import Estimate, Method, Run, read_run
from harpe.report.rendering import render
from harpe.report.tables import NOT_RUN, TASKS, Cell, Column, Row, Table, markdown, percent, plain

MEAN_OF = ("single", "multi_key", "multi_query")


def mean_estimate(parts: list[Estimate]) -> Estimate:
    """Mean of independent scores; its interval combines theirs by MOVER (Zou and Donner 2008, Stat. Med. 27:1693).

    Each end lies the root of the summed squares of the parts' distances to that end away, divided by their number.
    """
    k = len(parts)
    value = sum(p.value for p in parts) / k
    below = math.sqrt(sum((p.value - p.low) ** 2 for p in parts)) / k
    above = math.sqrt(sum((p.high - p.value) ** 2 for p in parts)) / k
    return Estimate(value, value - below, value + above, sum(p.n for p in parts))


def needle_mean(method: Method, length: int) -> Estimate | None:
    """Mean of single, multi-key and multi-query at `length`; None unless all three were run."""
    parts = [(method.needles or {}).get((task, length)) for task in MEAN_OF]
    found = [part for part in parts if part is not None]
    return mean_estimate(found) if len(found) == len(MEAN_OF) else None


def perplexity_cell(e: Estimate | None) -> Cell | None:
    return None if e is None else Cell(plain(e.value), f"{plain(e.low)}–{plain(e.high)}", f"n = {e.n:,}")


def score_cell(e: Estimate | None) -> Cell | None:
    return None if e is None else Cell(f"{percent(100 * e.value)}%", f"{percent(100 * e.low)}–{percent(100 * e.high)}%", f"n = {e.n:,}")


def needle_columns(run: Run, length: int) -> tuple[list[Column], list[str]]:
    """The four known tasks, and any other that some method was tested on at `length`."""
    found = [task for m in run.methods for task, at in (m.needles or {}) if at == length]
    tasks = list(dict.fromkeys([*TASKS, *found]))
    heads = [Column(TASKS.get(task, task), f"needles at {length:,}") for task in tasks]
    return [*heads, Column("needle mean", "single, multi-key, multi-query")], tasks


def needle_cells(method: Method, tasks: list[str], length: int) -> list[Cell | None]:
    cells = [score_cell((method.needles or {}).get((task, length))) for task in tasks]
    return [*cells, score_cell(needle_mean(method, length))]


def _row(method: Method, cells: list[Cell | None]) -> Row:
    return Row(method.name, method.title, "trained" if method.trained else "not trained", tuple(cells))


def main_cells(run: Run) -> Table:
    """Short and long perplexity and the needle tasks at the target length."""
    measured = next((m.perplexity for m in run.methods if m.perplexity), None)
    short = f"windows of {measured.short_length if measured else run.original_length:,} tokens"
    long = f"tokens {measured.long_start:,} to {measured.long_end:,}" if measured else "long positions"
    columns, tasks = needle_columns(run, run.target_length)
    rows = []
    for m in run.methods:
        perplexity = [perplexity_cell(e) for e in ((m.perplexity.short, m.perplexity.long) if m.perplexity else (None, None))]
        rows.append(_row(m, [*perplexity, *needle_cells(m, tasks, run.target_length)]))
    return Table((Column("perplexity", short), Column("perplexity", long), *columns), tuple(rows))


def short_cells(run: Run) -> Table:
    """The needle tasks at the original length."""
    columns, tasks = needle_columns(run, run.original_length)
    return Table(tuple(columns), tuple(_row(m, needle_cells(m, tasks, run.original_length)) for m in run.methods))


def markdown_table(run: Path) -> str:
    """The main table of a run directory in GitHub's Markdown; every cell: value (95 % interval; n)."""
    return markdown(main_cells(read_run(run)))


@dataclass(frozen=True)
class Tile:
    """A key number before and after the extension."""

    title: str
    before: str
    after: str
    note: str


def tiles(run: Run) -> list[Tile]:
    """Long perplexity, needles at the target length, short perplexity: before, after, and the control."""
    table = main_cells(run)
    by_name = {row.name: row.cells for row in table.rows}

    def tile(title: str, column: int) -> Tile:
        def value(method: Method | None) -> str:
            cell = by_name[method.name][column] if method else None
            return cell.value if cell else NOT_RUN

        note = f"{run.control.title}: {value(run.control)}" if run.control else ""
        return Tile(title, value(run.before), value(run.harpe), note)

    titles = ((1, "Perplexity, " + table.columns[1].note), (-1, f"Needles found at {run.target_length:,} tokens"))
    return [tile(words, at) for at, words in titles] + [tile("Perplexity, " + table.columns[0].note, 0)]


def model_facts(run: Run) -> dict[str, Any]:
    m = run.model
    heads = f"{m.layers} layers, {m.query_heads} query heads, {m.key_value_heads} key/value heads of {m.head_dim}"
    shape = {"model": m.name, "type": m.model_type, "parameters": m.parameters, "shape": heads}
    lengths = {"trained_length": f"{run.original_length:,} tokens", "target_length": f"{run.target_length:,} tokens"}
    return shape | {"rotary_dimensions": m.rotary_dim} | lengths | {"trained_base": m.base}


def write_report(run: Path) -> Path:
    """Write `report/index.html` in the run directory: one page that needs no other file and no network. Beside the page of a comparison
    its tables as `tables.md` and `tables.csv`.

    Raises
    ------
    HarpeError
        When the directory holds no plan, a file in it is damaged, its scores are not of one measurement, the disk is full, or a
        file with the name of the page was not written by harpe.
    """
    refuse_foreign(*(Path(run) / "report" / name for name in ("index.html", "tables.md", "tables.csv")))
    if is_comparison(run):
        return write_comparison(run)
    value = read_run(run)
    control, slots = value.control, figures.slots(value)
    reference = next((m for m in value.methods if value.positions and m.name == value.positions.reference), None)
    others = [Drawn(m.name, m.title, slots[m.name]) for m in value.methods if m is not reference]
    compared = value.positions if reference else None
    pictures = []
    if compared and reference:
        drawn = [(m, difference_plot(compared, m, reference.title, value.original_length)) for m in others]
        pictures = [(m, picture) for m, picture in drawn if picture is not None]
    page = render(
        "report.html.j2",
        run=value,
        slots=slots,
        shapes=figures.SHAPES,
        tiles=tiles(value),
        main=main_cells(value),
        short=short_cells(value),
        model=model_facts(value),
        control_base=control.bases[0] if control else None,
        window=value.target_length / figures.SPREAD,
        waveforms=figures.waveforms(value),
        number_line=figures.number_line(value),
        training=figures.training_curves(value),
        positions=figures.perplexity_by_position(value),
        reference=reference,
        differences=pictures,
        differences_table=position_table(compared, others) if compared else None,
        heat_maps=[(m, figures.heat_map(m.grid, m.title) if m.grid else None) for m in value.methods],
        gradient=figures.heat_gradient(),
    )
    path = Path(run) / "report" / "index.html"
    write_text(path, page)
    return path
