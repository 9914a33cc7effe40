"""`harpe compare`: check everything, then one process a method and seed, then statistics and the page."""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from harpe.comparison.inputs import (
    at_commit,
    check_rows,
    check_ways,
    data_folder,
    held_out_of,
    inputs_of,
    pin,
    pinned_inputs,
)
from harpe.comparison.jobs import Job, run_jobs
from harpe.comparison.plan import count_parameters, expected_seconds, make_plan, make_rows, plan_text
from harpe.comparison.recipe import begun_recipe, read_recipe
from harpe.comparison.resources import RowProcesses, check_gpus, sharing, slowdown, threads_of
from harpe.comparison.suites.registry import asked_suites
from harpe.comparison.suites.standard import protocol_of
from harpe.comparison.summary import summarise
from harpe.comparison.trial import tried
from harpe.comparison.worker import source_of, training_options
from harpe.data.packed import is_packed
from harpe.data.special_tokens import reading_tokenizer
from harpe.distributed.layout import ONE_PROCESS
from harpe.distributed.processes import refuse_several
from harpe.errors import HarpeError
from harpe.evaluation.run import check_needles
from harpe.files import read_json, write_json, write_text
from harpe.methods.measured import HeadQuantity
from harpe.methods.types import Stage
from harpe.models.identity import checkpoint_identity
from harpe.options.recipe import ComparisonRecipe
from harpe.options.runs import CompareOptions
from harpe.planning.check import MemoryCheck
from harpe.report.page import write_report
from harpe.reporter import Reporter
from harpe.runs.directory import (
    available_cores,
    check_disk,
    held,
    open_run,
    removed_on_refusal,
    resume_dtype,
    size_of_weights,
)
from harpe.runs.head_distances import measured_heads
from harpe.runs.plan import duration
from harpe.runs.preflight import check_budget, seconds_per_token, tell_environment, training_texts
from harpe.runs.rows import Row, explain
from harpe.runs.source import Source
from harpe.runs.texts import silent
from harpe.training.lora import check_lora
from harpe.training.memory import check_accelerator
from harpe.training.sequence_parallel import check_installed


def compare(options: CompareOptions, reporter: Reporter | None = None) -> Path:
    """Run the comparison of a recipe; returns the run directory.

    Raises HarpeError for a bad recipe or input, before any work starts; at the end, where no method could be measured.
    """
    refuse_several(
        "harpe compare",
        "it starts a process for each method and seed itself (--processes-per-row), --jobs at a time, in turn over the "
        "GPUs.",
    )
    run = Path(options.out or Path("runs") / Path(options.recipe).stem)
    with nullcontext() if options.plan else held(run):
        return _compare(options, run, reporter or Reporter())


