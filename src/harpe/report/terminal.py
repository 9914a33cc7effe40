"""Tables for the terminal: of a run, of one checkpoint's scores, of a corpus."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from harpe.files import read_json
from harpe.report.read.run import read_run
from harpe.report.tables.results import chief_table
from harpe.report.tables.results import main_table as main_cells
from harpe.report.tables.table import NOT_RUN, Cell
from harpe.report.tables.table import Table as Cells
from harpe.report.wording import printable


def main_table(run: Path) -> Table:
    """The main table of a run directory; in every cell the value, its 95 % interval and n. It fits 80 columns uncut.

    That of a comparison has its chief columns: perplexities, and the mean of each kind of scores.
    """
    value = read_run(run)
    intervals = "under each value its 95% interval and n"
    if not value.comparison:
        mean = "needle mean: of single, multi-key and multi-query"
        return _table(value.title, f"ppl: perplexity; {mean}; {intervals}", main_cells(value))
    covered = f"; intervals over {value.summary.interval}" if value.summary.interval else ""
    verdicts = f"better, worse: than {value.baseline.title}, after Holm's correction"
    caption = f"ppl: perplexity; {intervals}, seeds × documents or samples{covered}; {verdicts}"
    return _table(value.title, caption, chief_table(value))


def _table(title: str, caption: str, cells: Cells) -> Table:
    table = Table(title=Text(title), caption=Text(caption), box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.padding = (0, 1, 1, 0)
    titles = [Text(row.title, style="bold") for row in cells.rows]
    longest = max((len(word) for title in titles for word in title.plain.split()), default=0)
    table.add_column("method", overflow="fold", width=min(max(longest, 8), 12))
    for column in cells.columns:
        head, note = (words.replace("-", " ").replace("perplexity", "ppl") for words in (column.head, column.note))
        table.add_column(Text.assemble(head, "\n", (note, "dim")), justify="right", overflow="fold")
    for title_, row in zip(titles, cells.rows, strict=True):
        table.add_row(title_, *(_text(cell) for cell in row.cells))
    return table


def _text(cell: Cell | None) -> Text:
    if cell is None:
        return Text(NOT_RUN, style="dim")
    interval = cell.interval.replace("–", " – ")  # a narrow terminal breaks lines at spaces
    lines = [part for part in (interval, cell.n) if part]
    verdict = f"{cell.verdict} " if cell.verdict else ""
    return Text.assemble((verdict, "dim"), (cell.value, "bold"), *(("\n" + line, "dim") for line in lines))


def score_table(folder: Path) -> Table:
    """What `harpe evaluate` measured of one checkpoint: loss by position and needle scores, with 95 % intervals."""
    table = Table(title=Text(str(folder)), box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for head in ("measure", "where", "value", "95% interval"):
        table.add_column(head, justify="left" if head in ("measure", "where") else "right")
    perplexity = read_json(folder / "perplexity.json")
    for b in perplexity["bins"]:
        table.add_row("loss (nats)", f"positions {b['start']}-{b['end']}", *_number(b, "nll", 1, 3))
    short = perplexity["short"]
    table.add_row("perplexity", f"windows of {short['length']}", *_number(short, "perplexity", 1, 2))
    if (folder / "needles.json").exists():
        for task in read_json(folder / "needles.json")["tasks"]:
            where = f"{task['length']} tokens, n = {task['samples']}"
            table.add_row(task["task"], where, *_number(task, "score", 100, 0, "%"))
    return table


def sources_table(folder: Path) -> Table:
    """What `harpe prepare` found and drew, by source: shares of the tokens, and of long documents, before and after."""
    index = read_json(folder / "index.json")
    long = f"{index['options']['upsample_length']:,}"
    caption = (
        f"share: of all tokens; long: share of the source's tokens in documents of at least {long} tokens\n"
        "copies: tokens drawn over tokens there, of long and of short documents, and the most of one document"
    )
    table = Table(title=Text(str(folder)), caption=Text(caption), box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.padding = (0, 1, 1, 0)
    table.add_column("source", overflow="fold", max_width=16)
    table.add_column("")
    for head in ("documents", "tokens", "share", "long", "copies\nof long", "\nof short", "\nmost"):
        table.add_column(head, justify="right")
    for row in index["sources"]:
        copies = ["-" if row["copies"][key] is None else f"{row['copies'][key]:.2f}" for key in ("long", "short")]
        both = [(f"{row[key]:,}", f"{row[key + '_drawn']:,}") for key in ("documents", "tokens")]
        both += [(f"{row[key]:.1%}", f"{row[key + '_drawn']:.1%}") for key in ("share", "long_share")]
        pairs = [Text(f"{there}\n{drawn}") for there, drawn in both]
        copies.append(str(row["copies"]["most"]))
        name = Text(printable(row["source"]) or "all")
        table.add_row(name, "there\ndrawn", *pairs, *(f"\n{count}" for count in copies))
    return table


def _number(value: dict[str, Any], key: str, factor: float, digits: int, unit: str = "") -> tuple[str, str]:
    shown = [f"{factor * value[k]:.{digits}f}{unit}" for k in (key, "low", "high")]
    return shown[0], f"{shown[1]} - {shown[2]}"


def ruler_table(folder: Path) -> Table:
    """Score and interval of every task in `ruler.json`, and the means."""
    value = read_json(folder / "ruler.json")
    table = Table(title=f"RULER at {value['length']} tokens")
    for name in ("task", "score, %", "95% interval", "samples", "empty"):
        table.add_column(name, justify="left" if name == "task" else "right")
    for name, task in value["tasks"].items():
        interval = f"{task['low']:.1f} to {task['high']:.1f}"
        table.add_row(name, f"{task['score']:.1f}", interval, str(task["samples"]), str(task["empty"]))
    for key, name in (("needle_mean", "mean of the eight needle tasks"), ("mean", "mean of all 13")):
        if key in value:
            table.add_row(name, f"{value[key]:.1f}", "", "", "")
    return table


def long_table(folder: Path) -> Table:
    """Scores of `long.json` by task and length, what a guesser scores, effective length and length score."""
    tasks = read_json(folder / "long.json")["tasks"]
    lengths = sorted({cell["length"] for task in tasks.values() for cell in task["lengths"]})
    caption = "under each score its 95% interval; effective: the longest length that keeps 85% of the short score"
    table = Table(title="Long-context tasks, scores in %", caption=caption, box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column("task")
    for head in ("guesser", *(f"{length:,}" for length in lengths), "effective", "length\nscore"):
        table.add_column(head, justify="right")
    for name, task in tasks.items():
        at = {cell["length"]: cell for cell in task["lengths"]}
        shown = [f"{c['score']:.1f}\n{c['low']:.1f}-{c['high']:.1f}" if (c := at.get(n)) else NOT_RUN for n in lengths]
        chance = sum(cell["chance"] for cell in at.values()) / len(at)
        effective, area = task["effective"], task["area"]
        table.add_row(
            name,
            f"{chance:.1f}",
            *shown,
            f"{effective['value']:,}" if effective else "-",
            f"{area['value']:.1f}" if area else "-",
        )
    return table


def suites_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """What `harpe suites` lists, a block for each suite: wide tables of sentences cannot be read in a terminal."""
    table = Table(box=box.SIMPLE, show_header=False, show_edge=False, pad_edge=False)
    table.add_column("", style="dim", no_wrap=True)
    table.add_column("", overflow="fold")
    for row in rows:
        table.add_section()
        for head, text in zip(columns, row, strict=True):
            table.add_row(head, Text(text, style="bold" if head == columns[0] else ""))
    return table


def short_table(folder: Path) -> Table:
    """Score and interval of every task in `short.json`."""
    table = Table(title="Short benchmarks")
    for name in ("task", "shots", "metric", "score, %", "95% interval", "questions"):
        table.add_column(name, justify="left" if name in ("task", "metric") else "right")
    tasks = read_json(folder / "short.json")["tasks"]
    if notes := [f"{name}: {task['note']}" for name, task in tasks.items() if "note" in task]:
        table.caption = Text("\n".join(notes))
    for name, task in tasks.items():
        shots = "task's own" if task["shots"] is None else str(task["shots"])
        if "score" in task:
            numbers = f"{task['score']:.1f}", f"{task['low']:.1f} to {task['high']:.1f}", str(task["samples"])
            table.add_row(Text(name), shots, Text(task["metric"]), *numbers)
        else:
            table.add_row(Text(name), shots, "see short.json", "", "", "")
    return table


def against_table(folder: Path) -> Table:
    """Before, after and difference of every task in `against.json`."""
    value = read_json(folder / "against.json")
    table = Table(title="Before and after", caption=Text(f"before: {value['before']}\nafter: {value['after']}"))
    for name in ("task", "before, %", "after, %", "difference, points", "95% interval", "better", "worse"):
        table.add_column(name, justify="left" if name == "task" else "right")
    for name, row in [*value["tasks"].items(), *([("mean of the tasks", value["mean"])] if "mean" in value else [])]:
        interval = f"{row['low']:+.1f} to {row['high']:+.1f}"
        counts = (str(row.get("better", "")), str(row.get("worse", "")))
        table.add_row(
            Text(name), f"{row['before']:.1f}", f"{row['after']:.1f}", f"{row['difference']:+.1f}", interval, *counts
        )
    return table
