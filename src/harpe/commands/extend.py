"""Extend a checkpoint: check, plan, train, save."""

from __future__ import annotations

import shlex
import sys
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from harpe.bases.ranges import BaseRange, base_range
from harpe.data.packed import PackedDataset, is_packed
from harpe.data.special_tokens import reading_tokenizer
from harpe.distributed.layout import ONE_PROCESS, Layout, check_versions, choose_layout
from harpe.distributed.processes import join
from harpe.distributed.watch import watched
from harpe.methods.measured import HeadQuantity
from harpe.models.angles import moving_stage
from harpe.models.apply import check_encoding, check_factors, windows_note
from harpe.models.card import rope_entry
from harpe.models.load import load_config, load_tokenizer
from harpe.models.per_head import ROPE_TYPE
from harpe.options.extend import ExtendOptions
from harpe.options.training import TrainingSettings
from harpe.planning.check import MemoryCheck
from harpe.reporter import Reporter
from harpe.runs.chosen_method import with_method
from harpe.runs.decided import model_facts, pinned_revision, settled_plan, settled_row
from harpe.runs.directory import held, open_run, removed_on_refusal
from harpe.runs.head_distances import measured_heads
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
from harpe.training.documents import document_notes
from harpe.training.lora import check_lora
from harpe.training.memory import check_accelerator
from harpe.training.pose import check_pose_family
from harpe.training.sequence_parallel import check_installed, check_sequence_parallel
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
    ranks, run = join(tensors=True), Path(options.out)
    reporter = (reporter if ranks.first else None) or Reporter()
    with ExitStack() as stack:
        ranks.broadcast_from_rank0(lambda: _enter(stack, held(run)))
        options, why = ranks.broadcast_from_rank0(lambda: with_method(options, run))
        ranks.broadcast_from_rank0(lambda: open_run(run, options, options.resume))
        with removed_on_refusal(run, unless=options.resume or not ranks.first):
            stack.enter_context(watched(run / "logs", ranks, "extend"))
            decided = ranks.broadcast_from_rank0(lambda: _decided(options, run, ranks.count, why, reporter))
            model = ranks.on_every_rank(lambda: _loaded(decided, options.length))
            data = ranks.broadcast_from_rank0(lambda: _texts(options, run, decided, reporter))
            training = replace(decided.training, tokens=options.tokens or data.tokens)
            per_token, _ = seconds_per_token(model, training, options.length, decided.layout, ranks)
            ranks.broadcast_from_rank0(lambda: _told(options, run, decided, training, data, per_token, reporter))
        row = decided.row
        target = train_row(
            run / row.name,
            row,
            decided.source,
            data,
            training,
            options.length,
            reporter,
            model=model,
            layout=decided.layout,
            ranks=ranks,
        )
    reporter.say(_use(run, target))
    return target


def _use(run: Path, target: Path) -> str:
    """What to do with the model, by programs that people have."""
    stock = rope_entry(load_config(str(target))).get("rope_type") != ROPE_TYPE
    place = shlex.quote(str(target)) if stock else "FOLDER"
    talks = f", `transformers chat {place}` talks to it" if load_tokenizer(str(target)).chat_template else ""
    if stock:
        return f"The extended model is in {target}, a stock checkpoint: `transformers serve {place}` serves it{talks}."
    return (
        f"The extended model is in {target}. `harpe export {shlex.quote(str(run))} --out {place}` writes it so that it "
        f"loads without harpe; `transformers serve {place} --trust-remote-code` then serves it{talks}."
    )


def _enter(stack: ExitStack, context: AbstractContextManager[Any]) -> None:
    stack.enter_context(context)


@dataclass(frozen=True)
class _Decided:
    """What the first process decides before anything is loaded; plain values, which it tells the others."""

    source: Source
    row: Row
    training: TrainingSettings
    reason: str
    layout: Layout
    about: list[str]
    """What there is to say of it."""
    parameters: int
    bases: BaseRange
    notes: list[str]


