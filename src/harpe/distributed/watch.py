"""Processes that watch each other: when one ends or is heard of no more, all end with a sentence that names it.

A process that waits for a dead one in a collective operation waits for hours (NCCL, a launcher that ends nobody), or is
ended without a word (torchrun). So every process holds a lock on its own log file, which the system lets go however it
ends, and touches the file while it lives; a thread in each looks at the others' files. The files are in the run
directory, which all of them share anyway.
"""

from __future__ import annotations

import fcntl
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from harpe.distributed.processes import Processes
from harpe.errors import BrokenOff, OtherFailed

POLL = 2.0
"""Seconds between two looks at the others."""
SILENT = 600.0
"""Seconds after which a process that does not touch its file counts as lost: stopped, or its machine is gone."""
SPOKEN = "Told:"
"""Begins the note of a process that has told the user why it ended."""
GO_ON = "What is saved is kept: the same command with --resume goes on."


@contextmanager
def watched(folder: Path, ranks: Processes, verb: str) -> Iterator[None]:
    """Watch the other processes while the block runs; nothing with one process alone.

    What processes but the first print goes to `folder`/rank-N.log, and so do the warnings of all of them.
    """
    if ranks.count == 1:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    watch = _Watch(folder, ranks, verb)
    ranks.wait()  # all files are there and held
    watch.start()
    try:
        yield
    except BaseException as error:
        if isinstance(error, RuntimeError | BrokenOff):  # as where another one has ended: then the thread says which
            time.sleep(3 * POLL)
        watch.leave(error)
        raise
    watch.stop()
    ranks.wait()  # nobody looks any more when the first one leaves
    watch.leave(None)


class _Watch:
    """What one process knows of the others."""

    def __init__(self, folder: Path, ranks: Processes, verb: str) -> None:
        self._folder, self._ranks, self._verb = folder, ranks, verb
        self._file = (folder / f"rank-{ranks.rank}.log").open("w", encoding="utf-8", buffering=1)
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._file.write(f"process {ranks.rank} of {ranks.count}, {socket.gethostname()}, pid {os.getpid()}\n")
        self._done = folder / f"rank-{ranks.rank}.ended"
        self._done.unlink(missing_ok=True)
        self._speaking = os.dup(2)
        self._printing = [os.dup(1), self._speaking]
        if not ranks.first:
            for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
                stream.flush()
                os.dup2(self._file.fileno(), number)
        self._handler = logging.StreamHandler(self._file)
        logging.getLogger().addHandler(self._handler)
        logging.captureWarnings(True)
        self._stopping, self._seen = threading.Event(), {}
        self._woken, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:  # the thread hears of the signal while this one waits for others in compiled code
            self._before = signal.signal(signal.SIGTERM, lambda number, frame: None), signal.set_wakeup_fd(self._wake)
        self._thread = threading.Thread(target=self._look, daemon=True)

    _seen: dict[int, tuple[float, float]]
    """By rank: the time of its file, and when that was first seen."""

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Look no more; the file is touched until the end."""
        self._stopping.set()

    def leave(self, error: BaseException | None) -> None:
        """Put everything back. Where this process failed, the others find a note of it and end without another word."""
        self.stop()
        if error is not None and not isinstance(error, OtherFailed):
            self._note(f"{SPOKEN} {type(error).__name__}: {error}")
        if self._main:
            handler, wake = self._before
            signal.set_wakeup_fd(wake)
            signal.signal(signal.SIGTERM, handler)
        logging.captureWarnings(False)
        logging.getLogger().removeHandler(self._handler)
        if not self._ranks.first:
            for stream, number, kept in ((sys.stdout, 1, self._printing[0]), (sys.stderr, 2, self._printing[1])):
                stream.flush()
                os.dup2(kept, number)
        if error is None:
            self._file.close()  # and with it the lock; of a process that fails the system closes it

    def _note(self, text: str) -> None:
        """Leave a note that this process knows why it ends."""
        with suppress(FileNotFoundError):  # a run that was refused is removed, and all are told so
            self._done.write_text(f"{text}\n", encoding="utf-8")

    def _look(self) -> None:
        while not self._stopping.is_set():
            if select.select([self._woken], [], [], POLL)[0]:
                os.read(self._woken, 1)
                self._end(128 + signal.SIGTERM, self._lost())
            with suppress(OSError):
                os.utime(self._file.fileno())
            if lost := self._lost():
                self._end(1, lost)

    def _lost(self) -> dict[int, str]:
        """What has become of the processes that are not there any more; nothing of those that have left a note."""
        found = {}
        for rank in range(self._ranks.count):
            if rank == self._ranks.rank or self._stopping.is_set():
                continue
            path = self._folder / f"rank-{rank}.log"
            if (self._folder / f"rank-{rank}.ended").exists():
                found[rank] = ""
            elif not path.exists():  # of a run that was refused
                continue
            elif _is_free(path):
                found[rank] = "has ended without a word, as when it is killed or its machine runs out of memory"
            elif self._silence(rank, path) > SILENT:
                found[rank] = f"has not been heard of for {SILENT / 60:.0f} minutes"
        return found

    def _silence(self, rank: int, path: Path) -> float:
        """Seconds since a file's time was seen to change; clocks of several machines are never compared."""
        now, touched = time.monotonic(), path.stat().st_mtime
        before, since = self._seen.get(rank, (0.0, now))
        self._seen[rank] = (touched, since if touched == before else now)
        return now - self._seen[rank][1]

    def _end(self, code: int, lost: dict[int, str]) -> None:
        """End this process; the first one that is left tells why, unless another one has."""
        unknown = {rank: what for rank, what in lost.items() if what}
        left = min(rank for rank in range(self._ranks.count) if rank not in lost)
        sentence, speaker = "", left
        if unknown:
            rank, what = next(iter(unknown.items()))
            log = self._folder / f"rank-{rank}.log"
            sentence = f"Process {rank} of {self._ranks.count} (counted from 0) {what}; its log is {log}. {GO_ON}"
        elif code != 1:  # all get the signal, and some may have ended by it already
            sentence, speaker = f"Ended by SIGTERM. {GO_ON}", 0
        speak = bool(sentence) and self._ranks.rank == speaker and not self._told()
        if speak:
            os.write(self._speaking, f"harpe {self._verb}: {sentence}\n".encode())
        self._note(SPOKEN if speak else "Ended because another process did.")
        os._exit(code)

    def _told(self) -> bool:
        """Whether another process has said why all end."""
        notes = (self._folder / f"rank-{rank}.ended" for rank in range(self._ranks.count))
        return any(note.is_file() and note.read_text(encoding="utf-8").startswith(SPOKEN) for note in notes)


def _is_free(path: Path) -> bool:
    """Whether nobody holds a file."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return True
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks, or the file is not there yet: the time of the file has to do
        return False