def _compare(options: CompareOptions, run: Path, reporter: Reporter) -> Path:
    """`compare` in a directory that is held; its workers work under this lock."""
    changes = {key: getattr(options, key) for key in ("seeds", "model", "data", "evaluation_data")}
    recipe = read_recipe(options.recipe, **changes)
    threads, cores = threads_of(os.environ.get("OMP_NUM_THREADS")), available_cores()
    processes, together = RowProcesses.of(options, os.environ, cores), options.jobs * options.processes_per_row
    if threads is not None and threads * together > cores:
        reporter.say(
            f"OMP_NUM_THREADS gives each of the {together} processes {threads} threads, more than the {cores} cores "
            "have."
        )
    if is_packed(recipe.data) and len(recipe.seeds) > 1:
        raise HarpeError(
            f"{recipe.data} was prepared in one order, on which all {len(recipe.seeds)} seeds would train. Give "
            f"--seeds {recipe.seeds[0]}, or prepare the texts once for every seed (harpe prepare --seed) and write "
            "{seed} in the place of it in data."
        )
    asked = recipe
    if not options.plan:
        recipe = at_commit(asked, pinned_inputs(run) or {"model": checkpoint_identity(asked.model, asked.revision)})
    source = source_of(recipe)

    def measure(what: HeadQuantity = "distances") -> Sequence[Sequence[float]]:
        if options.plan:
            raise HarpeError("What is measured of heads needs the model, which --plan does not load.")
        texts, context = recipe.data_of(recipe.seeds[0]), source.geometry.original_length
        tokenizer = reading_tokenizer(source.tokenizer, recipe.split_special_tokens)
        found, note = measured_heads(what, source.load(), tokenizer, texts, recipe.text_field, context)
        reporter.say(note)
        return found

    rows, parameters = make_rows(recipe, source, measure), count_parameters(recipe)
    processes.settled(rows, training_options(recipe, 0, "float32"))  # without memory: --plan may be for other machines
    if options.plan:
        plan = make_plan(recipe, source, rows, parameters, (recipe.dtype, recipe.dtype)).as_dict()
        reporter.say(plan_text(plan))
        return run
    check_gpus(os.environ, processes.count)
    jobs = [(row, seed) for seed in recipe.seeds for row in rows if row.trained]
    jobs = [(row, 0) for row in rows if not row.trained] + jobs
    _check_space(run, recipe, parameters, rows, options.jobs)
    going_on = (run / "recipe.yaml").is_file()
    if not all(_is_done(run, job) for job in jobs):
        check_ways(run)
    dtype = resume_dtype(recipe.dtype, run / "plan.json", "training", "dtype")
    processes, notes, about = _settled(recipe, source, rows, dtype[0], processes, options.jobs)
    added = _new_methods(run, asked) if going_on else None
    if added is None:
        open_run(run, asked, resume=going_on)
    rows = [_as_begun(run, row, source, reporter) for row in rows]
    if going_on:
        new = f" It has the new methods {', '.join(added)}." if added else ""
        reporter.say(f"Going on with the comparison in {run}; what is there is not done again.{new}")
    with removed_on_refusal(run, unless=going_on):
        tell_environment(run, reporter)
        for suite, settings in asked_suites(recipe.evaluation):
            suite.prepare(settings, recipe, run)
        trained = recipe.seeds if any(row.trained for row in rows) else []
        corpus = _prepare_data(run, recipe, source, trained, going_on, reporter)
        held_out = held_out_of(recipe, source, reporter.say)
        check_needles(source.tokenizer, held_out, protocol_of(recipe, source.geometry.original_length))
        inputs = pin(run, inputs_of(recipe, source, run, trained, held_out), going_on)
        speeds = _speeds(run, recipe, source, rows, dtype[0], processes)
    corpus |= {"held_out_documents": len(held_out.documents), "held_out_read": held_out.read}
    plan = {**make_plan(recipe, source, rows, parameters, dtype, notes).as_dict(), "corpus": corpus, "inputs": inputs}
    check_rows(run, plan)
    if added:
        write_text(run / "recipe.yaml", yaml.safe_dump(asked.recipe(), sort_keys=False))
    write_json(run / "plan.json", plan)
    for row in rows:
        write_json(run / row.name / "stages.json", {"stages": [stage.as_dict() for stage in row.stages]})
    reporter.say(plan_text(plan))
    for sentence in about:
        reporter.say(sentence)
    expected, left = expected_seconds(recipe, source, rows, *speeds), [job for job in jobs if not _is_done(run, job)]
    slower, together = slowdown(os.environ, options.jobs, cores, processes.count), min(options.jobs, len(left) or 1)
    seconds = duration(sum(expected[row.name] for row, _ in left) * slower / together)
    beside = f", {together} rows at a time" if together > 1 else ""
    reporter.say(f"Expected time: {seconds}{beside} (from a short measurement).")
    failed = run_jobs(run, left, options.jobs, processes, expected, slower, reporter)
    for what, reason in failed.items():
        reporter.say(f"{what} failed: {reason}")
    summary = summarise(run)
    if not summary["measures"]:
        raise HarpeError(
            f"No method could be measured; the reasons are in the files failed.json and worker.log under {run}."
        )
    write_report(run)
    for sentence in summary["reading"]:
        reporter.say(sentence)
    return run


def _settled(
    recipe: ComparisonRecipe, source: Source, rows: Sequence[Row], dtype: str, processes: RowProcesses, jobs: int
) -> tuple[RowProcesses, list[str], list[str]]:
    """How rows are trained on this machine, `jobs` at a time; what there is to say of what is trained, and of that."""
    training = training_options(recipe, 0, dtype)
    if not any(row.trained for row in rows):
        return processes.settled(rows, training), [], []
    check_lora(training.adapters)
    beside = sharing(os.environ, jobs, processes.count)
    memory = MemoryCheck(source.config(), recipe.length, training, processes.count, beside)
    processes = processes.settled(rows, training, memory.filled)
    layout = processes.layout
    if layout.sequence_parallel > 1:
        check_installed()
    if layout.offload:
        check_accelerator()
    told = []
    if layout != ONE_PROCESS:
        told.append(f"A row is trained by {layout.describe()}" if layout.sharded else layout.describe())
    return processes, memory.notes, told + memory.check(layout, ignored=True)


