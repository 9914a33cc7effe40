"""Train a model through the stages of a method, resumable at any step."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.utils.data import Dataset, SequentialSampler, Subset
from transformers import PreTrainedModel, PrinterCallback, ProgressCallback, Trainer, TrainingArguments, set_seed

from harpe.errors import HarpeError
from harpe.methods.types import ModelGeometry, Stage
from harpe.models.apply import apply_encoding
from harpe.training.checkpoints import last_complete, mark_complete, step_of
from harpe.training.loss import chunked_loss
from harpe.training.memory import set_recompute
from harpe.training.options import TrainingOptions
from harpe.training.progress import JsonlLog, Report


class StageTrainer(Trainer):
    """The Trainer with two changes: data in the order of the data set, and checkpoints that are marked when whole."""

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        # packed data are shuffled once, when they are written; every method then sees the same order, resumed or not
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            mark_complete(Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}")


def _arguments(folder: Path, options: TrainingOptions, length: int, steps: int) -> TrainingArguments:
    sequences = options.step_tokens(length) // length
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder / "tensorboard")
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=options.micro_batch,
        gradient_accumulation_steps=sequences // options.micro_batch,
        learning_rate=options.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=math.ceil(options.warmup_share * steps),
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
        save_total_limit=2,  # two, so that a whole one is left while the next is being written
        report_to=["tensorboard"],
        remove_unused_columns=False,
        disable_tqdm=True,
        seed=options.seed,
        data_seed=options.seed,
        use_cpu=not torch.cuda.is_available(),
    )


def train_stages(
    model: PreTrainedModel,
    geometry: ModelGeometry,
    stages: list[Stage],
    data: dict[int, Dataset[Any]],
    options: TrainingOptions,
    folder: Path,
    *,
    sliding_window: str = "keep",
    report: Report | None = None,
) -> PreTrainedModel:
    """Train `model` in place through `stages` and return it.

    Parameters
    ----------
    model
        Float32 weights (bfloat16 arithmetic is autocast's).
    geometry
        Of the original checkpoint.
    data
        A packed data set for every stage length.
    folder
        Holds `stage-1`, `stage-2` … with checkpoints, `log.jsonl` and TensorBoard files. What is already there is continued: the
        result is the same, bit for bit on a CPU with the same number of threads, as without the interruption.

    Raises
    ------
    HarpeError
        When the data are too few for the token budget, or the loss stops being finite.
    """
    offset: dict[int, int] = {}
    for number, stage in enumerate(stages, 1):
        steps = options.steps(stage.length, stage.share)
        wanted = steps * options.step_tokens(stage.length) // stage.length
        first = offset.get(stage.length, 0)
        sequences = data[stage.length]
        if len(sequences) < first + wanted:  # type: ignore[arg-type]
            raise HarpeError(
                f"Stage {number} needs {wanted} sequences of {stage.length} tokens, the corpus gives {len(sequences) - first}. "  # type: ignore[arg-type]
                "Lower --tokens or give more --data: no text is repeated unasked."
            )
        offset[stage.length] = first + wanted
        apply_encoding(model, stage.encoding, geometry, stage.length, sliding_window)
        _train_stage(
            model,
            Subset(sequences, range(first, first + wanted)),
            options,
            folder / f"stage-{number}",
            stage.length,
            steps,
            report,
        )
    return model


def _train_stage(
    model: PreTrainedModel,
    sequences: Dataset[Any],
    options: TrainingOptions,
    folder: Path,
    length: int,
    steps: int,
    report: Report | None,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = last_complete(folder)
    if checkpoint is not None and step_of(checkpoint) == steps:
        missing, _ = model.load_state_dict(load_file(checkpoint / "model.safetensors"), strict=False)
        tied = set(getattr(model, "_tied_weights_keys", None) or ())
        if set(missing) - tied:
            raise HarpeError(f"{checkpoint} lacks the weights {sorted(set(missing) - tied)[:3]}; delete it and resume.")
        model.tie_weights()
        return
    set_seed(options.seed)
    log = JsonlLog(folder / "log.jsonl", options.step_tokens(length), report)
    set_recompute(model, options.gradient_checkpointing)
    cached = getattr(model.config, "use_cache", None)
    with chunked_loss(model):
        trainer = StageTrainer(model=model, args=_arguments(folder, options, length, steps), train_dataset=sequences, callbacks=[log])
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint is not None else None)
    set_recompute(model, False)
    if cached is not None:
        model.config.use_cache = cached  # the Trainer switches it off, and a saved model would generate without a cache
    last = trainer.state.log_history[-2]["loss"] if len(trainer.state.log_history) > 1 else float("nan")
    if not math.isfinite(last):
        raise HarpeError(f"The loss became {last} in {folder}: training diverged. Lower --learning-rate.")
