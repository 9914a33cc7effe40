"""How a run speaks while it works. The command line gives it a terminal; in Python it is silent unless asked."""

from __future__ import annotations

from typing import Any


class Reporter:
    """Receives what a run has to say; this one keeps silent."""

    def say(self, text: str) -> None:
        """A sentence or a block of text."""

    def table(self, table: Any) -> None:
        """A rich table."""

    def progress(self, what: str, done: int, total: int | None, note: str = "") -> None:
        """How far the work called `what` is; `done == total` ends it. None: nobody knows how much there is."""
