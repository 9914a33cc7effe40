"""Train a model through the stages of a method, resumable at any step."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset, SequentialSampler, Subset
from transformers import PreTrainedModel, PrinterCallback, ProgressCallback, Trainer, TrainingArguments, set_seed

from harpe.errors import HarpeError
from harpe.files import new_folder
from harpe.methods.types import Stage
from harpe.models.apply import apply_encoding
from harpe.options.training import TrainingSettings
from harpe.positions.geometry import ModelGeometry
from harpe.training.checkpoints import (
    KEPT,
    check_room,
    is_own,
    last_complete,
    load_weights,
    mark_complete,
    remove_checkpoints,
    step_of,
)
from harpe.training.loss import check_training_loss, chunked_loss
from harpe.training.memory import set_recompute
from harpe.training.outcome import check_outcome, weight_norm
from harpe.training.progress import JsonlLog, Report


class Sequences(Protocol):
    """Packed data: sequences of one length that can be cut into shorter ones (`harpe.data.packing.PackedDataset`)."""

    def __len__(self) -> int: ...

    def cut(self, length: int) -> Dataset[Any]:
        """The same tokens in sequences of `length`."""


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up and decay over `steps`, of which `done` were made by stages before. No step has a rate of 0."""

    options: TrainingSettings
    done: int
    steps: int

    def __call__(self, step: int) -> float:
        """The share of the peak learning rate at a step of this stage."""
        step, warm = step + self.done, math.ceil(self.options.warmup_share * self.steps)
        return (step + 1) / warm if step < warm else max(0.0, (self.steps - step) / max(1, self.steps - warm))


class OneDevice(TrainingArguments):
    """Arguments of a training on one device, however many there are: on several the Trainer would multiply the batch
    (DataParallel)."""

    @property
    def n_gpu(self) -> int:
        return min(1, super().n_gpu)


class StageTrainer(Trainer):
    """The Trainer with four changes: data in the order of the data set, the learning rate of our schedule, checkpoints
    that appear whole, and their weights in the model's own names.

    The Trainer saves some families (experts) in the names of the hub and, when it resumes, passes over those that the
    model does not know.
    """

    def __init__(self, schedule: Schedule, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.schedule = schedule
        self._saving: Path | None = None

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.lr_scheduler is None:
            # a plain function, because LambdaLR writes the attributes of any other object into the checkpoint
            self.lr_scheduler = LambdaLR(cast(Optimizer, optimizer or self.optimizer), lambda step: self.schedule(step))
        return self.lr_scheduler

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        # packed data are shuffled once, when they are written; every method then sees the same order, resumed or not
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder, step = Path(str(self.args.output_dir)), self.state.global_step
        name = f"checkpoint-{step}"
        with new_folder(folder / name, replace=is_own(folder / name)) as self._saving:
            super()._save_checkpoint(model, trial)
            for file in (self._saving / name).iterdir():
                file.rename(self._saving / file.name)
            (self._saving / name).rmdir()
            mark_complete(self._saving)
        self._saving = None
        remove_checkpoints(folder, before=step, keep=KEPT - 1)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._saving or self.args.output_dir)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        cast(PreTrainedModel, self.model).save_pretrained(
            str(output_dir), state_dict=state_dict, save_original_format=False
        )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_weights(cast(PreTrainedModel, model or self.model), Path(resume_from_checkpoint))


def _arguments(folder: Path, options: TrainingSettings, sequences: int, steps: int) -> OneDevice:
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder / "tensorboard")
    return OneDevice(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=options.micro_batch,
        gradient_accumulation_steps=sequences // options.micro_batch,
        learning_rate=options.learning_rate,
        optim="adamw_torch_fused",
        adam_beta1=0.9,
        adam_beta2=0.95,
        weight_decay=options.weight_decay,
        max_grad_norm=options.max_grad_norm,
        bf16=options.dtype == "bfloat16",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=options.save_every,
        report_to=["tensorboard"],
        remove_unused_columns=False,
        disable_tqdm=True,
        seed=options.seed,
        data_seed=options.seed,
        use_cpu=not torch.cuda.is_available(),
    )


