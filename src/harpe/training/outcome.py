"""Whether a trained model is one: what the last step did shows in no loss of the training itself."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import default_collate
from transformers import PreTrainedModel

from harpe.distributed.layout import Layout
from harpe.distributed.processes import Processes
from harpe.errors import HarpeError
from harpe.files import read_jsonl
from harpe.options.training import TrainingSettings
from harpe.training.documents import inside_documents
from harpe.training.loss import chunked_loss
from harpe.training.pieces import Pieces
from harpe.training.sequence_parallel import sequence_parallel

GROWN = 10.0
"""Weights whose norm has grown this many times are not trained any more; pretraining moves it by a few percent."""
WORSE = 1.0
"""Nats by which the loss of the first step's sequences may have risen: training lowers it."""


@torch.no_grad()
def weight_norm(model: PreTrainedModel) -> float:
    """Euclidean norm of all weights together; not finite where a weight, or the square of one, is not."""
    norm: Any = torch.nn.utils.get_total_norm(list(model.parameters()))
    return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)


@torch.no_grad()
def check_outcome(
    model: PreTrainedModel,
    pieces: Pieces,
    sequences: int,
    options: TrainingSettings,
    folder: Path,
    before: float,
    layout: Layout,
    ranks: Processes,
) -> None:
    """Look at the weights and at the loss of the first step's sequences after the last step of a stage.

    Parameters
    ----------
    pieces
        What the stage was trained on.
    sequences
        Of a step.
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
    training, size = model.training, options.micro_batch
    batches = range(sequences * layout.sequence_parallel // size)
    model.eval()
    total, targets = 0.0, 0
    with (
        chunked_loss(model, options.longce_context),
        sequence_parallel(model, layout),
        inside_documents(model, options.document_mask),
        torch.autocast(model.device.type, torch.bfloat16, enabled=options.dtype == "bfloat16"),
    ):
        for number in ranks.share(batches):  # as accelerate deals them out
            batch = default_collate([pieces[i] for i in range(number * size, (number + 1) * size)])
            batch = {key: value.to(model.device) for key, value in batch.items()}
            total += float(model(**batch, num_items_in_batch=1).loss)
            targets += int((batch["shift_labels"] != -100).sum())
    model.train(training)
    totals = ranks.gather((total, targets))
    if not any(count for _, count in totals):
        return  # where a method's shorter sequences cut all answers off from what they answer
    first = ranks.broadcast_from_rank0(lambda: _first_loss(folder / "log.jsonl"))
    last = sum(losses for losses, _ in totals) / sum(count for _, count in totals)
    if not math.isfinite(last) or last > first + WORSE:
        raise HarpeError(f"The loss of the first step's texts went from {first:.4g} to {last:.4g} {diverged}")


def _first_loss(log: Path) -> float:
    """Of the texts that `check_outcome` reads again; infinite where somebody has deleted what was logged of them."""
    rows = read_jsonl(log) if log.is_file() else []
    return next((float(row["loss"]) for row in rows if row["step"] == 1), math.inf)
