"""The records of one measurement, one a line: several processes write them at a time, and a kill loses none that was
written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from harpe.distributed.processes import Processes
from harpe.files import append_jsonl, whole_lines
from harpe.measurement import Measurement, records_of, refuse_other, write_records
from harpe.ownership import refuse_foreign

Row = dict[str, Any]


class Records:
    """Records that are there already, and those that are added.

    While the work goes on, every process appends to a file of its own, FILE.jsonl.RANK; `gather` puts what all have
    written into FILE.jsonl, in order. Whatever such files hold counts as done, so that work may be resumed with another
    number of processes, and the number of processes leaves no trace. All of them need to see the same folder. The first
    line of each says what its records are of.

    Parameters
    ----------
    path
        FILE.jsonl.
    place
        Where a record belongs: its name, and what the file is sorted by.
    tell
        Told where a kill has cut the last line of a file short.
    of
        What is measured.

    Raises
    ------
    HarpeError
        Where one of the files was not written by harpe, or is of something else. Nothing is changed then.
    """

    def __init__(
        self,
        path: Path,
        place: Callable[[Row], Any],
        ranks: Processes,
        tell: Callable[[str], None],
        of: Measurement | None = None,
    ) -> None:
        self.path, self._place, self._ranks, self._tell, self._of = path, place, ranks, tell, of or {}
        self._mine = path.with_name(f"{path.name}.{ranks.rank}")
        self.rows: dict[Any, Row] = ranks.broadcast_from_rank0(self._put_together)
        """By place. Those of other processes are in it after `gather`."""

    def add(self, row: Row) -> None:
        """Append a record, unless there is one in its place."""
        if (place := self._place(row)) not in self.rows:
            if not self._mine.exists():
                write_records(self._mine, [], self._of)
            append_jsonl(self._mine, row)
            self.rows[place] = row

    def gather(self) -> list[Row]:
        """The records of all processes in their order, on every process, when all have come here."""
        self._ranks.wait()
        self.rows = self._ranks.broadcast_from_rank0(self._put_together)
        return list(self.rows.values())

    def _put_together(self) -> dict[Any, Row]:
        files = record_files(self.path)
        refuse_foreign(*files)
        for file in files:
            refuse_other(
                records_of(file), self._of, file, "Delete it to measure again, or name another place with --out."
            )
        found: dict[Any, Row] = {}
        for file in files:
            rows, cut = whole_lines(file)
            if cut:
                self._tell(f"The last line of {file} was cut short and is dropped; what it held is measured again.")
            for row in rows:
                found.setdefault(self._place(row), row)
        rows = [found[place] for place in sorted(found)]
        if files:
            write_records(self.path, rows, records_of(files[0]))
        for part in files:
            if part != self.path:
                part.unlink()
        return {self._place(row): row for row in rows}


def record_files(path: Path) -> list[Path]:
    """FILE.jsonl and what processes have left beside it, FILE.jsonl.RANK; those that are there."""
    parts = sorted(file for file in path.parent.glob("*") if _is_part(file, path))
    return [*([path] if path.is_symlink() or path.exists() else []), *parts]


def _is_part(file: Path, path: Path) -> bool:
    return file.name.startswith(f"{path.name}.") and file.name.removeprefix(f"{path.name}.").isdigit()
