"""One process at a time in a folder."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from harpe.errors import HarpeError

LOCK = ".harpe.lock"
HOLDER = ".harpe.lock.json"
"""Who holds the lock. A file of its own: some versions of filelock empty the lock file when they ask for it."""
OWN = frozenset((LOCK, HOLDER))


@contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """Hold a folder, which is made where it is missing; a second process is told at once who holds it, or waits for it.

    The lock is flock's on `folder`/.harpe.lock, by filelock. The kernel gives it back when its process ends, however it
    ends, and also over NFS, where it counts for all machines (a machine that went down holds it until the server
    notices, some minutes at most). On a file system without flock (Lustre mounted without it) filelock takes the file
    itself for the lock, with a warning; there a killed process of another machine leaves it behind, and it has to be
    deleted by hand.

    The file stays when the lock is given back, since to delete it would let two others lock two files of that name.
    Only where the folder holds nothing else it goes, and with it the folders that this made.

    Raises HarpeError where another process (or another thread of this one) holds it, without `wait`; where `folder` is
    a file or cannot be written.
    """
    folder = Path(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK, timeout=-1 if wait else 0)
        lock.acquire()
    except Timeout:
        raise HarpeError(
            f"{folder} is in use by {_holder(folder)}. Two at a time would spoil it: wait until that has ended, or "
            "name another folder."
        ) from None
    except OSError as error:
        raise HarpeError(
            f"{folder} cannot be used as a folder to write in ({error.strerror or error}). Name another one."
        ) from error
    try:
        with suppress(OSError):
            (folder / HOLDER).write_text(json.dumps(_this_process()) + "\n", encoding="utf-8")
        yield
    finally:
        with suppress(OSError):
            (folder / HOLDER).unlink(missing_ok=True)
            if not holds_something(folder):
                (folder / LOCK).unlink(missing_ok=True)
                for path in made:
                    path.rmdir()
        lock.release()


def is_held(folder: Path) -> bool:
    """Whether a process holds a folder; nothing is made there."""
    if not (folder / LOCK).is_file():
        return False
    try:
        with FileLock(folder / LOCK, timeout=0):
            return False
    except (Timeout, OSError):
        return True


def holds_something(folder: Path) -> bool:
    """Whether a folder holds more than the files of a lock."""
    return any(entry.name not in OWN for entry in folder.iterdir())


def _this_process() -> dict[str, str | int]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now(UTC).isoformat(timespec="seconds")}


def _holder(folder: Path) -> str:
    try:
        who = json.loads((folder / HOLDER).read_text(encoding="utf-8"))
        return f"process {who['pid']} on {who['host']} since {who['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
