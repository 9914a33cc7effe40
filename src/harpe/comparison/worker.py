"""One method with one seed of a comparison, in a process of its own (`harpe.distributed.child`).

A process of its own, because a method that runs out of memory or is killed must not take the others with it. Prints its
progress as lines of JSON. What is done already is not done again: the stage, the step, the sample where a killed worker
was are found from the files.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from harpe.comparison.inputs import Inputs, at_commit, check_rows, data_folder, held_out_of, inputs_of, other
from harpe.comparison.recipe import begun_recipe
from harpe.comparison.resources import ONE_EACH, RowProcesses, threads_of
from harpe.comparison.suites.base import Subject
from harpe.comparison.suites.registry import asked_suites
from harpe.data.packed import PackedDataset
from harpe.distributed.launch import reported, run_ranks
from harpe.distributed.layout import ONE_PROCESS
from harpe.errors import HarpeError
from harpe.files import read_json, read_jsonl, remove_leftovers, write_json
from harpe.methods.types import Stage
from harpe.options.recipe import ComparisonRecipe
from harpe.options.training import TrainingSettings
from harpe.report.wording import listed
from harpe.reporter import Reporter
from harpe.runs.rows import Row
from harpe.runs.source import Source, open_source
from harpe.runs.train import train_row
from harpe.training.checkpoints import remove_checkpoints

RANKS = "harpe.comparison.ranks"
"""What each of several processes of a row does."""
KEPT_EVERY = 30.0
"""Seconds of measuring that a kill may lose of the time that is told."""


class Lines(Reporter):
    """Progress and remarks as one JSON object a line."""

    def say(self, text: str) -> None:
        print(json.dumps({"say": text}), flush=True)

    def progress(self, what: str, done: int, total: int | None, note: str = "") -> None:
        print(json.dumps({"what": what, "done": done, "total": total, "note": note}), flush=True)


class Timed(Reporter):
    """Passes on what is told, and keeps in a file how long a row was measured, by this start and those before it: as
    long as it works, because a row may be killed within a suite that takes hours."""

    def __init__(self, path: Path, reporter: Reporter) -> None:
        self._path, self._reporter = path, reporter
        self._before = float(read_json(path)["seconds"]) if path.is_file() else 0.0
        self._began = self._kept = time.monotonic()

    def say(self, text: str) -> None:
        self._reporter.say(text)

    def table(self, table: Any) -> None:
        self._reporter.table(table)

    def progress(self, what: str, done: int, total: int | None, note: str = "") -> None:
        self._reporter.progress(what, done, total, note)
        if time.monotonic() - self._kept >= KEPT_EVERY:
            self.keep()

    def keep(self) -> float:
        """Seconds of all starts until now."""
        self._kept = time.monotonic()
        seconds = self._before + self._kept - self._began
        write_json(self._path, {"seconds": round(seconds, 2)})
        return seconds


def training_options(recipe: ComparisonRecipe, seed: int, dtype: str) -> TrainingSettings:
    """Of one seed."""
    return TrainingSettings.of(recipe, tokens=recipe.tokens, seed=seed, dtype=dtype)


def source_of(recipe: ComparisonRecipe) -> Source:
    """The checkpoint that all methods start from."""
    return open_source(
        recipe.model, recipe.length, recipe.revision, recipe.tokenizer, recipe.original_length, recipe.sliding_window
    )


def begun_row(run: Path, plan: dict[str, Any], name: str) -> Row:
    """A row of a comparison that has begun, with the stages that it began with."""
    stages = [Stage.from_dict(stage) for stage in read_json(run / name / "stages.json")["stages"]]
    return Row.from_dict(next(method for method in plan["methods"] if method["name"] == name), stages)


def work(run: Path, name: str, seed: int, reporter: Reporter, processes: RowProcesses = ONE_EACH) -> None:
    """Train and measure one row; writes record.json at the end. Several processes are started for the training."""
    plan = read_json(run / "plan.json")
    recipe, row = at_commit(begun_recipe(run), plan["inputs"]), begun_row(run, plan, name)
    folder, dtype = run / name / f"seed-{seed}", plan["training"]["dtype"]
    remove_leftovers(folder)  # of a worker that was killed while the comparison, which holds the directory, went on
    source = source_of(recipe)
    held_out = held_out_of(recipe, source)
    inputs = inputs_of(recipe, source, run, [seed] if row.trained else [], held_out)
    _check_inputs(folder, plan["inputs"], inputs)
    data = PackedDataset(data_folder(run, seed, recipe.length), recipe.length) if row.trained else None
    model = recipe.model
    if row.changes:
        if row.trained and processes.count > 1 and not (folder / "model").exists():
            arguments = [str(run), name, str(seed), processes.text()]
            try:
                run_ranks(processes.count, RANKS, arguments, folder / "logs", threads=processes.threads)
            except HarpeError:
                if not (folder / "model").exists():  # else one of them failed when all was done
                    raise
        options = training_options(recipe, seed, dtype)
        layout = processes.layout if processes.count == 1 else ONE_PROCESS
        model = str(train_row(folder, row, source, data, options, recipe.length, reporter, layout=layout))
        for stage in folder.glob("stage-*"):
            remove_checkpoints(stage)  # the model is saved; many rows' optimiser states would fill the disk
    # among the scores: who deletes them to measure anew deletes their time, too
    timed = Timed(folder / "scores" / "seconds.json", reporter)
    revision = None if row.changes else recipe.revision
    subject = Subject(model, revision, dtype, row.title, recipe, source, held_out, run / "samples")
    for suite, settings in asked_suites(recipe.evaluation):
        suite.score(settings, subject, folder / "scores", timed)
        timed.keep()
    spent = _record(folder, row, data, timed.keep())
    entries = [method for method in plan["methods"] if method["name"] == name]
    check_rows(run, plan | {"methods": entries, "seeds": [seed]})
    write_json(folder / "record.json", {**spent, "inputs": inputs})
    (folder / "scores" / "seconds.json").unlink(missing_ok=True)  # it stands in the record now


def _check_inputs(folder: Path, pinned: Inputs, found: Inputs) -> None:
    """Refuse to train or measure on anything but what the plan names; inputs.json tells what the row has read, from its
    beginning on."""
    path = folder / "inputs.json"
    for where, before in (
        (folder.parent.parent / "plan.json", pinned),
        *([(path, read_json(path))] if path.is_file() else []),
    ):
        if wrong := other(before, found):
            raise HarpeError(
                f"{listed(wrong)}: not what {where} names. Put back what the comparison began with, and start it again."
            )
    write_json(path, found)


def _record(folder: Path, row: Row, data: PackedDataset | None, evaluate_seconds: float) -> dict[str, Any]:
    """What was spent; on training by the logs of the stages."""
    stages = []
    for number, stage in enumerate(row.stages, 1):
        log = folder / f"stage-{number}" / "log.jsonl"
        last = read_jsonl(log)[-1] if log.is_file() else {"tokens": 0, "step": 0, "seconds": 0.0}
        stages.append(
            {
                "length": stage.length,
                "tokens": last["tokens"],
                "steps": last["step"],
                "seconds": last["seconds"],
                "bases": list(stage.encoding.bases),
                "encoding": stage.encoding.describe(),
                "data_hash": data.hash if data is not None else None,
            }
        )
    return {
        "stages": stages,
        "tokens": sum(stage["tokens"] for stage in stages),
        "train_seconds": sum(stage["seconds"] for stage in stages),
        "evaluate_seconds": round(evaluate_seconds, 1),
        "threads": torch.get_num_threads(),
    }


def _check_gpu() -> None:
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES")
    if gpu and not torch.cuda.is_available():
        raise HarpeError(
            f"CUDA_VISIBLE_DEVICES is {gpu} for this process, and torch finds no GPU there. Start the comparison again."
        )


def main() -> int:
    """One worker, as `harpe.comparison.jobs` starts it; returns the exit code."""
    run, name, seed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    processes = RowProcesses.read(sys.argv[4])
    torch.set_num_threads(threads_of(os.environ.get("OMP_NUM_THREADS")) or torch.get_num_threads())
    folder = run / name / f"seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "failed.json").unlink(missing_ok=True)

    def checked() -> None:
        _check_gpu()
        work(run, name, seed, Lines(), processes)

    return reported(folder / "failed.json", checked)
