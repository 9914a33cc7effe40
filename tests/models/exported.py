"""Exporting tiny models and asking a process without harpe about them."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

import harpe

HERE = Path(__file__).parent


def extended(model: PreTrainedModel, bases: list[float] | None, length: int = 4096, **options: Any) -> PreTrainedModel:
    """The model with bases per head, or with one base where `bases` is None."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if bases is None:
            return harpe.apply(model, "abf", length=length, base=5e5, **options)
        return harpe.apply(model, "harpe", length=length, bases=bases, **options)


def environment(home: Path) -> dict[str, str]:
    """An own cache of remote code, no network, no path to harpe."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PYTHONPATH"))}
    return {**kept, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def ask(root: Path, questions: dict[str, dict[str, Any]], python: str = sys.executable) -> dict[str, Any]:
    """What a stranger's process answers about the checkpoints in `root`."""
    torch.save(questions, root / "questions.pt")
    command = [python, "-I", str(HERE / "stranger.py"), str(root), str(torch.get_num_threads())]
    done = subprocess.run(command, env=environment(root / "home"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(torch.load(root / "answers.pt", weights_only=True))
