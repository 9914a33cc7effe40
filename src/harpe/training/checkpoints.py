"""Which of the Trainer's checkpoints are whole, and cleaning up what a kill left behind."""

from __future__ import annotations

import shutil
from pathlib import Path

from harpe.files import read_json, write_json

MARK = "complete.json"


def mark_complete(checkpoint: Path) -> None:
    """Write the mark, with every file's size, as the last act of saving."""
    sizes = {p.relative_to(checkpoint).as_posix(): p.stat().st_size for p in sorted(checkpoint.rglob("*")) if p.is_file()}
    sizes.pop(MARK, None)
    write_json(checkpoint / MARK, {"files": sizes})


def is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint was saved to its end and all its files have the size they had then."""
    mark = checkpoint / MARK
    if not mark.is_file():
        return False
    files = read_json(mark)["files"]
    return all((checkpoint / name).is_file() and (checkpoint / name).stat().st_size == size for name, size in files.items())


def step_of(checkpoint: Path) -> int:
    """The step in a name such as `checkpoint-40`."""
    return int(checkpoint.name.rsplit("-", 1)[1])


def last_complete(folder: Path) -> Path | None:
    """The newest whole checkpoint of a stage; broken ones are deleted, since the Trainer would trip over them."""
    best = None
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=step_of):
        if is_complete(checkpoint):
            best = checkpoint
        else:
            shutil.rmtree(checkpoint)
    return best
