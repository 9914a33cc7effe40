"""kill -9 and resume: nothing is lost, and the result is the same to the last bit."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from harpe.cli.main import main
from harpe.commands import quickstart
from harpe.training import progress, trainer

pytestmark = pytest.mark.slow


def killed_inside_a_checkpoint(name: str, arm: str) -> None:
    """Have this process killed when weights and optimiser of a checkpoint are written and the mark that makes it count
    is not."""
    mark = trainer.mark_complete

    def in_checkpoint(checkpoint: Path, ranks: Any) -> None:
        if arm in str(checkpoint) and checkpoint.name.startswith(f".{name}."):
            os.kill(os.getpid(), signal.SIGKILL)
        mark(checkpoint, ranks)

    trainer.mark_complete = in_checkpoint


def killed_after_step(step: int, arm: str) -> None:
    """Have this process killed behind a step that is logged."""
    log = progress.JsonlLog.on_log

    def after_step(self: Any, args: Any, state: Any, control: Any, **given: Any) -> None:
        log(self, args, state, control, **given)
        if arm in str(self.path) and state.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    progress.JsonlLog.on_log = after_step  # type: ignore[method-assign]


def without_loading_again() -> None:
    """Have a quickstart that only its weights are wanted of not start one more process to load them."""
    nothing: dict[str, Any] = {"tokens": 0, "text": "", "expected": "", "prompt": ""}
    quickstart.reload_and_generate = lambda path, length: nothing


@pytest.fixture
def start(fork: Any) -> Callable[..., int]:
    """Runs `harpe` in a process of its own, which `before` may prepare; its exit code, negative for a signal."""

    def run(arguments: list[str], before: Callable[[], None] = lambda: None) -> int:
        return int(fork(lambda: before() or main(arguments)).wait())

    return run


def test_an_extension_killed_inside_a_checkpoint_resumes_to_the_same_weights(
    workspace: Path, start: Callable[..., int]
) -> None:
    def arguments(out: str) -> list[str]:
        return [
            "extend", str(workspace / "model"), "--length=256", f"--data={workspace / 'texts'}",
            f"--out={workspace / out}", "--method=harpe",
            "--tokens=4096", "--batch-tokens=512", "--learning-rate=1e-3", "--save-every=2", "--dtype=bfloat16",
        ]  # fmt: skip

    assert start(arguments("whole")) == 0
    assert start(arguments("killed"), partial(killed_inside_a_checkpoint, "checkpoint-4", "harpe")) == -signal.SIGKILL
    assert not (workspace / "killed" / "harpe" / "model").exists()
    assert start([*arguments("killed"), "--resume"]) == 0
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (workspace / "killed/harpe/model" / name).read_bytes() == (
            workspace / "whole/harpe/model" / name
        ).read_bytes()
    logs = [(workspace / run / "harpe/stage-1/log.jsonl").read_text().splitlines() for run in ("whole", "killed")]
    assert [line.split('"tokens"')[0] for line in logs[0]] == [line.split('"tokens"')[0] for line in logs[1]]


def test_a_quickstart_killed_in_the_control_arm_resumes_to_the_same_weights(
    tmp_path: Path, start: Callable[..., int]
) -> None:
    def arguments(out: str) -> list[str]:
        return [
            "quickstart", "--length=384", "--tokens=1536", "--batch-tokens=384", "--documents=1",
            "--samples=1", "--grid-samples=0", "--dtype=float32", f"--out={tmp_path / out}",
        ]  # fmt: skip

    assert start(arguments("whole"), without_loading_again) == 0
    assert start(arguments("killed"), partial(killed_after_step, 3, "one-base")) == -signal.SIGKILL
    assert (tmp_path / "killed" / "harpe" / "model").is_dir() and not (
        tmp_path / "killed" / "one-base" / "model"
    ).exists()
    assert start(arguments("killed")) == 0
    for arm in ("yarn", "harpe", "one-base"):
        name = f"{arm}/model/model.safetensors"
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert (tmp_path / "killed" / "report" / "index.html").is_file()
