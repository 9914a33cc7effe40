"""What training tells while it runs: a JSONL file and one line on the terminal."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from harpe.errors import HarpeError, OtherFailed
from harpe.files import append_jsonl, read_jsonl, write_jsonl

Report = Callable[[int, int, dict[str, Any]], None]
"""Called with (step, steps, row) after every logged step."""


class JsonlLog(TrainerCallback):
    """Appends one row a logged step to `log.jsonl`: step, loss, learning_rate, grad_norm, tokens, seconds. Stops where
    the loss or the norm of the gradient is not finite.

    When a run is resumed, rows after the checkpoint are dropped: they are computed again.
    """

    def __init__(self, path: Path, step_tokens: int, report: Report | None = None) -> None:
        self.path, self.step_tokens, self.report = path, step_tokens, report
        self.began, self.before = time.monotonic(), 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        rows = [row for row in read_jsonl(self.path) if row["step"] <= state.global_step] if self.path.exists() else []
        write_jsonl(self.path, rows)
        self.before = rows[-1]["seconds"] if rows else 0.0
        self.began = time.monotonic()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not logs or "loss" not in logs:
            return
        row = {"step": state.global_step, "loss": float(logs["loss"]), "learning_rate": float(logs["learning_rate"])}
        if "grad_norm" in logs:
            row["grad_norm"] = float(logs["grad_norm"])
        row["tokens"] = state.global_step * self.step_tokens
        row["seconds"] = round(self.before + time.monotonic() - self.began, 2)
        if state.is_world_process_zero:
            append_jsonl(self.path, row)
        for key, title in (("loss", "loss"), ("grad_norm", "norm of the gradient")):
            if not math.isfinite(row.get(key, 0.0)):
                failure = HarpeError if state.is_world_process_zero else OtherFailed
                raise failure(
                    f"The {title} became {row[key]} at step {row['step']} in {self.path.parent}: training diverged. "
                    "Lower --learning-rate."
                )
        if self.report is not None and state.is_world_process_zero:
            self.report(state.global_step, state.max_steps, row)
