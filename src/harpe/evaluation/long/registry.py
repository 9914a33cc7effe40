"""The tasks of all long-context suites, by name, and the names that stand for several."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from harpe.errors import HarpeError
from harpe.evaluation.long import babilong, content_probe, coreference, graph_walks, order_probe
from harpe.evaluation.long.task import LongTask

SUITES = {
    "babilong": babilong,
    "graph": graph_walks,
    "order": order_probe,
    "content": content_probe,
    "coreference": coreference,
}
"""The modules by the names that stand for all of their tasks."""
LONG_TASKS: dict[str, LongTask] = {task.name: task for suite in SUITES.values() for task in suite.TASKS}
GROUPS = {
    "all": tuple(LONG_TASKS),
    "quick": ("babilong-qa1", "order-last-4", "content-4"),
    "base-model": tuple(name for name in LONG_TASKS if not name.startswith(("graph", "coreference"))),
} | {name: tuple(task.name for task in suite.TASKS) for name, suite in SUITES.items()}


def chosen(names: Iterable[str]) -> list[LongTask]:
    """The tasks of these names and groups, in the order of `LONG_TASKS`.

    Raises HarpeError for a name that is neither, and where there is none.
    """
    wanted: set[str] = set()
    for name in names:
        if name not in GROUPS and name not in LONG_TASKS:
            near = difflib.get_close_matches(name, [*GROUPS, *LONG_TASKS], 3)
            there = f"There are {', '.join(LONG_TASKS)}, and the groups {', '.join(GROUPS)}."
            hint = f"Did you mean {' or '.join(near)}?" if near else there
            raise HarpeError(f"--tasks {name} is no task of harpe long. {hint}")
        wanted.update(GROUPS.get(name, (name,)))
    if not wanted:
        raise HarpeError(f"--tasks names no task. There are {', '.join(GROUPS)}, and {', '.join(LONG_TASKS)}.")
    return [task for name, task in LONG_TASKS.items() if name in wanted]
