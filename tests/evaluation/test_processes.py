"""Two gloo processes on the CPU write the files of one, also where another number of processes began."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harpe.experiment.evaluation_options import RulerOptions
from harpe.experiment.ruler import run_ruler
from harpe.files import read_jsonl

pytestmark = pytest.mark.slow
pytest.importorskip("wonderwords", reason="RULER's word lists come with the package wonderwords (pip install 'harpe[eval]')")

GIVEN = {"model": "embedded", "length": 512, "beyond_context": True, "samples": 6, "tasks": "niah_multikey_2,fwe", "batch_tokens": 1500}
FILES = ["answers.jsonl", "fwe.jsonl", "niah_multikey_2.jsonl", "protocol.json", "ruler.json"]


def in_two_processes(folder: Path) -> str:
    options = [
        text
        for name, value in GIVEN.items()
        for text in ([f"--{name.replace('_', '-')}", str(value)] if value is not True else [f"--{name.replace('_', '-')}"])
    ]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "harpe", "ruler"]
    done = subprocess.run(
        [*launcher, *options, "--dtype", "float32", "--out", str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def in_one(folder: Path) -> None:
    run_ruler(RulerOptions(**GIVEN, dtype="float32", out=str(folder)))


def interrupted(whole: Path, folder: Path) -> None:
    """A copy that two killed processes have left: two and three answers, and a line that was cut short."""
    shutil.copytree(whole, folder)
    rows = [json.dumps(row, ensure_ascii=False) + "\n" for row in read_jsonl(whole / "answers.jsonl")]
    (folder / "ruler.json").unlink()
    (folder / "answers.jsonl").unlink()
    (folder / "answers.0.jsonl").write_text("".join(rows[3:5]), encoding="utf-8")
    (folder / "answers.1.jsonl").write_text("".join(rows[6:9]) + rows[9][:30], encoding="utf-8")


def test_two_processes_write_the_files_of_one_and_go_on_for_each_other(tmp_path: Path) -> None:
    in_one(tmp_path / "one")
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == FILES
    rows = read_jsonl(tmp_path / "one" / "answers.jsonl")
    assert [(row["task"], row["sample"]) for row in rows] == [(task, i) for task in ("niah_multikey_2", "fwe") for i in range(6)]
    assert len({row["prediction"] for row in rows}) > 6  # answers that tell the samples apart
    interrupted(tmp_path / "one", tmp_path / "one after two")
    interrupted(tmp_path / "one", tmp_path / "two after two")
    in_one(tmp_path / "one after two")
    told = in_two_processes(tmp_path / "two")
    assert told.count("process 1 of 2") >= 2 and told.count("RULER at 512 tokens") == 1
    assert "was cut short" in in_two_processes(tmp_path / "two after two")
    for folder in ("two", "one after two", "two after two"):
        assert sorted(path.name for path in (tmp_path / folder).iterdir()) == FILES
        for name in FILES:
            assert (tmp_path / folder / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
