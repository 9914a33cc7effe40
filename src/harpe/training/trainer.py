"""The Hugging Face Trainer, as a stage uses it: order, schedule, checkpoints."""

from __future__ import annotations

import math
import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import SequentialSampler
from transformers import PreTrainedModel, Trainer, TrainingArguments

from harpe.distributed.layout import Layout
from harpe.distributed.processes import Processes
from harpe.files import new_folder
from harpe.options.training import TrainingSettings
from harpe.training.checkpoints import KEPT, is_own, mark_complete, remove_checkpoints
from harpe.training.state import load_model_state, load_optimizer_state, save_state


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
    """The Trainer with three changes: data in the order of the data set, the learning rate of our schedule, and
    checkpoints of our own (`harpe.training.state`) that appear whole."""

    def __init__(self, schedule: Schedule, layout: Layout, ranks: Processes, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.schedule, self.layout, self.ranks = schedule, layout, ranks

    def create_optimizer(self, model: Any = None) -> Any:
        """The Trainer's, without groups that hold nothing, which torch cannot read back from a checkpoint: that of
        norms and biases is empty where a family trains none, or adapters are trained alone."""
        optimizer: Any = super().create_optimizer(model)
        optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.lr_scheduler is None:
            self.lr_scheduler = LambdaLR(cast(Optimizer, optimizer or self.optimizer), lambda step: self.schedule(step))
        return self.lr_scheduler

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        # packed data are shuffled once, when they are written; every method then sees the same order, resumed or not
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder, ranks = Path(str(self.args.output_dir)), self.ranks
        target = folder / f"checkpoint-{self.state.global_step}"
        with ExitStack() as stack:
            making = new_folder(target, replace=is_own(target))
            place = ranks.broadcast_from_rank0(lambda: stack.enter_context(making))
            ranks.on_every_rank(lambda: save_state(self._model(), self._plain_optimizer(), place, self.layout))
            if ranks.first:
                self.state.save_to_json(str(place / "trainer_state.json"))
            ranks.wait()
            mark_complete(place, ranks)
            ranks.broadcast_from_rank0(stack.close)
        step = self.state.global_step
        ranks.broadcast_from_rank0(lambda: remove_checkpoints(folder, before=step, keep=KEPT - 1))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_model_state(model or self._model(), Path(resume_from_checkpoint), self.layout)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        load_optimizer_state(self._model(), self._plain_optimizer(), Path(checkpoint), self.layout)
        # the learning rate is a function of the step alone
        scheduler, step = cast(LambdaLR, self.lr_scheduler), self.state.global_step
        rates = [rate * self.schedule(step) for rate in scheduler.base_lrs]
        scheduler.load_state_dict({**scheduler.state_dict(), "last_epoch": step, "_last_lr": rates})
        for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Nothing draws: the order is that of the data, and dropout is off."""

    def _model(self) -> PreTrainedModel:
        return cast(PreTrainedModel, self.model)

    def _plain_optimizer(self) -> Optimizer:
        return cast(Optimizer, getattr(self.optimizer, "optimizer", self.optimizer))  # accelerate wraps it


def arguments(folder: Path, options: TrainingSettings, layout: Layout, sequences: int, steps: int) -> OneDevice:
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder / "tensorboard")
    return OneDevice(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=options.micro_batch,
        gradient_accumulation_steps=layout.accumulation(sequences, options.micro_batch),
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
        save_only_model=True,  # the Trainer's word for leaving the moments to us
        report_to=["tensorboard"],
        remove_unused_columns=False,
        disable_tqdm=True,
        seed=options.seed,
        data_seed=options.seed,
        use_cpu=not torch.cuda.is_available(),
    )
