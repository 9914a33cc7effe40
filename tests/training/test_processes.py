"""`harpe extend` in several processes: the same run, whoever is killed, and refusals before any work."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from harpe.cli.main import main
from harpe.training import trainer

pytestmark = pytest.mark.slow


def command(workspace: Path, out: str, *more: str) -> list[str]:
    given = ["extend", str(workspace / "model"), "--data", str(workspace / "texts"), "--out", str(workspace / out)]
    given += ["--length", "256", "--tokens", "4096", "--batch-tokens", "512", "--learning-rate", "1e-3"]
    return [*given, "--method", "harpe", "--dtype", "float32", "--save-every", "2", *more]


def killed_in_a_save(given: list[str]) -> int:
    """Process 1 ends by SIGKILL when the second checkpoint is written and not yet marked."""
    mark = trainer.mark_complete

    def die(place: Path, ranks: Any) -> None:
        if ranks.rank == 1 and "checkpoint-4" in place.name:
            os.kill(os.getpid(), signal.SIGKILL)
        mark(place, ranks)

    trainer.mark_complete = die
    return main(given)


def test_a_process_that_is_killed_in_a_save_is_named_and_the_run_goes_on_with_any_number(
    workspace: Path, ranks: Any
) -> None:
    both = ranks(2, partial(killed_in_a_save, command(workspace, "run")))
    assert [each.wait() for each in both] == [1, -signal.SIGKILL]
    assert "harpe extend: Process 1 of 2 (counted from 0) has ended without a word" in both[0].stderr
    assert "Traceback" not in both[0].stderr
    stage = workspace / "run" / "harpe" / "stage-1"
    assert [path.name for path in stage.glob("checkpoint-*")] == ["checkpoint-2"]
    assert (workspace / "run" / "logs" / "rank-1.log").read_text().startswith("process 1 of 2")

    started = ranks(4, partial(main, command(workspace, "run", "--resume", "--sequence-parallel", "2")))
    assert [each.wait() for each in started] == [0] * 4, "\n".join(each.stderr for each in started)
    assert "2 share a sequence" in started[0].stdout and not any(each.stdout for each in started[1:])
    assert main(command(workspace, "alone")) == 0
    for name in ("plan.json", "recipe.yaml", "harpe/stages.json", "harpe/model/config.json"):
        assert (workspace / "run" / name).read_bytes() == (workspace / "alone" / name).read_bytes(), name
    expected, got = (load_file(workspace / out / "harpe" / "model" / "model.safetensors") for out in ("alone", "run"))
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(got[key], value, atol=1e-4, rtol=0, msg=key)
    left = [path.name for path in (workspace / "run").rglob("*") if ".partial" in path.name or path.suffix == ".ended"]
    assert left == []


def test_a_signal_to_all_is_told_once_and_a_failure_by_the_one_that_fails(workspace: Path, ranks: Any) -> None:
    """SIGTERM, as a scheduler's time limit sends it, while they train; then an error that is no sentence of ours."""
    both = ranks(2, partial(main, command(workspace, "run", "--tokens", "32768")))
    while not (workspace / "run" / "harpe" / "stage-1" / "checkpoint-2").is_dir():
        time.sleep(0.05)
    for each in both:
        os.kill(each.pid, signal.SIGTERM)
    assert [each.wait() for each in both] == [143, 143]
    assert "".join(each.stderr for each in both).count("harpe extend: Ended by SIGTERM.") == 1

    def broken() -> int:
        if os.environ["RANK"] == "1":
            trainer.mark_complete = lambda *given: 1 / 0
        return main(command(workspace, "broken"))

    both = ranks(2, broken)
    codes = [each.wait() for each in both]
    assert codes == [1, 70] and "ZeroDivisionError" in both[1].stderr
    assert "harpe extend" not in both[0].stderr and "Traceback" not in both[0].stderr


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--sequence-parallel", "3"), "--sequence-parallel 3 does not divide the 2 processes"),
        (("--replicas", "3"), "--replicas 3 does not divide the 2 processes"),
        (("--batch-tokens", "256", "--sequence-parallel", "1"), "A step has 1 sequences, and 2 are read at one time"),
        (("--tokens", "1000000000"), "asks for more than the data have"),
    ],
)
def test_what_cannot_work_is_told_once_and_leaves_nothing(
    workspace: Path, ranks: Any, options: tuple[str, ...], sentence: str
) -> None:
    both = ranks(2, partial(main, command(workspace, "run", *options)))
    codes = [each.wait() for each in both]
    told = [each.stderr for each in both]
    assert "Traceback" not in told[0] + told[1], told[0] + told[1]
    assert codes[0] == 2 and sentence in told[0] and sentence not in told[1]
    assert not (workspace / "run").exists()
