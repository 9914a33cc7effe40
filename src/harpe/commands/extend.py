"""Extend a checkpoint: check, plan, train, save."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from harpe.data.packing import PackedDataset, is_packed
from harpe.data.special_tokens import reading_tokenizer
from harpe.distributed.processes import refuse_several
from harpe.options.extend import ExtendOptions
from harpe.options.training import TrainingSettings
from harpe.reporter import Reporter
from harpe.runs.decided import model_facts, pinned_revision, settled_plan, settled_row
from harpe.runs.directory import held, open_run, removed_on_refusal, resume_dtype, write_environment
from harpe.runs.head_distances import measured_distances
from harpe.runs.plan import check_budget, check_space, describe, plan_text, seconds_per_token
from harpe.runs.rows import Row, extended_row, make_row, range_of
from harpe.runs.source import Source, open_source
from harpe.runs.texts import packed
from harpe.runs.train import train_row
from harpe.training.stages import check_stages

FEW_STEPS = 100
"""Below this the plan points to --range short. The range study (docs/choosing-bases.md) has 16 and 32 steps; the bound is a guess."""


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


def _planned(options: ExtendOptions, run: Path, reporter: Reporter) -> tuple[Source, Row, PackedDataset, TrainingSettings]:
    """Check everything, decide what the run is or read back what it decided when it began, and tell the plan."""
    revision = pinned_revision(run, options.method, options.revision)
    source = open_source(options.model, options.length, revision, options.tokenizer, options.original_length, options.sliding_window)
    notes = list(source.notes)

    def head_distances() -> list[list[float]]:
        tokenizer = reading_tokenizer(source.tokenizer, options.split_special_tokens)
        found, note = measured_distances(source.load(), tokenizer, options.data, options.text_field, source.geometry.original_length)
        notes.append(note)
        return found

    bases = range_of(options, source.geometry)
    facts = model_facts(options.model, revision, source.geometry)
    row = settled_row(run, options.method, facts, lambda: extended_row(options, source.geometry, head_distances), notes)
    model = source.load()
    parameters = model.num_parameters()
    check_space(run, parameters)
    dtype, reason = resume_dtype(options.dtype, run / "plan.json", "training", "dtype")
    training = TrainingSettings.of(options, tokens=options.tokens or sys.maxsize, seed=options.seed, dtype=dtype)
    check_stages(row.stages, training)
    for sentence in write_environment(run):
        reporter.say(sentence)
    reporter.say("Checking the prepared texts." if is_packed(options.data) else "Reading and packing the training texts.")
    data = packed(
        run / "data" / str(options.length),
        options.data,
        source.tokenizer,
        options.length,
        text_field=options.text_field,
        tokens=options.tokens,
        seed=options.seed,
        split_special_tokens=options.split_special_tokens,
        say=reporter.say,
    )
    if options.resume:
        data.verify()
    training = replace(training, tokens=options.tokens or data.tokens)
    check_budget(training, data)
    steps = training.steps(options.length)
    if options.method == "harpe" and options.range == "critical" and None in (options.min, options.max) and steps < FEW_STEPS:
        notes.append(f"{steps} steps are few for bases this large: in trainings of 16 and 32 steps --range short was better.")
    if torch.cuda.device_count() > 1:
        notes.append(f"Of {torch.cuda.device_count()} GPUs the first alone trains (CUDA_VISIBLE_DEVICES chooses which that is).")
    per_token, _ = seconds_per_token(model, training, options.length)
    del model
    plan = describe(
        f"{options.model} to {options.length} tokens",
        options.model,
        options.revision,
        source.geometry,
        parameters,
        options.length,
        bases,
        [make_row("none", source.geometry, options.length, name="base"), row],
        training,
        reason,
        data,
        None,
        notes,
    )
    plan = settled_plan(run, plan)
    reporter.say(plan_text(plan, per_token * plan["training"]["tokens"]))
    return source, row, data, training


def run(options: ExtendOptions, terminal: Any) -> None:
    """Extend a checkpoint."""
    extend(options, terminal)
