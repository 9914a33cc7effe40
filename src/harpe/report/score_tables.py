"""Scores of RULER and of the short benchmarks as tables for the terminal."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from harpe.files import read_json


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


def short_table(folder: Path) -> Table:
    """Score and interval of every task in `short.json`."""
    table = Table(title="Short benchmarks")
    for name in ("task", "shots", "metric", "score, %", "95% interval", "questions"):
        table.add_column(name, justify="left" if name in ("task", "metric") else "right")
    for name, task in read_json(folder / "short.json")["tasks"].items():
        shots = "task's own" if task["shots"] is None else str(task["shots"])
        if "score" in task:
            interval = f"{task['low']:.1f} to {task['high']:.1f}"
            table.add_row(name, shots, task["metric"], f"{task['score']:.1f}", interval, str(task["samples"]))
        else:
            table.add_row(name, shots, "see short.json", "", "", "")
    return table
