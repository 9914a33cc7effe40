"""The records of one measurement, one a line: several processes write them at a time, and a kill loses none that was written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from harpe.evaluation.processes import Processes
from harpe.files import append_jsonl, whole_lines, write_jsonl

Row = dict[str, Any]


class Records:
    """Records that are there already, and those that are added.

    While the work goes on, every process appends to a file of its own, FILE.jsonl.RANK; `gather` puts what all have written into
    FILE.jsonl, in order. Whatever such files hold counts as done, so that work may be resumed with another number of processes, and the
    number of processes leaves no trace. All of them need to see the same folder.

    Parameters
    ----------
    path
        FILE.jsonl.
    place
        Where a record belongs: its name, and what the file is sorted by.
    tell
        Told where a kill has cut the last line of a file short.
    """

    def __init__(self, path: Path, place: Callable[[Row], Any], team: Processes, tell: Callable[[str], None]) -> None:
        self.path, self._place, self._team, self._tell = path, place, team, tell
        self._mine = path.with_name(f"{path.name}.{team.rank}")
        self.rows: dict[Any, Row] = team.from_first(self._put_together)
        """By place. Those of other processes are in it after `gather`."""

    def add(self, row: Row) -> None:
        """Append a record, unless there is one in its place."""
        if (place := self._place(row)) not in self.rows:
            append_jsonl(self._mine, row)
            self.rows[place] = row

    def gather(self) -> list[Row]:
        """The records of all processes in their order, on every process, when all have come here."""
        self._team.wait()
        self.rows = self._team.from_first(self._put_together)
        return list(self.rows.values())

    def _put_together(self) -> dict[Any, Row]:
        parts = sorted(file for file in self.path.parent.glob("*") if _is_part(file, self.path))
        found: dict[Any, Row] = {}
        for file in [self.path, *parts]:
            if file.is_file():
                rows, cut = whole_lines(file)
                if cut:
                    self._tell(f"The last line of {file} was cut short and is dropped; what it held is measured again.")
                for row in rows:
                    found.setdefault(self._place(row), row)
        rows = [found[place] for place in sorted(found)]
        if found or self.path.is_file():
            write_jsonl(self.path, rows)
        for part in parts:
            part.unlink()
        return {self._place(row): row for row in rows}


def _is_part(file: Path, path: Path) -> bool:
    return file.name.startswith(f"{path.name}.") and file.name.removeprefix(f"{path.name}.").isdigit()
