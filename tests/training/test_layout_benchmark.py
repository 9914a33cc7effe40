"""The benchmark of layouts, meant for eight GPUs, runs on two CPU processes and finds equal losses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu" / "layouts.py"


def test_both_layouts_are_trained_compared_and_planned(workspace: Path) -> None:
    words = ["--length=128", "--steps=3", "--processes=2", "--dtype=float32", f"--out={workspace / 'out'}"]
    command = [sys.executable, str(SCRIPT), str(workspace / "model"), str(workspace / "texts"), *words]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=workspace)
    assert ended.returncode == 0, ended.stderr
    found = json.loads((workspace / "out" / "layouts.json").read_text())
    assert [row["sequence_parallel"] for row in found["rows"]] == [1, 2]
    assert found["largest_difference_of_losses"] < 1e-5
    for row in found["rows"]:
        assert len(row["losses"]) == 3 and row["tokens_per_second"] > 0 and row["planned_bytes"] > 0
