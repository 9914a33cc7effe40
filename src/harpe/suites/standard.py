"""The scores of one checkpoint by a protocol: perplexity by position, needles, and the grid."""

from __future__ import annotations

import gc
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harpe.distributed.processes import ALONE, Processes
from harpe.evaluation.identity import identity_of
from harpe.evaluation.run import EvaluationProtocol, HeldOut, check_protocol, evaluate_model, measurement
from harpe.models.head import check_head
from harpe.models.load import load_model, to_accelerator
from harpe.models.vocabulary import check_vocabulary
from harpe.reporter import Reporter
from harpe.runs.overlap import training_overlap


def evaluate_checkpoint(
    name: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    held_out: HeldOut,
    protocol: EvaluationProtocol,
    folder: Path,
    dtype: str,
    reporter: Reporter,
    *,
    title: str = "",
    revision: str | None = None,
    ranks: Processes = ALONE,
) -> None:
    """Load one model (float32 weights) and write its scores into `folder`, unless they are all there; by all processes
    of a ranks.

    Raises HarpeError where the folder holds scores of another protocol, other texts or another model.
    """
    identity = ranks.broadcast_from_rank0(lambda: identity_of(name, revision, tokenizer))
    if not ranks.broadcast_from_rank0(
        lambda: check_protocol(folder, protocol, measurement(protocol, held_out, dtype, identity))
    ):
        return
    overlap = ranks.broadcast_from_rank0(lambda: training_overlap(name, tokenizer, held_out, reporter))

    def load() -> PreTrainedModel:
        model = load_model(name, torch.float32, revision)
        check_vocabulary(model, tokenizer, str(name))
        return to_accelerator(check_head(model, str(name)))

    model = ranks.on_every_rank(load)
    evaluate_model(
        model,
        tokenizer,
        held_out,
        protocol,
        folder,
        dtype=dtype,
        identity=identity,
        overlap=overlap,
        ranks=ranks,
        progress=lambda what, done, total: reporter.progress(
            f"{what}{title and ': ' + title}", done, total, ranks.note
        ),
        tell=reporter.say,
    )
    del model
    gc.collect()
