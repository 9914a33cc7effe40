"""What is told while work goes on, in logs."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from harpe.cli import terminal as module
from harpe.cli.terminal import Terminal


def test_lines_tell_the_time_that_is_left_at_the_pace_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, out = [100.0], io.StringIO()
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    said = Terminal(Console(file=out, soft_wrap=True))
    for seconds, done in ((0, 4), (10, 5), (20, 6), (20, 8), (0, 20), (5, 1), (16, 2)):
        clock[0] += seconds
        said.progress("training", done, 20, "loss 2.5" if done != 8 else "")
    assert out.getvalue().splitlines() == [
        "training: 4/20, loss 2.5",
        "training: 6/20, loss 2.5, 3.5 min left",  # two steps in 30 s, and 14 to go
        "training: 8/20, 2.5 min left",  # four in 50 s, and 12 to go
        "training: 20/20, loss 2.5",
        "training: 2/20, loss 2.5, 4.8 min left",  # begun anew: one in 16 s, and 18 to go
    ]


def test_work_whose_amount_nobody_knows_gets_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, out = [100.0], io.StringIO()
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    said = Terminal(Console(file=out, soft_wrap=True))
    for done, total in ((5, None), (8, None), (9, 9)):
        clock[0] += 20
        said.progress("reading", done, total)
    assert out.getvalue().splitlines() == ["reading: 5", "reading: 8", "reading: 9/9"]
