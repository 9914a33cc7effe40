"""Long-context tasks whose samples are made here (`harpe long`), at several lengths."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from harpe.comparison.suites.asked import Mean, check_asked, lay_samples, measures_at, names_of, sample_files
from harpe.comparison.suites.base import Measured, Subject, Suite, check_least, way_of
from harpe.errors import HarpeError
from harpe.evaluation.long.registry import SUITES, chosen
from harpe.evaluation.long.task import set_name
from harpe.files import read_json, read_jsonl, sha256_json
from harpe.options.measuring import LongSamples
from harpe.options.recipe import ComparisonRecipe, LongRecipe
from harpe.reporter import Reporter
from harpe.runs.length_scores import AnsweredTask, Samples
from harpe.runs.source import Source
from harpe.suites.long import Rows, by_cell, run_long, samples_of


class Long(Suite):
    """All rows are asked the same samples, which are written before the training."""

    key = "long"
    settings = LongRecipe | None
    kept = False
    pinned = "long"
    nothing: ClassVar[dict[str, Any]] = {}

    def check(self, of: LongRecipe, recipe: ComparisonRecipe, where: str) -> None:
        check_asked(of.lengths, of.tasks, chosen, "long-context", where)
        check_least([("samples of long", of.samples, 1)], where)
        if (longest := max(of.lengths)) > recipe.length:
            raise HarpeError(
                f"{where} has the long-context length {longest}, beyond the {recipe.length} tokens of the target "
                "(length); leave it out."
            )

    def prepare(self, of: LongRecipe, recipe: ComparisonRecipe, run: Path) -> None:
        tokenizer, revision = recipe.tokenizer_of(recipe.model)
        run_long(_options(of, run / "samples", tokenizer=tokenizer, revision=revision))

    def inputs(self, of: LongRecipe, recipe: ComparisonRecipe, source: Source, run: Path) -> Any:
        files, asked = sample_files(run / "samples" / "long"), chosen(names_of(of.tasks))
        names = {set_name(task.name, length) for task in asked for length in of.lengths}
        return {path.stem: digest for path, digest in files.items() if path.stem in names}

    def facts(self, inputs: dict[str, str]) -> dict[str, Any]:
        return {_samples(name): value for name, value in inputs.items()}

    def score(self, of: LongRecipe, subject: Subject, scores: Path, reporter: Reporter) -> None:
        lay_samples(subject.samples / "long", scores / "long")
        asked = {"model": subject.model, "dtype": subject.dtype, "beyond_context": True}
        asked |= {"tokenizer": subject.recipe.tokenizer, "revision": subject.revision}
        run_long(_options(of, scores, original_length=subject.source.geometry.original_length, **asked), reporter)

    def told(self, scores: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
        for path, digest in sample_files(scores / "long").items():
            yield path, {_samples(path.stem): digest}
        if (protocol := scores / "long" / "protocol.json").is_file():
            yield protocol, way_of(read_json(protocol).get("answers"), "long-context tasks")

    def measures(self, scores: Path) -> Iterator[Measured]:
        cells = _cells(scores)
        means = _means({task for task, _ in cells})
        for length in sorted({length for _, length in cells}):
            rows = [row for (_, at), those in cells.items() if at == length for row in those]
            hashes = {task: _hash(scores, task, [length]) for task, at in cells if at == length}
            yield from measures_at("long", "long-context task", length, rows, hashes, means)

    def by_length(self, scores: Path) -> Iterator[AnsweredTask]:
        cells = _cells(scores)
        tasks = dict.fromkeys(task for task, _ in cells)
        samples: dict[tuple[int, str], Samples] = {}
        for (task, length), rows in cells.items():
            of, each = _hash(scores, task, sorted(at for name, at in cells if name == task)), samples_of(rows)
            samples[length, task] = replace(each, keys=tuple((of, key) for key in each.keys))
        for mean in [*_means(tasks), *(Mean(name, f"long-context task {name}", "long", [name]) for name in tasks)]:
            those = {key: each for key, each in samples.items() if key[1] in mean.tasks}
            yield AnsweredTask(
                f"long-{mean.name}", mean.title, "long", mean.name if mean.name in tasks else None, those
            )

    def reads(self, of: LongRecipe) -> Mapping[int, int]:
        return {length: length * of.samples * len(chosen(names_of(of.tasks))) for length in of.lengths}

    def asked(self, of: LongRecipe) -> dict[str, str]:
        return {f"long-{{}}-{length}": f"long-context tasks at {length:,} tokens" for length in of.lengths}


def _options(of: LongRecipe, folder: Path, **asked: Any) -> LongSamples:
    lengths = ",".join(map(str, of.lengths))
    return LongSamples(**{**vars(of), "lengths": lengths}, out=str(folder / "long"), **asked)


def _samples(name: str) -> str:
    task, _, length = name.rpartition("-")
    return f"long-context samples of {task} at {length} tokens"


def _cells(scores: Path) -> dict[tuple[str, int], Rows]:
    """Answers by task and length; none while some are missing."""
    folder = scores / "long"
    return by_cell(read_jsonl(folder / "answers.jsonl")) if (folder / "long.json").is_file() else {}


def _hash(scores: Path, task: str, lengths: list[int]) -> str:
    """Of a task's samples at these lengths."""
    files = {path.stem: digest for path, digest in sample_files(scores / "long").items()}
    return sha256_json([files.get(set_name(task, length)) for length in lengths])


def _means(tasks: Collection[str]) -> list[Mean]:
    """Of all tasks that were asked, and of every suite that is a part of them; of one task there is none."""
    title = "long-context tasks, mean of"
    found = [Mean("mean", f"{title} all {len(tasks)}", "long", list(tasks))] if len(tasks) > 1 else []
    for name, suite in SUITES.items():
        names = [task.name for task in suite.TASKS]
        if set(names) < set(tasks) and len(names) > 1:
            found.append(Mean(name, f"{title} {name}'s {len(names)}", "long", names))
    return found
