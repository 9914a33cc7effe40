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
    tasks = read_json(folder / "short.json")["tasks"]
    if notes := [f"{name}: {task['note']}" for name, task in tasks.items() if "note" in task]:
        table.caption = "\n".join(notes)
    for name, task in tasks.items():
        shots = "task's own" if task["shots"] is None else str(task["shots"])
        if "score" in task:
            interval = f"{task['low']:.1f} to {task['high']:.1f}"
            table.add_row(name, shots, task["metric"], f"{task['score']:.1f}", interval, str(task["samples"]))
        else:
            table.add_row(name, shots, "see short.json", "", "", "")
    return table


def against_table(folder: Path) -> Table:
    """Before, after and difference of every task in `against.json`."""
    value = read_json(folder / "against.json")
    table = Table(title="Before and after", caption=f"before: {value['before']}\nafter: {value['after']}")
    for name in ("task", "before, %", "after, %", "difference, points", "95% interval", "better", "worse"):
        table.add_column(name, justify="left" if name == "task" else "right")
    for name, row in [*value["tasks"].items(), *([("mean of the tasks", value["mean"])] if "mean" in value else [])]:
        interval = f"{row['low']:+.1f} to {row['high']:+.1f}"
        counts = (str(row.get("better", "")), str(row.get("worse", "")))
        table.add_row(
            name, f"{row['before']:.1f}", f"{row['after']:.1f}", f"{row['difference']:+.1f}", interval, *counts
        )
    return table