def _speeds(
    run: Path, recipe: ComparisonRecipe, source: Source, rows: Sequence[Row], dtype: str, processes: RowProcesses
) -> tuple[float, float]:
    """Seconds a token of training and of reading; HarpeError where the model cannot be loaded, or the processes of a
    row cannot train it."""
    if processes.count > 1 and any(row.trained for row in rows):
        found = tried(run, recipe, rows, dtype, processes)
    else:
        found = seconds_per_token(source.load(), training_options(recipe, 0, dtype), recipe.length, processes.layout)
    # this process waits for its workers now, and what torch keeps for it of a whole training pass they would not get
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return found


def _new_methods(run: Path, recipe: ComparisonRecipe) -> list[str] | None:
    """Names of the methods that a recipe has more than the run's own; None where it differs in something else."""
    there = begun_recipe(run)
    before, now = {each.name: each for each in there.methods}, {each.name: each for each in recipe.methods}
    kept = all(now.get(name) == each for name, each in before.items())
    if not kept or replace(there, methods=recipe.methods, title=recipe.title) != recipe:
        return None  # open_run refuses it, with the difference
    return [name for name in now if name not in before]


def _as_begun(run: Path, row: Row, source: Source, reporter: Reporter) -> Row:
    """The row with the stages that it began with, also where this version would choose others: its seeds belong
    together."""
    path = run / row.name / "stages.json"
    stages = tuple(Stage.from_dict(stage) for stage in read_json(path)["stages"]) if path.is_file() else row.stages
    if stages == row.stages:
        return row
    reporter.say(
        f"{row.name} goes on with the bases and stages that it began with; this start would have chosen others."
    )
    return replace(row, stages=stages, explanation=explain(row.method, list(stages), source.geometry))


def _check_space(run: Path, recipe: ComparisonRecipe, parameters: int, rows: Sequence[Row], jobs: int) -> None:
    """Checkpoints of the rows that are trained at a time, and all models (float32 at most), less what is there."""
    models = sum(len(recipe.seeds) if row.trained else row.changes for row in rows)
    needed = parameters * 4 * (3 * 3 * jobs + models) - size_of_weights(run)
    check_disk(run, max(0, needed) + 50_000_000, "The comparison")


def _prepare_data(
    run: Path, recipe: ComparisonRecipe, source: Source, seeds: Sequence[int], going_on: bool, reporter: Reporter
) -> dict[str, Any]:
    """Pack the texts of every seed; those that are there already are read whole, and have to be what they were."""
    corpus: dict[str, Any] = {"hashes": {}, "tokens": 0, "documents": 0, "description": recipe.data}
    for number, seed in enumerate(seeds):
        reporter.progress("packing the training texts", number, len(seeds))
        training = training_options(recipe, seed, "float32")
        data = training_texts(
            data_folder(run, seed, recipe.length),
            recipe.data_of(seed),
            source,
            training,
            recipe.length,
            tokens=recipe.tokens,
            reading=recipe,
            going_on=going_on,
            say=reporter.say if number == 0 else silent,
        )
        check_budget(training, data)
        if data.hash in corpus["hashes"].values():
            way = (
                "Prepare it with another --seed."
                if is_packed(recipe.data_of(seed))
                else "So few documents have few orders: give more tokens or texts, or other seeds."
            )
            raise HarpeError(f"{recipe.data} gives seed {seed} the same stream of tokens as another seed. {way}")
        corpus["hashes"][str(seed)] = data.hash
        corpus |= {"tokens": data.tokens, **{key: data.index[key] for key in ("documents", "description")}}
        corpus["read"] = data.index.get("read")
        reporter.progress("packing the training texts", number + 1, len(seeds))
    return corpus


def _is_done(run: Path, job: Job) -> bool:
    return (run / job[0].name / f"seed-{job[1]}" / "record.json").is_file()
