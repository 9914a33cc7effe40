"""RULER (`harpe ruler`), at several lengths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from harpe.comparison.suites.asked import Mean, check_asked, lay_samples, measures_at, names_of, sample_files
from harpe.comparison.suites.base import Measure, Measured, Record, Subject, Suite, asked_of, check_least, way_of
from harpe.evaluation.ruler.tasks import chosen as chosen_tasks
from harpe.files import read_json, read_jsonl
from harpe.options.measuring import RulerOptions
from harpe.options.recipe import ComparisonRecipe, RulerRecipe
from harpe.reporter import Reporter
from harpe.runs.length_scores import AnsweredTask, Samples
from harpe.runs.source import Source
from harpe.suites.ruler import run_ruler


class Ruler(Suite):
    """RULER's tasks; all rows are asked the same samples, which are written before the training."""

    key = "ruler"
    settings = RulerRecipe | None
    pinned = "ruler"
    nothing: ClassVar[dict[str, Any]] = {}

    def check(self, of: RulerRecipe, recipe: ComparisonRecipe, where: str) -> None:
        check_asked(of.lengths, of.tasks, chosen_tasks, "RULER", where)
        check_least([("samples of ruler", of.samples, 1)], where)

    def prepare(self, of: RulerRecipe, recipe: ComparisonRecipe, run: Path) -> None:
        tokenizer, revision = recipe.tokenizer_of(recipe.model)
        for length in of.lengths:
            run_ruler(_options(of, length, run / "samples", revision, tokenizer))

    def inputs(self, of: RulerRecipe, recipe: ComparisonRecipe, source: Source, run: Path) -> Any:
        folders = {length: run / "samples" / f"ruler-{length}" for length in of.lengths}
        return {
            str(length): {path.stem: digest for path, digest in sample_files(folder).items()}
            for length, folder in folders.items()
        }

    def facts(self, inputs: dict[str, dict[str, str]]) -> dict[str, Any]:
        return {_samples(task, n): value for n, tasks in inputs.items() for task, value in tasks.items()}

    def score(self, of: RulerRecipe, subject: Subject, scores: Path, reporter: Reporter) -> None:
        for length in of.lengths:
            lay_samples(subject.samples / f"ruler-{length}", scores / f"ruler-{length}")
            asked = {"model": subject.model, "dtype": subject.dtype, "beyond_context": True}
            run_ruler(_options(of, length, scores, subject.revision, subject.recipe.tokenizer, **asked), reporter)

    def told(self, scores: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
        for folder in sorted(scores.glob("ruler-*")):
            length = folder.name.removeprefix("ruler-")
            for path, digest in sample_files(folder).items():
                yield path, {_samples(path.stem, length): digest}
            if (protocol := folder / "protocol.json").is_file():
                yield protocol, way_of(read_json(protocol).get("answers"), f"RULER at {length} tokens")

    def measures(self, scores: Path) -> Iterator[Measured]:
        found = [each for folder in _folders(scores) for each in _at_one_length(folder)]
        yield from found
        asked = asked_of(scores, self.key).get("lengths", ())
        for name, title, group in MEANS:
            title = f"RULER, mean of {title} over lengths"
            yield from _over_lengths(found, asked, f"ruler-{name}", title, group, None)
        for task in dict.fromkeys(measure.task for measure, _ in found if measure.task is not None):
            yield from _over_lengths(found, asked, f"ruler-{task}", f"RULER {task}, mean over lengths", "ruler", task)

    def by_length(self, scores: Path) -> Iterator[AnsweredTask]:
        parts = [each for folder in _folders(scores) for each in _at_one_length(folder)]
        whole = [(f"ruler-{name}", f"RULER, mean of {title}", group, None) for name, title, group in MEANS]
        tasks = dict.fromkeys(measure.task for measure, _ in parts if measure.task is not None)
        for stem, title, group, task in [*whole, *((f"ruler-{t}", f"RULER {t}", "ruler", t) for t in tasks)]:
            samples: dict[tuple[int, str], Samples] = {}
            for measure, records in parts:
                if measure.length is not None and measure.id == f"{stem}-{measure.length}":
                    samples |= _samples_of(measure.length, records)
            if samples:
                yield AnsweredTask(stem, title, group, task, samples)

    def reads(self, of: RulerRecipe) -> Mapping[int, int]:
        return {length: length * of.samples * len(chosen_tasks(names_of(of.tasks))) for length in of.lengths}

    def asked(self, of: RulerRecipe) -> dict[str, str]:
        return {f"ruler-{{}}-{length}": f"RULER at {length:,} tokens" for length in of.lengths}


MEANS = (("niah", "the eight needle tasks", "ruler-niah"), ("all", "all 13 tasks", "ruler"))
"""Means over tasks, where all of them were asked: name, words and group."""


def _options(
    of: RulerRecipe, length: int, folder: Path, revision: str | None, tokenizer: str | None, **asked: Any
) -> RulerOptions:
    return RulerOptions(
        length=length,
        out=str(folder / f"ruler-{length}"),
        tokenizer=tokenizer,
        revision=revision,
        tasks=of.tasks,
        samples=of.samples,
        seed=of.seed,
        template=of.template,
        data=of.data,
        **asked,
    )


def _samples(task: str, length: str) -> str:
    return f"RULER samples of {task} at {length} tokens"


def _folders(scores: Path) -> list[Path]:
    there = sorted(scores.glob("ruler-*"), key=lambda path: int(path.name.rsplit("-", 1)[1]))
    return [folder for folder in there if (folder / "ruler.json").is_file()]


def _at_one_length(folder: Path) -> Iterator[Measured]:
    length, rows = int(folder.name.rsplit("-", 1)[1]), read_jsonl(folder / "answers.jsonl")
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    niah = [task for task in tasks if task.startswith("niah")]
    means = [
        Mean(name, f"RULER, mean of {words}", group, those)
        for (name, words, group), those, wanted in zip(MEANS, (niah, tasks), (8, 13), strict=True)
        if len(those) == wanted
    ]
    hashes = {path.stem: digest for path, digest in sample_files(folder).items()}
    yield from measures_at("ruler", "RULER", length, rows, hashes, means)


def _samples_of(length: int, records: Sequence[Record]) -> dict[tuple[int, str], Samples]:
    """Records at one length by task; RULER draws the samples of every length anew."""
    found: dict[tuple[int, str], Samples] = {}
    for stratum in sorted({record[1] for record in records}):
        those = sorted(record for record in records if record[1] == stratum)
        keys, scores = tuple(key for key, *_ in those), tuple(total for _, _, total, _ in those)
        found[length, str(stratum)] = Samples(keys, scores, f"{stratum} {length}")
    return found


def _over_lengths(
    found: Sequence[Measured], asked: Sequence[int], stem: str, title: str, group: str, task: str | None
) -> Iterator[Measured]:
    """The mean over lengths, as the paper's tables have it, of what was asked at several; none while one of them is
    missing, of a row that failed on the way: its mean would be of other samples than that of the others."""
    parts = [each for each in found if each[0].id.removeprefix(f"{stem}-").isdigit() and each[1]]
    records: list[Record] = []
    for measure, those in sorted(parts, key=lambda each: each[0].length or 0):
        offset = 1 + max((stratum for _, stratum, *_ in records), default=-1)
        records += [((measure.length, *key), offset + stratum, total, weight) for key, stratum, total, weight in those]
    if len(parts) > 1 and {measure.length for measure, _ in parts}.issuperset(asked):
        yield Measure(f"{stem}-mean", title, "%", "higher", group, task), records
