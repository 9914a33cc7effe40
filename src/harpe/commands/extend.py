"""Extend a checkpoint: check, plan, train, save."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from harpe.bases.ranges import base_range
from harpe.data.packing import PackedDataset, is_packed
from harpe.data.special_tokens import reading_tokenizer
from harpe.distributed.processes import refuse_several
from harpe.options.extend import ExtendOptions
from harpe.options.training import TrainingSettings
from harpe.reporter import Reporter
from harpe.runs.decided import model_facts, pinned_revision, settled_plan, settled_row
from harpe.runs.directory import held, open_run, removed_on_refusal
from harpe.runs.head_distances import measured_distances
from harpe.runs.plan import Plan, plan_text
from harpe.runs.preflight import (
    check_budget,
    check_space,
    seconds_per_token,
    settle_training,
    tell_environment,
    training_texts,
)
from harpe.runs.rows import Row, extended_row, make_row
from harpe.runs.source import Source, open_source
from harpe.runs.train import train_row
from harpe.training.stages import check_stages

FEW_STEPS = 100
"""Below this the plan points to --range short. The range study (docs/choosing-bases.md) has 16 and 32 steps; the bound
is a guess."""


def extend(options: ExtendOptions, reporter: Reporter | None = None) -> Path:
    """Extend a model's context in one stage; returns the folder of the extended model.

    Raises
    ------
    HarpeError
        For bad options or input, before any work starts; when the disk is full; when training diverges.
    """
    refuse_several("harpe extend", "it trains on one device.")
    reporter, run = reporter or Reporter(), Path(options.out)
    with held(run):
        open_run(run, options, options.resume)
        with removed_on_refusal(run, unless=options.resume):
            source, row, data, training = _planned(options, run, reporter)
        target = train_row(run / row.name, row, source, data, training, options.length, reporter)
    reporter.say(
        f"The extended model is in {target}. transformers loads it after `import harpe; harpe.register()`; "
        f"`harpe export {run} --out FOLDER` writes it so that it loads without harpe."
    )
    return target


def _planned(
    options: ExtendOptions, run: Path, reporter: Reporter
) -> tuple[Source, Row, PackedDataset, TrainingSettings]:
    """Check everything, decide what the run is or read back what it decided when it began, and tell the plan."""
    revision = pinned_revision(run, options.method, options.revision)
    source = open_source(
        options.model, options.length, revision, options.tokenizer, options.original_length, options.sliding_window
    )
    notes = list(source.notes)

    def head_distances() -> list[list[float]]:
        tokenizer = reading_tokenizer(source.tokenizer, options.split_special_tokens)
        found, note = measured_distances(
            source.load(), tokenizer, options.data, options.text_field, source.geometry.original_length
        )
        notes.append(note)
        return found

    bases = base_range(source.geometry, options.length, options.min, options.max, options.range)
    facts = model_facts(options.model, revision, source.geometry)
    row = settled_row(run, options.method, facts, lambda: extended_row(options, source.geometry, head_distances), notes)
    model = source.load()
    parameters = model.num_parameters()
    check_space(run, parameters)
    training, reason = settle_training(options, run, tokens=options.tokens or sys.maxsize, seed=options.seed)
    check_stages(row.stages, training)
    tell_environment(run, reporter)
    reporter.say(
        "Checking the prepared texts." if is_packed(options.data) else "Reading and packing the training texts."
    )
    data = training_texts(
        run / "data" / str(options.length),
        options.data,
        source,
        training,
        options.length,
        tokens=options.tokens,
        reading=options,
        going_on=options.resume,
        say=reporter.say,
    )
    training = replace(training, tokens=options.tokens or data.tokens)
    check_budget(training, data)
    plan = Plan(
        title=f"{options.model} to {options.length} tokens",
        model=options.model,
        revision=options.revision,
        geometry=source.geometry,
        parameters=parameters,
        length=options.length,
        bases=bases,
        rows=[make_row("none", source.geometry, options.length, name="base"), row],
        training=training,
        dtype_reason=reason,
        data=data,
        notes=[*notes, *_advice(options, training)],
    )
    per_token, _ = seconds_per_token(model, training, options.length)
    del model
    settled = settled_plan(run, plan.as_dict())
    reporter.say(plan_text(settled, per_token * settled["training"]["tokens"]))
    return source, row, data, training


def _advice(options: ExtendOptions, training: TrainingSettings) -> list[str]:
    """What may be worth another run."""
    steps, found = training.steps(options.length), []
    if (
        options.method == "harpe"
        and options.range == "critical"
        and None in (options.min, options.max)
        and steps < FEW_STEPS
    ):
        found.append(
            f"{steps} steps are few for bases this large: in trainings of 16 and 32 steps --range short was better."
        )
    if torch.cuda.device_count() > 1:
        found.append(
            f"Of {torch.cuda.device_count()} GPUs the first alone trains (CUDA_VISIBLE_DEVICES chooses which that is)."
        )
    return found


def run(options: ExtendOptions, terminal: Any) -> None:
    """Extend a checkpoint."""
    extend(options, terminal)
