"""What is told while work goes on, in logs."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from harpe.cli import terminal as module
from harpe.cli.terminal import Terminal
from harpe.files import write_json
from harpe.report.terminal import against_table, short_table


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


@pytest.mark.parametrize("is_terminal", [True, False])
def test_tables_cut_off_neither_names_nor_numbers(is_terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    names, numbers = ("order-nth-16", "order-nth-4"), [f"{n}{n}.{n} to {n}{n + 1}.{n}" for n in range(1, 9)]
    table = Table("task", *("a long heading of a column" for _ in numbers))
    for name in names:
        table.add_row(name, *numbers)
    out = io.StringIO()
    Terminal(Console(file=out, force_terminal=is_terminal, width=80, color_system=None)).table(table)
    said = out.getvalue()
    assert "…" not in said
    if is_terminal:
        assert max(map(len, said.splitlines())) <= 80
    else:
        assert all(each in said for each in (*names, *numbers))


def test_brackets_in_names_are_letters_and_no_markup(tmp_path: Path) -> None:
    row = {"before": 1.0, "after": 2.0, "difference": 1.0, "low": 0.0, "high": 2.0}
    names = {"before": "m (scores/[b]after)", "after": "m (scores/x[/y])"}
    write_json(tmp_path / "against.json", {**names, "tasks": {"a[old]": row}})
    task = {"shots": 0, "metric": "acc[/x]", "score": 1.0, "low": 0.0, "high": 2.0, "samples": 3, "note": "of [/b]"}
    write_json(tmp_path / "short.json", {"tasks": {"b[new]": task}})
    out = io.StringIO()
    for table in (against_table(tmp_path), short_table(tmp_path)):
        Terminal(Console(file=out, width=160, color_system=None)).table(table)
    for text in (*names.values(), "a[old]", "b[new]", "acc[/x]", "of [/b]"):
        assert text in out.getvalue(), text
