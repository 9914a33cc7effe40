"""Signals that end `harpe` as Ctrl-C does: what it has started is ended too, and a sentence says how to go on."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Ended(KeyboardInterrupt):
    """A signal other than Ctrl-C's.

    Parameters
    ----------
    number
        Of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def exit_code(error: KeyboardInterrupt) -> int:
    """128 and the number of the signal, as shells have it: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
    return 128 + (error.number if isinstance(error, Ended) else signal.SIGINT)


@contextmanager
def signals_interrupt() -> Iterator[None]:
    """While it lasts, SIGTERM (`kill`, a scheduler's time limit) and SIGHUP (a terminal that is closed) raise `Ended`.

    A signal that the caller has ignored stays ignored (`nohup`). Under a launcher of several processes nothing is
    changed: it ends them by SIGTERM, and one that waits for the others inside of C++ would not come to run a handler.
    """
    if threading.current_thread() is not threading.main_thread() or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        yield
        return
    before = {}
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:
            before[number] = signal.signal(number, _raise)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise(number: int, frame: FrameType | None) -> None:
    raise Ended(number)
