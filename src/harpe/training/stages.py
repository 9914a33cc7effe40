"""Train a model through the stages of a method, resumable at any step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch.utils.data import Dataset, Subset
from transformers import PreTrainedModel, PrinterCallback, ProgressCallback, TrainingArguments, set_seed

from harpe.distributed.layout import ONE_PROCESS, Layout, check_layout
from harpe.distributed.processes import ALONE, Processes
from harpe.errors import HarpeError
from harpe.methods.types import Stage
from harpe.models.apply import apply_encoding
from harpe.options.training import TrainingSettings
from harpe.positions.geometry import ModelGeometry
from harpe.training.checkpoints import KEPT, check_room, last_complete, remove_checkpoints, step_of
from harpe.training.documents import Documents, check_document_mask, check_documents, inside_documents
from harpe.training.longce import check_longce
from harpe.training.lora import adapt, check_lora, frozen_in_bfloat16, merge
from harpe.training.loss import check_training_loss, chunked_loss
from harpe.training.memory import set_recompute
from harpe.training.outcome import check_outcome, weight_norm
from harpe.training.pieces import Pieces
from harpe.training.pose import SkippedPositions, check_pose_length, check_skips, skipped_positions
from harpe.training.progress import JsonlLog, Report
from harpe.training.sequence_parallel import (
    check_exchange,
    check_sequence_parallel,
    check_shared_stages,
    sequence_parallel,
)
from harpe.training.state import load_model_state
from harpe.training.tiles import check_tiles, mlp_tiles
from harpe.training.trainer import Schedule, StageTrainer, arguments


class Sequences(Protocol):
    """Packed data: sequences of one length that can be cut into shorter ones (`harpe.data.packed.PackedDataset`)."""

    def __len__(self) -> int: ...

    def cut(self, length: int) -> Dataset[Any]:
        """The same tokens in sequences of `length`."""


def check_stages(stages: Sequence[Stage], options: TrainingSettings, layout: Layout = ONE_PROCESS) -> list[int]:
    """Optimiser steps of every stage; HarpeError for stages that the budget, the lengths or the layout do not allow."""
    target = stages[-1].length
    options.check(target)
    steps, step_tokens = options.stage_steps(target, [stage.share for stage in stages]), options.step_tokens(target)
    for number, (stage, count) in enumerate(zip(stages, steps, strict=True), 1):
        if target % stage.length:
            raise HarpeError(
                f"Stage {number} has sequences of {stage.length} tokens, which do not divide the target of {target}."
            )
        if count < 1:
            raise HarpeError(
                f"Stage {number} has {stage.share:.3g} of {options.tokens} tokens, less than one step of "
                f"{step_tokens}; give more --tokens (without, all of --data are taken), or a smaller --batch-tokens."
            )
        size = options.sequence(stage.length)
        if stage.length % size:
            raise HarpeError(f"--pose-length {size} does not divide the {stage.length} tokens of stage {number}.")
        if step_tokens % size:  # the stage has shorter sequences than the ones that steps are counted in
            raise HarpeError(
                f"--pose-length {options.pose_length} is no multiple of the {stage.length} tokens of stage {number}."
            )
        if step_tokens // size % options.micro_batch:
            raise HarpeError(
                f"A step of stage {number} has {step_tokens // size} sequences, which --micro-batch "
                f"{options.micro_batch} does not divide."
            )
    check_lora(options.adapters)
    if options.adapters and layout.sharded:
        raise HarpeError(
            "--lora-rank trains by one process: the weights of several are sharded before adapters can join them. "
            "Start one process, or leave the option out."
        )
    sequences = [step_tokens // options.sequence(stage.length) for stage in stages]
    check_layout(layout, sequences, options.micro_batch)
    check_shared_stages(stages, layout.sequence_parallel)
    check_document_mask(options.document_mask, list(stages), layout.sequence_parallel)
    check_pose_length(options, list(stages), layout.sequence_parallel)
    check_longce(options, list(stages), layout.sequence_parallel)
    if layout.offload and not options.gradient_checkpointing:
        raise HarpeError(
            "--offload-activations moves what recomputed layers start from; --gradient-checkpointing false has none."
        )
    return steps


def train_stages(
    model: PreTrainedModel,
    geometry: ModelGeometry,
    stages: Sequence[Stage],
    data: Sequences,
    options: TrainingSettings,
    folder: Path,
    *,
    sliding_window: str = "keep",
    layout: Layout = ONE_PROCESS,
    ranks: Processes = ALONE,
    report: Report | None = None,
    tell: Callable[[str], None] = lambda sentence: None,
) -> PreTrainedModel:
    """Train `model` in place through `stages` and return it, with its adapters merged where it was trained by some.

    All stages read one stream of tokens, each where the one before ended, cut into sequences of its length: a method in
    several stages sees the tokens of one in a single stage, in the same order. So do all layouts.

    Parameters
    ----------
    model
        Float32 weights (bfloat16 arithmetic is autocast's, or FSDP's).
    geometry
        Of the original checkpoint.
    data
        Packed at the target length (`harpe.data.packed.PackedDataset`).
    folder
        Holds `stage-1`, `stage-2` … with checkpoints, `log.jsonl` and TensorBoard files. What is already there is
        continued, by any layout: with the same one the result is the same as without the interruption, bit for bit on a
        CPU with the same number of threads. The caller holds the lock on the run.
    layout, ranks
        How several processes share the training, each of which calls this with the model that it has loaded by
        `layout.distributed_config`.
    tell
        Hears of a checkpoint that was damaged; the one before it is used.

    Raises
    ------
    HarpeError
        When the data are too few for the token budget, when training diverges, in the last step too, the disk is full,
        or what is not harpe's lies where a checkpoint would.
    """
    target, steps = stages[-1].length, check_stages(stages, options, layout)
    step_tokens, seen = options.step_tokens(target), 0
    if len(data) * target < sum(steps) * step_tokens:
        raise HarpeError(
            f"Training needs {sum(steps) * step_tokens // target} sequences of {target} tokens, the corpus gives "
            f"{len(data)}. Lower --tokens or give more --data: no text is repeated unasked."
        )
    adapt(model, options)
    for number, (stage, count) in enumerate(zip(stages, steps, strict=True), 1):
        done = sum(steps[: number - 1])
        schedule = Schedule(options, done, sum(steps)) if options.schedule == "carried" else Schedule(options, 0, count)
        size = options.sequence(stage.length)
        first, last = seen // size, (seen + count * step_tokens) // size
        seen += count * step_tokens
        apply_encoding(model, stage.encoding, geometry, stage.length, sliding_window)
        # also of attentions that methods bring, which know nothing of pieces
        check_sequence_parallel(model, layout.sequence_parallel, stage.length)
        cut: Dataset[Any] = data.cut(size)
        if options.document_mask != "none":
            cut = Documents(cut, options.document_mask)
        if options.pose_length:
            cut = SkippedPositions(cut, stage.length, options.seed)
        pieces = Pieces(Subset(cut, range(first, last)), layout.sequence_parallel, options.micro_batch)
        place, a_step = folder / f"stage-{number}", step_tokens // size
        before = weight_norm(model)
        log = JsonlLog(place / "log.jsonl", step_tokens, report)
        arguments_ = arguments(place, options, layout, a_step, count)
        with skipped_positions(model, options.pose_length, stage.length):
            check_skips(model, options.pose_length)
            _train_stage(model, pieces, arguments_, options, place, count, schedule, log, layout, ranks, tell)
            check_outcome(model, pieces, a_step, options, place, before, layout, ranks)
    merge(model)
    return model


def _train_stage(
    model: PreTrainedModel,
    pieces: Pieces,
    arguments_: TrainingArguments,
    options: TrainingSettings,
    folder: Path,
    steps: int,
    schedule: Schedule,
    log: JsonlLog,
    layout: Layout,
    ranks: Processes,
    tell: Callable[[str], None],
) -> None:
    checkpoint = ranks.broadcast_from_rank0(lambda: _begin(folder, steps, options.save_every, tell))
    if checkpoint is not None and step_of(checkpoint) == steps:
        ranks.on_every_rank(lambda: load_model_state(model, checkpoint, layout))
        return
    set_seed(options.seed)
    set_recompute(model, options.gradient_checkpointing, layout.offload)
    before = {key: value for key, value in vars(model.config).items() if key == "use_cache"}
    with chunked_loss(model, options.longce_context):
        check_training_loss(model)
        check_exchange(model, layout)
        check_tiles(model, layout.mlp_tile)
        check_documents(model, options.document_mask)
        with (
            sequence_parallel(model, layout),
            mlp_tiles(model, layout.mlp_tile),
            inside_documents(model, options.document_mask),
            frozen_in_bfloat16(model, options),
        ):
            trainer = StageTrainer(
                schedule, layout, ranks, model=model, args=arguments_, train_dataset=pieces, callbacks=[log]
            )
            trainer.remove_callback(PrinterCallback)
            trainer.remove_callback(ProgressCallback)
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint is not None else None)
    set_recompute(model, False)
    vars(model.config).pop("use_cache", None)  # the Trainer switches it off: saved, it would generate without a cache
    vars(model.config).update(before)


def _begin(folder: Path, steps: int, save_every: int, tell: Callable[[str], None]) -> Path | None:
    """The checkpoint that a stage goes on from, if any; what is left of a killed save is removed."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = last_complete(folder, tell)
    done = step_of(checkpoint) or 0 if checkpoint is not None else 0
    if checkpoint is not None:  # as after a save: the process may have been killed before it came to that
        remove_checkpoints(folder, before=done, keep=KEPT - 1)
    if done < steps:
        check_room(folder, done, steps, save_every)
    return checkpoint
