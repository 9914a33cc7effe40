"""Whether a trained model is one: what the last step did shows in no loss of the training itself."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel

from harpe.errors import HarpeError
from harpe.files import read_jsonl
from harpe.options.training import TrainingSettings
from harpe.training.loss import chunked_loss

GROWN = 10.0
"""Weights whose norm has grown this many times are not trained any more; pretraining moves it by a few percent."""
WORSE = 1.0
"""Nats by which the loss of the first step's sequences may have risen: training lowers it."""


@torch.no_grad()
def weight_norm(model: PreTrainedModel) -> float:
    """Euclidean norm of all weights together; not finite where a weight, or the square of one, is not."""
    return float(torch.nn.utils.get_total_norm(list(model.parameters())))


@torch.no_grad()
def check_outcome(
    model: PreTrainedModel, sequences: Dataset[Any], options: TrainingSettings, folder: Path, before: float
) -> None:
    """Look at the weights and at the loss of the first step's sequences after the last step of a stage.

    Parameters
    ----------
    sequences
        Those of the stage's first step.
    folder
        Of the stage, with the log.
    before
        `weight_norm` before the stage.

    Raises
    ------
    HarpeError
        Where weights are not finite or their norm is GROWN times what it was, or where the loss is not finite or WORSE
        than it was at the first step.
    """
    diverged = f"after the last step in {folder}: training diverged, and the model is not saved. Lower --learning-rate."
    norm = weight_norm(model)
    if not norm < GROWN * before:
        raise HarpeError(f"The norm of all weights went from {before:.4g} to {norm:.4g} {diverged}")
    training, losses = model.training, []
    model.eval()
    with chunked_loss(model), torch.autocast(model.device.type, torch.bfloat16, enabled=options.dtype == "bfloat16"):
        for batch in DataLoader(sequences, batch_size=options.micro_batch):
            losses.append(float(model(**{key: value.to(model.device) for key, value in batch.items()}).loss))
    model.train(training)
    first, last = float(read_jsonl(folder / "log.jsonl")[0]["loss"]), sum(losses) / len(losses)
    if not math.isfinite(last) or last > first + WORSE:
        raise HarpeError(f"The loss of the first step's texts went from {first:.4g} to {last:.4g} {diverged}")
