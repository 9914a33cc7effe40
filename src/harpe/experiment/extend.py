"""Extend a checkpoint: check, plan, train, save."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harpe.data.packing import PackedDataset, is_packed
from harpe.data.special_tokens import reading_tokenizer
from harpe.evaluation.processes import refuse_several
from harpe.experiment.arms import Arm, arm_of, make_arm, range_of
from harpe.experiment.decided import model_facts, pinned_revision, settled_arm, settled_plan
from harpe.experiment.directory import held, open_run, removed_on_refusal, settled_dtype, write_environment
from harpe.experiment.options import ExtendOptions
from harpe.experiment.plan import check_budget, check_space, describe, plan_text, seconds_per_token
from harpe.experiment.reach import measured_reach
from harpe.experiment.reporter import Reporter
from harpe.experiment.texts import packed
from harpe.methods.types import ModelGeometry
from harpe.models.apply import apply_encoding
from harpe.models.geometry import check_sliding_window, layer_notes, read_geometry, remove_window
from harpe.models.head import check_head
from harpe.models.load import load_config, load_model, load_tokenizer, save_checkpoint, to_accelerator
from harpe.models.rotation_check import check_rotation
from harpe.models.saved import check_saved
from harpe.models.vocabulary import check_vocabulary
from harpe.training.loss import loss_notes
from harpe.training.options import TrainingOptions
from harpe.training.stages import check_stages, train_stages

FEW_STEPS = 100
"""Below this the plan points to --range short. The range study (docs/choosing-bases.md) has 16 and 32 steps; the bound is a guess."""


@dataclass(frozen=True)
class Source:
    """The checkpoint that a run starts from; weights are loaded anew for every row."""

    name: str
    revision: str | None
    geometry: ModelGeometry
    tokenizer: PreTrainedTokenizerBase
    sliding_window: str
    notes: tuple[str, ...]
    """For the plan: layers that keep something, and what of the checkpoint is replaced."""
    dtype: torch.dtype
    """In which the checkpoint is stored; the extended one is stored in the same."""

    def load(self) -> PreTrainedModel:
        """The model with float32 weights, on the accelerator where there is one."""
        model = load_model(self.name, torch.float32, self.revision)
        check_vocabulary(model, self.tokenizer, self.name)
        return to_accelerator(check_rotation(check_head(model, self.name), self.name))


def open_source(
    name: str, length: int, revision: str | None, tokenizer: str | None, original_length: int | None, sliding_window: str
) -> Source:
    """Read configuration and tokenizer, and refuse what cannot be extended. No weights are read."""
    config = load_config(name, revision)
    note = check_sliding_window(config, name, length, sliding_window)
    if sliding_window == "off":
        remove_window(config)
    geometry = read_geometry(config, name, original_length)
    notes = (*([note] if note else []), *layer_notes(config, geometry), *loss_notes(config))
    loaded = load_tokenizer(tokenizer or name, revision if tokenizer is None else None)
    check_vocabulary(config, loaded, name)
    dtype = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    return Source(name, revision, geometry, loaded, sliding_window, notes, dtype)


def train_arm(
    folder: Path, arm: Arm, source: Source, data: PackedDataset | None, options: TrainingOptions, length: int, reporter: Reporter
) -> Path:
    """Make the model of one row in `folder`, trained where its method trains; returns the model's folder.

    A row that is done already, with a whole model, is left alone. `data` may be None for a method without training.
    """
    target = folder / "model"
    if target.exists():
        check_saved(target)
        return target

    def report(step: int, steps: int, row: dict[str, Any]) -> None:
        reporter.progress(f"training {arm.title}", step, steps, f"loss {row['loss']:.3f}")

    model = source.load()
    if arm.trained:
        assert data is not None
        train_stages(
            model,
            source.geometry,
            arm.stages,
            data,
            options,
            folder,
            sliding_window=source.sliding_window,
            report=report,
            tell=reporter.say,
        )
    else:
        apply_encoding(model, arm.stages[-1].encoding, source.geometry, length, source.sliding_window)
    model.to(device="cpu", dtype=source.dtype)  # type: ignore[call-arg]
    save_checkpoint(model, source.tokenizer, target, length)
    return target


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
            source, arm, data, training = _planned(options, run, reporter)
        target = train_arm(run / arm.name, arm, source, data, training, options.length, reporter)
    reporter.say(
        f"The extended model is in {target}. transformers loads it after `import harpe; harpe.register()`; "
        f"`harpe export {run} --out FOLDER` writes it so that it loads without harpe."
    )
    return target


def _planned(options: ExtendOptions, run: Path, reporter: Reporter) -> tuple[Source, Arm, PackedDataset, TrainingOptions]:
    """Check everything, decide what the run is or read back what it decided when it began, and tell the plan."""
    revision = pinned_revision(run, options.method, options.revision)
    source = open_source(options.model, options.length, revision, options.tokenizer, options.original_length, options.sliding_window)
    notes = list(source.notes)

    def reach() -> list[list[float]]:
        tokenizer = reading_tokenizer(source.tokenizer, options.split_special_tokens)
        found, note = measured_reach(source.load(), tokenizer, options.data, options.text_field, source.geometry.original_length)
        notes.append(note)
        return found

    bases = range_of(options, source.geometry)
    facts = model_facts(options.model, revision, source.geometry)
    arm = settled_arm(run, options.method, facts, lambda: arm_of(options, source.geometry, reach), notes)
    model = source.load()
    parameters = model.num_parameters()
    check_space(run, parameters)
    dtype, reason = settled_dtype(options.dtype, run / "plan.json", "training", "dtype")
    training = TrainingOptions(
        tokens=options.tokens or sys.maxsize,
        learning_rate=options.learning_rate,
        schedule=options.schedule,
        batch_tokens=options.batch_tokens,
        micro_batch=options.micro_batch,
        gradient_checkpointing=options.gradient_checkpointing,
        save_every=options.save_every,
        seed=options.seed,
        dtype=dtype,
    )
    check_stages(arm.stages, training)
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
        [make_arm("none", source.geometry, options.length, name="base"), arm],
        training,
        reason,
        data,
        None,
        notes,
    )
    plan = settled_plan(run, plan)
    reporter.say(plan_text(plan, per_token * plan["training"]["tokens"]))
    return source, arm, data, training