def check_stages(stages: Sequence[Stage], options: TrainingSettings) -> list[int]:
    """Optimiser steps of every stage; HarpeError for stages that the budget or the lengths do not allow."""
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
                f"{step_tokens}; give more --tokens."
            )
        if step_tokens // stage.length % options.micro_batch:
            raise HarpeError(
                f"A step of stage {number} has {step_tokens // stage.length} sequences, which --micro-batch "
                f"{options.micro_batch} does not divide."
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
    report: Report | None = None,
    tell: Callable[[str], None] = lambda sentence: None,
) -> PreTrainedModel:
    """Train `model` in place through `stages` and return it.

    All stages read one stream of tokens, each where the one before ended, cut into sequences of its length: a method in
    several stages sees the tokens of one in a single stage, in the same order.

    Parameters
    ----------
    model
        Float32 weights (bfloat16 arithmetic is autocast's).
    geometry
        Of the original checkpoint.
    data
        Packed at the target length (`harpe.data.packing.PackedDataset`).
    folder
        Holds `stage-1`, `stage-2` … with checkpoints, `log.jsonl` and TensorBoard files. What is already there is
        continued: the result is the same, bit for bit on a CPU with the same number of threads, as without the
        interruption. The caller holds the lock on the run.
    tell
        Hears of a checkpoint that was damaged; the one before it is used.

    Raises
    ------
    HarpeError
        When the data are too few for the token budget, when training diverges, in the last step too, the disk is full,
        or what is not harpe's lies where a checkpoint would.
    """
    target, steps = stages[-1].length, check_stages(stages, options)
    step_tokens, seen = options.step_tokens(target), 0
    if len(data) * target < sum(steps) * step_tokens:
        raise HarpeError(
            f"Training needs {sum(steps) * step_tokens // target} sequences of {target} tokens, the corpus gives "
            f"{len(data)}. Lower --tokens or give more --data: no text is repeated unasked."
        )
    for number, (stage, count) in enumerate(zip(stages, steps, strict=True), 1):
        done = sum(steps[: number - 1])
        schedule = Schedule(options, done, sum(steps)) if options.schedule == "carried" else Schedule(options, 0, count)
        first, last = seen // stage.length, (seen + count * step_tokens) // stage.length
        seen += count * step_tokens
        apply_encoding(model, stage.encoding, geometry, stage.length, sliding_window)
        sequences = Subset(data.cut(stage.length), range(first, last))
        stage_folder, before = folder / f"stage-{number}", weight_norm(model)
        _train_stage(model, sequences, options, stage_folder, stage.length, step_tokens, count, schedule, report, tell)
        check_outcome(model, Subset(sequences, range(step_tokens // stage.length)), options, stage_folder, before)
    return model


def _train_stage(
    model: PreTrainedModel,
    sequences: Dataset[Any],
    options: TrainingSettings,
    folder: Path,
    length: int,
    step_tokens: int,
    steps: int,
    schedule: Schedule,
    report: Report | None,
    tell: Callable[[str], None],
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = last_complete(folder, tell)
    done = step_of(checkpoint) or 0 if checkpoint is not None else 0
    if checkpoint is not None:  # as after a save: the process may have been killed before it came to that
        remove_checkpoints(folder, before=done, keep=KEPT - 1)
    if checkpoint is not None and done == steps:
        load_weights(model, checkpoint)
        return
    check_room(folder, done, steps, options.save_every)
    set_seed(options.seed)
    log = JsonlLog(folder / "log.jsonl", step_tokens, report)
    set_recompute(model, options.gradient_checkpointing)
    cached = getattr(model.config, "use_cache", None)
    with chunked_loss(model):
        check_training_loss(model)
        arguments = _arguments(folder, options, step_tokens // length, steps)
        trainer = StageTrainer(schedule, model=model, args=arguments, train_dataset=sequences, callbacks=[log])
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint is not None else None)
    set_recompute(model, False)
    if cached is not None:
        model.config.use_cache = cached  # the Trainer switches it off, and a saved model would generate without a cache
