"""A process that ends with the one that started it: `python -m harpe.distributed.child MODULE …` calls `main` of a
module so.

Its standard input is a pipe whose other end the starting process alone holds. However that one ends, also by a signal
that nobody can catch, the system closes that end, and this process reads so. A file without heavy imports: the watch
begins before torch is loaded.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def lifeline() -> Iterator[int]:
    """Standard input for such a process; it is told to end where this one ends, or leaves the context."""
    theirs, ours = os.pipe()
    try:
        yield theirs
    finally:
        os.close(theirs)
        os.close(ours)


def end_with_parent() -> None:
    """End this process, and the group that it leads, as soon as the other end of its standard input is closed."""
    end, nothing = os.dup(0), os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)  # whoever asks a question here is told at once that nobody answers
    os.close(nothing)
    threading.Thread(target=_watch, args=(end,), daemon=True).start()


def _watch(end: int) -> None:
    while os.read(end, 4096):
        pass
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)  # with all that it has started
    os._exit(128 + signal.SIGKILL)


if __name__ == "__main__":
    end_with_parent()
    name = sys.argv.pop(1)
    sys.exit(importlib.import_module(name).main())
