"""What is checked and settled before hours of work begin, in one way for every verb that trains."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from harpe.data.packed import PackedDataset
from harpe.distributed.layout import ONE_PROCESS, Layout
from harpe.distributed.processes import ALONE, Processes
from harpe.errors import HarpeError
from harpe.models.geometry import text_config
from harpe.models.key_tokens import step_of
from harpe.options.shared import TextOptions
from harpe.options.training import TrainingSettings
from harpe.planning.time import sequence_operations
from harpe.planning.trace import Tracer
from harpe.reporter import Reporter
from harpe.runs.directory import check_disk, resume_dtype, size_of_weights, write_environment
from harpe.runs.source import Source
from harpe.runs.texts import Say, packed
from harpe.training.lora import adapt, frozen_in_bfloat16
from harpe.training.loss import chunked_loss
from harpe.training.memory import set_recompute
from harpe.training.sequence_parallel import sequence_parallel
from harpe.training.tiles import mlp_tiles

PIECE = 1024
"""Tokens of a sequence that a processor's speed is measured on."""


def reading_seconds(config: PreTrainedConfig, length: int, per_token: float, *reads: Mapping[int, int]) -> float:
    """Of forward passes on tokens, by the length of the texts that they are read in; a token of a text of `length`
    takes `per_token` seconds, and the operations of the others are counted."""
    tracer = Tracer(config)

    def operations(size: int) -> float:
        """Of a token."""
        return sequence_operations(tracer, size) / size

    tokens = sum(count * operations(size) for each in reads for size, count in each.items())
    return per_token * tokens / operations(length)


def settle_training(options: Any, run: Path, **settings: Any) -> tuple[TrainingSettings, str]:
    """The settings of training, and why in their dtype; a run that was begun goes on in its own.

    Parameters
    ----------
    options
        Options that have some of the fields of `TrainingOptions`, and `dtype`.
    settings
        Those that the options do not have, or that replace theirs.
    """
    dtype, reason = resume_dtype(options.dtype, run / "plan.json", "training", "dtype")
    return TrainingSettings.of(options, **settings, dtype=dtype), reason


def tell_environment(run: Path, reporter: Reporter) -> None:
    """Keep versions and machine beside the run, and say where they are others than before."""
    for sentence in write_environment(run):
        reporter.say(sentence)


def training_texts(
    folder: Path,
    name: str,
    source: Source,
    training: TrainingSettings,
    length: int,
    *,
    tokens: int,
    reading: TextOptions,
    going_on: bool,
    say: Say,
) -> PackedDataset:
    """The texts `name`, packed in `folder`; of a run that goes on, read whole and found to be what they were.

    Parameters
    ----------
    tokens
        As many at least, where the texts have them; 0: all there are.
    """
    data = packed(
        folder,
        name,
        source.tokenizer,
        length,
        text_field=reading.text_field,
        tokens=tokens,
        seed=training.seed,
        split_special_tokens=reading.split_special_tokens,
        say=say,
    )
    if going_on:
        data.verify()
    return data


def check_budget(options: TrainingSettings, data: PackedDataset) -> None:
    """Refuse settings that cannot work, and a budget larger than the data, before anything is trained."""
    options.check(data.length)
    needed = options.steps(data.length) * options.step_tokens(data.length)
    if needed > data.tokens:
        raise HarpeError(
            f"--tokens {options.tokens} asks for more than the data have: {data.tokens} tokens in whole sequences of "
            f"{data.length}. Lower --tokens or give more --data: no text is repeated unasked."
        )


def check_space(run: Path, parameters: int, rows: int = 1, trained: int | None = None) -> None:
    """Room for two checkpoints (float32 weights that are `trained`, all by default, and two moments), one being
    written, and the model, for every trained row; less what a run that goes on has of them."""
    checkpoints = 3 * 3 * (parameters if trained is None else trained)
    needed = rows * 4 * (checkpoints + parameters) - size_of_weights(run)
    check_disk(run, max(0, needed) + 50_000_000, "Training with its checkpoints")


def seconds_per_token(
    model: PreTrainedModel,
    options: TrainingSettings,
    length: int,
    layout: Layout = ONE_PROCESS,
    ranks: Processes = ALONE,
) -> tuple[float, float]:
    """Seconds a token of training and of reading, of all processes together, measured on random tokens; the model stays
    as it is, but for adapters that it is to be trained by.

    A processor, which is busy with few tokens already, reads `PIECE` of a longer sequence, and the operations of the
    whole are counted.
    """
    adapt(model, options)
    vocabulary = int(text_config(model.config).vocab_size)

    def sized(tokens: int) -> tuple[dict[str, torch.Tensor], float]:
        """Inputs, and what a token of a whole sequence costs over one of theirs."""
        size, more = tokens // layout.sequence_parallel, 1.0
        if model.device.type == "cpu" and size == tokens > PIECE:
            tracer, size = Tracer(model.config), PIECE
            more = sequence_operations(tracer, tokens) / tokens / (sequence_operations(tracer, size) / size)
        ids = torch.randint(0, vocabulary, (options.micro_batch, size), generator=torch.Generator().manual_seed(0))
        ids = ids.to(model.device)
        batch = {"input_ids": ids, "shift_labels": ids}
        if layout.sequence_parallel > 1:
            first = size * (ranks.rank % layout.sequence_parallel)
            batch["position_ids"] = torch.arange(first, first + size, device=ids.device).expand(ids.shape)
        return batch, more

    trains = sized(options.sequence(length))
    reads = trains if options.sequence(length) == length else sized(length)

    def timed(training: bool) -> float:
        batch, more = trains if training else reads
        start = time.perf_counter()
        with ExitStack() as stack:
            stack.enter_context(chunked_loss(model))
            stack.enter_context(sequence_parallel(model, layout))
            stack.enter_context(mlp_tiles(model, layout.mlp_tile))
            stack.enter_context(frozen_in_bfloat16(model, options))
            stack.enter_context(torch.set_grad_enabled(training))
            with torch.autocast(model.device.type, torch.bfloat16, enabled=options.dtype == "bfloat16"):
                loss = model(**batch).loss
            if training:
                loss.backward()
        loss.item()
        return more * max(ranks.gather(time.perf_counter() - start)) / (batch["input_ids"].numel() * layout.world)

    was_training = model.training
    model.train()
    set_recompute(model, options.gradient_checkpointing, layout.offload)
    timed(True)  # the first pass allocates and picks kernels
    train = timed(True)
    set_recompute(model, False)
    model.train(was_training)
    model.zero_grad(set_to_none=True)
    if model.device.type != "cpu":
        timed(False)  # as above: kernels are compiled for a pass without gradients, too
    read = timed(False)
    context = options.longce_context  # windows of it and a step, each a step farther
    return train + (read * (context + step_of(context)) / step_of(context) if context else 0.0), read
