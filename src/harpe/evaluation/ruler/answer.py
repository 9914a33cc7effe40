"""The scores of RULER's answers, by task and over tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harpe.evaluation.answers import scored
from harpe.evaluation.ruler.tasks import RULER_TASKS


def summary(records: Sequence[dict[str, Any]], whole: int = 1) -> dict[str, Any]:
    """Scores in per cent by task, with 95 % intervals, and their means over the needle tasks and over all 13 where
    those are complete.

    `empty` counts answers without any text. A task with fewer than `whole` answers was cut short, and is named under
    `incomplete` alone: what was answered first is no random part of it.
    """
    incomplete: list[str] = []
    tasks: dict[str, dict[str, Any]] = {}
    for name in RULER_TASKS:
        rows = [r for r in records if r["task"] == name]
        if rows and len(rows) < whole:
            incomplete.append(name)
        elif rows:
            tasks[name] = scored(rows)
    needles = [float(value["score"]) for name, value in tasks.items() if name.startswith("niah")]
    value: dict[str, Any] = {"tasks": tasks, "incomplete": incomplete}
    if len(needles) == 8:
        value["needle_mean"] = sum(needles) / 8
    if len(tasks) == len(RULER_TASKS):
        value["mean"] = sum(t["score"] for t in tasks.values()) / len(RULER_TASKS)
    return value