def _decided(options: ExtendOptions, run: Path, processes: int, why: str, reporter: Reporter) -> _Decided:
    """Check all that needs no weights and no texts, and decide what the run is, or read back what it decided when it
    began; `why` is said of the method."""
    assert options.method is not None
    revision = pinned_revision(run, options.method, options.revision)
    source = open_source(
        options.model, options.length, revision, options.tokenizer, options.original_length, options.sliding_window
    )
    notes = list(source.notes)

    def measure(what: HeadQuantity = "distances") -> list[list[float]]:
        tokenizer = reading_tokenizer(source.tokenizer, options.split_special_tokens)
        found, note = measured_heads(
            what, source.load(), tokenizer, options.data, options.text_field, source.geometry.original_length
        )
        notes.append(note)
        return found

    bases = base_range(source.geometry, options.length, options.min, options.max, options.range)
    facts = model_facts(options.model, revision, source.geometry)

    def make() -> Row:
        notes.extend([f"The method was chosen for you: {why} --method names another."] if why else [])
        row = extended_row(options, source.geometry, measure)
        if note := windows_note(source.config(), row.stages[-1].encoding, source.geometry, options.length):
            notes.append(note)
        return row

    row = settled_row(run, options.method, facts, make, notes)
    for stage in row.stages:
        check_encoding(source.config(), stage.encoding, source.geometry, stage.length)
    parameters = source.parameters()
    training, reason = settle_training(options, run, tokens=options.tokens or sys.maxsize, seed=options.seed)
    training.check(options.length)
    check_lora(training.adapters)
    sequences = [training.step_tokens(options.length) // training.sequence(stage.length) for stage in row.stages]
    memory = MemoryCheck(source.config(), options.length, training, processes)
    check_space(run, parameters, trained=memory.trained)
    whole = moving_stage(row.stages) is not None
    layout = choose_layout(processes, options, sequences, training.micro_batch, memory.filled, whole=whole)
    check_stages(row.stages, training, layout)
    check_pose_family(source.config(), training.pose_length, options.length)
    if layout.sharded:
        check_versions()
    if layout.sequence_parallel > 1:
        check_installed()
    if layout.offload:
        check_accelerator()
    notes += [*document_notes(training.document_mask), *memory.notes]
    about = [layout.describe()] if layout != ONE_PROCESS else []
    about += memory.check(layout, options.ignore_memory)
    tell_environment(run, reporter)
    return _Decided(source, row, training, reason, layout, about, parameters, bases, notes)


def _loaded(decided: _Decided, length: int) -> PreTrainedModel:
    """The model, or this process's shards of it."""
    source, layout = decided.source, decided.layout
    model = source.load(layout, decided.training.dtype)
    for stage in decided.row.stages:
        check_sequence_parallel(model, layout.sequence_parallel, stage.length)
        check_factors(model, stage.encoding, source.geometry)
    return model


def _texts(options: ExtendOptions, run: Path, decided: _Decided, reporter: Reporter) -> PackedDataset:
    """The training texts, packed."""
    reporter.say(
        "Checking the prepared texts." if is_packed(options.data) else "Reading and packing the training texts."
    )
    data = training_texts(
        run / "data" / str(options.length),
        options.data,
        decided.source,
        decided.training,
        options.length,
        tokens=options.tokens,
        reading=options,
        going_on=options.resume,
        say=reporter.say,
    )
    training = replace(decided.training, tokens=options.tokens or data.tokens)
    check_budget(training, data)
    # without --tokens, how many there are is known only here
    check_stages(decided.row.stages, training, decided.layout)
    return data


def _told(
    options: ExtendOptions,
    run: Path,
    decided: _Decided,
    training: TrainingSettings,
    data: PackedDataset,
    per_token: float,
    reporter: Reporter,
) -> None:
    """Keep the plan, or find it to be what the run began with, and tell it."""
    source, layout = decided.source, decided.layout
    plan = Plan(
        title=f"{options.model} to {options.length} tokens",
        model=options.model,
        revision=options.revision,
        geometry=source.geometry,
        parameters=decided.parameters,
        length=options.length,
        bases=decided.bases,
        rows=[make_row("none", source.geometry, options.length, name="base"), decided.row],
        training=training,
        dtype_reason=decided.reason,
        data=data,
        notes=[*decided.notes, *data.notes, *_advice(options, training, layout)],
        extended=decided.row.name,
    )
    settled = settled_plan(run, plan.as_dict())
    reporter.say(plan_text(settled, per_token * settled["training"]["tokens"]))
    for sentence in decided.about:
        reporter.say(sentence)


def _advice(options: ExtendOptions, training: TrainingSettings, layout: Layout) -> list[str]:
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
    if torch.cuda.device_count() > 1 and not layout.sharded:
        found.append(
            f"Of {torch.cuda.device_count()} GPUs the first alone trains. `torchrun --nproc-per-node "
            f"{torch.cuda.device_count()} -m harpe extend …` trains on all of them."
        )
    return found


def run(options: ExtendOptions, terminal: Any) -> None:
    """Extend a checkpoint."""
    extend(options, terminal)
