"""kill -9 and resume: nothing is lost, and the result is the same to the last bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

KILLED = """
import os, signal, sys
import harpe.training.checkpoints, harpe.training.stages as stages, harpe.training.progress as progress
moment, arm = sys.argv[1].split(":")

def die():
    os.kill(os.getpid(), signal.SIGKILL)

mark, log = stages.mark_complete, progress.JsonlLog.on_log

def in_checkpoint(checkpoint):  # weights and optimizer are written, the mark that makes the checkpoint count is not
    if arm in str(checkpoint) and checkpoint.name.startswith(".checkpoint-4."):
        die()
    mark(checkpoint)

def after_step(self, args, state, control, **kwargs):
    log(self, args, state, control, **kwargs)
    if arm in str(self.path) and state.global_step == 3:
        die()

if moment == "checkpoint":
    stages.mark_complete = in_checkpoint
elif moment == "step":
    progress.JsonlLog.on_log = after_step
from harpe.cli.main import main
sys.exit(main(sys.argv[2:]))
"""


def start(arguments: list[str], moment: str = "never:") -> int:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", KILLED, moment, *arguments], env=environment, capture_output=True
    ).returncode


def test_an_extension_killed_inside_a_checkpoint_resumes_to_the_same_weights(workspace: Path) -> None:
    def arguments(out: str) -> list[str]:
        return [
            "extend", str(workspace / "model"), "--length=256", f"--data={workspace / 'texts'}",
            f"--out={workspace / out}",
            "--tokens=4096", "--batch-tokens=512", "--learning-rate=1e-3", "--save-every=2", "--dtype=bfloat16",
        ]  # fmt: skip

    assert start(arguments("whole")) == 0
    assert start(arguments("killed"), "checkpoint:harpe") == -signal.SIGKILL
    assert not (workspace / "killed" / "harpe" / "model").exists()
    assert start([*arguments("killed"), "--resume"]) == 0
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (workspace / "killed/harpe/model" / name).read_bytes() == (
            workspace / "whole/harpe/model" / name
        ).read_bytes()
    logs = [(workspace / run / "harpe/stage-1/log.jsonl").read_text().splitlines() for run in ("whole", "killed")]
    assert [line.split('"tokens"')[0] for line in logs[0]] == [line.split('"tokens"')[0] for line in logs[1]]


def test_a_quickstart_killed_in_the_control_arm_resumes_to_the_same_weights(tmp_path: Path) -> None:
    def arguments(out: str) -> list[str]:
        return [
            "quickstart", "--length=512", "--tokens=6144", "--batch-tokens=1536", "--documents=2",
            "--samples=1", "--grid-samples=1",
            "--dtype=float32", f"--out={tmp_path / out}",
        ]  # fmt: skip

    assert start(arguments("whole")) == 0
    assert start(arguments("killed"), "step:one-base") == -signal.SIGKILL
    assert (tmp_path / "killed" / "harpe" / "model").is_dir() and not (
        tmp_path / "killed" / "one-base" / "model"
    ).exists()
    assert start(arguments("killed")) == 0
    for arm in ("harpe", "one-base"):
        name = f"{arm}/model/model.safetensors"
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert (tmp_path / "killed" / "report" / "index.html").is_file()
