"""The HTML page and the Markdown table of a run; also the cells that the terminal table shows."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from harpe.files import write_text
from harpe.report import figures
from harpe.report.read import Difference, Estimate, Method, Run, read_run

TASKS = {"single": "single", "multi_key": "multi-key", "multi_query": "multi-query", "multi_value": "multi-value"}
MEAN_OF = ("single", "multi_key", "multi_query")
NOT_RUN = "not run"


@dataclass(frozen=True)
class Column:
    """A column of a table of scores."""

    head: str
    note: str


@dataclass(frozen=True)
class Cell:
    """A value with its 95 % interval and number of samples, as text."""

    value: str
    interval: str
    n: str


@dataclass(frozen=True)
class Row:
    """A method and its cells; None: not run."""

    method: Method
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True)
class Table:
    """A table of scores, methods by measures."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


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


def plain(value: float) -> str:
    """A perplexity: two decimals, fewer where it is large."""
    if not math.isfinite(value):
        return "not finite"
    return f"{value:,.{2 if abs(value) < 1000 else 0}f}"


def perplexity_cell(e: Estimate | None) -> Cell | None:
    return None if e is None else Cell(plain(e.value), f"{plain(e.low)}–{plain(e.high)}", f"n = {e.n:,}")


def percent(share: float) -> str:
    return f"{max(0.0, 100 * share):.1f}"  # an interval can end a rounding error below nothing


def score_cell(e: Estimate | None) -> Cell | None:
    return None if e is None else Cell(f"{percent(e.value)}%", f"{percent(e.low)}–{percent(e.high)}%", f"n = {e.n:,}")


def needle_columns(run: Run, length: int) -> tuple[list[Column], list[str]]:
    """The four known tasks, and any other that some method was tested on at `length`."""
    found = [task for m in run.methods for task, at in (m.needles or {}) if at == length]
    tasks = list(dict.fromkeys([*TASKS, *found]))
    heads = [Column(TASKS.get(task, task), f"needles at {length:,}") for task in tasks]
    return [*heads, Column("needle mean", "single, multi-key, multi-query")], tasks


def needle_cells(method: Method, tasks: list[str], length: int) -> list[Cell | None]:
    cells = [score_cell((method.needles or {}).get((task, length))) for task in tasks]
    return [*cells, score_cell(needle_mean(method, length))]


def main_cells(run: Run) -> Table:
    """Short and long perplexity and the needle tasks at the target length."""
    measured = next((m.perplexity for m in run.methods if m.perplexity), None)
    short = f"windows of {measured.short_length if measured else run.original_length:,} tokens"
    long = f"tokens {measured.long_start:,} to {measured.long_end:,}" if measured else "long positions"
    columns, tasks = needle_columns(run, run.target_length)
    rows = []
    for m in run.methods:
        perplexity = [perplexity_cell(e) for e in ((m.perplexity.short, m.perplexity.long) if m.perplexity else (None, None))]
        rows.append(Row(m, (*perplexity, *needle_cells(m, tasks, run.target_length))))
    return Table((Column("perplexity", short), Column("perplexity", long), *columns), tuple(rows))


def short_cells(run: Run) -> Table:
    """The needle tasks at the original length."""
    columns, tasks = needle_columns(run, run.original_length)
    return Table(tuple(columns), tuple(Row(m, tuple(needle_cells(m, tasks, run.original_length))) for m in run.methods))


def markdown_table(run: Path) -> str:
    """The main table of a run directory in GitHub's Markdown; every cell: value (95 % interval; n)."""
    table = main_cells(read_run(run))

    def safe(words: str) -> str:
        words = " ".join(words.replace("&", "&amp;").replace("<", "&lt;").split())
        return words.replace("\\", "\\\\").replace("|", "\\|")

    lines = ["| method | " + " | ".join(f"{safe(c.head)}, {safe(c.note)}" for c in table.columns) + " |"]
    lines.append("|---|" + "---:|" * len(table.columns))
    for row in table.rows:
        cells = [f"{c.value} ({c.interval}; {c.n})" if c else NOT_RUN for c in row.cells]
        lines.append(f"| {safe(row.method.title)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


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
    by_name = {row.method.name: row.cells for row in table.rows}

    def tile(title: str, column: int) -> Tile:
        def value(method: Method | None) -> str:
            cell = by_name[method.name][column] if method else None
            return cell.value if cell else NOT_RUN

        note = f"{run.control.title}: {value(run.control)}" if run.control else ""
        return Tile(title, value(run.before), value(run.harpe), note)

    titles = ((1, "Perplexity, " + table.columns[1].note), (-1, f"Needles found at {run.target_length:,} tokens"))
    return [tile(words, at) for at, words in titles] + [tile("Perplexity, " + table.columns[0].note, 0)]


def signed(difference: Difference) -> tuple[str, str]:
    """Value and interval with as many decimals as their size asks for."""
    largest = max((abs(v) for v in (difference.value, difference.low, difference.high) if math.isfinite(v)), default=0.0)
    decimals = 1 if largest >= 10 else 2 if largest >= 1 else 3

    def one(value: float) -> str:
        return f"{value:+,.{decimals}f}".replace("-", "−") if math.isfinite(value) else "not finite"

    return one(difference.value), f"{one(difference.low)} to {one(difference.high)}"


def facts(entries: dict[str, Any]) -> list[tuple[str, str]]:
    """Keys and values of a JSON object as readable text."""

    def words(value: Any) -> str:
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, int):
            return f"{value:,}"
        if isinstance(value, float):
            return f"{value:,.10g}" if value == 0 or abs(value) >= 1e-3 else f"{value:g}"
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    return [(key.replace("_", " "), words(value)) for key, value in entries.items() if key != "schema_version"]


def model_facts(run: Run) -> dict[str, Any]:
    m = run.model
    heads = f"{m.layers} layers, {m.query_heads} query heads, {m.key_value_heads} key/value heads of {m.head_dim}"
    shape = {"model": m.name, "type": m.model_type, "parameters": m.parameters, "shape": heads}
    lengths = {"trained_length": f"{run.original_length:,} tokens", "target_length": f"{run.target_length:,} tokens"}
    return shape | {"rotary_dimensions": m.rotary_dim} | lengths | {"trained_base": m.base}


def write_report(run: Path) -> Path:
    """Write `report/index.html` in the run directory: one page that needs no other file and no network.

    Raises
    ------
    HarpeError
        When the directory holds no plan, a file in it is damaged, or the disk is full.
    """
    value = read_run(run)
    environment = Environment(
        loader=PackageLoader("harpe.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"facts": facts, "signed": signed, "plain": plain}
    environment.globals |= {"exp": lambda nll: math.exp(min(nll, 700.0))}
    control = value.control
    page = environment.get_template("report.html.j2").render(
        run=value,
        not_run=NOT_RUN,
        slots=figures.slots(value),
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
        heat_maps=[(m, figures.heat_map(m.grid, m.title) if m.grid else None) for m in value.methods],
        gradient=figures.heat_gradient(),
    )
    path = Path(run) / "report" / "index.html"
    write_text(path, page)
    return path
