"""A small campaign of kills: whatever is killed, and whenever, goes on to the files of a run that nobody disturbed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "scripts" / "kill_campaign.py"


@pytest.mark.parametrize(
    ("kinds", "kills"),
    [("extend,prepare,evaluate,ruler", 3), ("compare-parent,compare-worker,compare-group", 1)],
    ids=["verbs", "comparison"],
)
def test_killed_work_goes_on_to_the_files_of_an_undisturbed_run(kinds: str, kills: int, tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), f"--only={kinds}", f"--kills={kills}", "--seed=1"]
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TMPDIR": str(tmp_path)})
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"0 of {kills * len(kinds.split(','))} kills left something wrong." in ended.stdout
