"""The tasks of all long-context suites, by name, and the names that stand for several."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from harpe.errors import HarpeError
from harpe.evaluation.long import babilong, content_probe, coreference, graph_walks, order_probe
from harpe.evaluation.long.ruler2 import tasks as ruler2
from harpe.evaluation.long.task import LongTask

MADE_HERE = {
    "babilong": babilong,
    "graph": graph_walks,
    "order": order_probe,
    "content": content_probe,
    "coreference": coreference,
}
SUITES = MADE_HERE | {"ruler2": ruler2}
"""The modules by the names that stand for all of their tasks."""
LONG_TASKS: dict[str, LongTask] = {task.name: task for suite in MADE_HERE.values() for task in suite.TASKS}
"""Tasks whose samples are made here and need no data: what `all` stands for."""
TASKS: dict[str, LongTask | ruler2.Ruler2Task] = {**LONG_TASKS, **{task.name: task for task in ruler2.TASKS}}
CHAT = "chat-model"
"""Stands for all tasks, in the chat format."""
GROUPS = {
    "all": tuple(LONG_TASKS),
    "quick": ("babilong-qa1", "order-last-4", "content-4"),
    "base-model": tuple(name for name in LONG_TASKS if not name.startswith(("graph", "coreference"))),
    CHAT: tuple(LONG_TASKS),
} | {name: tuple(task.name for task in suite.TASKS) for name, suite in SUITES.items()}


def chosen(names: Iterable[str]) -> list[LongTask | ruler2.Ruler2Task]:
    """The tasks of these names and groups, in the order of `TASKS`.

    Raises HarpeError for a name that is neither, and where there is none.
    """
    wanted: set[str] = set()
    for name in names:
        if name not in GROUPS and name not in TASKS:
            near = difflib.get_close_matches(name, [*GROUPS, *TASKS], 3)
            there = f"There are {', '.join(TASKS)}, and the groups {', '.join(GROUPS)}."
            hint = f"Did you mean {' or '.join(near)}?" if near else there
            raise HarpeError(f"--tasks {name} is no task of harpe long. {hint}")
        wanted.update(GROUPS.get(name, (name,)))
    if not wanted:
        raise HarpeError(f"--tasks names no task. There are {', '.join(GROUPS)}, and {', '.join(TASKS)}.")
    return [task for name, task in TASKS.items() if name in wanted]
