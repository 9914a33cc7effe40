"""Short benchmarks (`harpe short`)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harpe.comparison.suites.asked import names_of
from harpe.comparison.suites.base import (
    Key,
    Measure,
    Measured,
    Record,
    Subject,
    Suite,
    asked_of,
    check_least,
    check_names,
    way_of,
)
from harpe.errors import HarpeError
from harpe.evaluation.short.helmet import helmet_names, helmet_part, is_helmet
from harpe.evaluation.short.hub import LONG, DataSets
from harpe.evaluation.short.offline import FOLDERS, LOCAL
from harpe.files import read_json, read_jsonl, sha256_file, sha256_json
from harpe.options.measuring import ShortOptions, ShortTasks
from harpe.options.recipe import ComparisonRecipe
from harpe.reporter import Reporter
from harpe.runs.source import Source
from harpe.suites.short import check_tasks, measure_short


class Short(Suite):
    """Tasks of lm-eval."""

    key = "short"
    settings = ShortTasks | None
    pinned = "short"

    def check(self, of: ShortTasks, recipe: ComparisonRecipe, where: str) -> None:
        check_names(tasks := names_of(of.tasks), "a task (short)", where)
        if sets := [name for name in tasks if name == LONG or (is_helmet(name) and helmet_names(name) != [name])]:
            raise HarpeError(f"{where} asks for {', '.join(sets)}, which stand for several: name the tasks one by one.")
        if "mean" in tasks:
            raise HarpeError(f"{where} has a short benchmark named mean, which is what their mean is called.")
        check_least([("limit of short", 1 if of.limit is None else of.limit, 1)], where)

    def prepare(self, of: ShortTasks, recipe: ComparisonRecipe, run: Path) -> None:
        try:
            import lm_eval  # noqa: F401
        except ImportError:
            raise HarpeError(
                "The recipe asks for short benchmarks, which need lm-eval: pip install 'harpe[eval]'."
            ) from None
        check_tasks(self._options(of, recipe, recipe.model, run, recipe.dtype, recipe.revision))

    def inputs(self, of: ShortTasks, recipe: ComparisonRecipe, source: Source, run: Path) -> str | None:
        """SHA-256 of the files that questions are read from; None where all of them come from the hub."""
        named = of.data or os.environ.get("HARPE_DATA")
        if not named:
            return None
        folder, tasks = Path(named), names_of(of.tasks)
        own = [name for name in tasks if name in LOCAL or (of.offline and name in FOLDERS)]
        helmet = [name for name in tasks if is_helmet(name)]
        parts = sorted({f"short_bench/{part}" for name in own for part in FOLDERS[name]})
        parts += sorted({f"helmet/{helmet_part(name)}" for name in helmet})
        files = [path for part in parts for path in sorted((folder / part).rglob("*")) if path.is_file()]
        found = [[str(file.relative_to(folder)), sha256_file(file)] for file in files]
        data = DataSets(folder / "hub")
        needed = {each for name in tasks if name not in {*own, *helmet} for each in data.needed(name)}
        found += [[f"hub/{name}", digest] for name, digest in data.hashes(needed).items()]
        return sha256_json(found) if own or found else None

    def facts(self, inputs: str | None) -> dict[str, Any]:
        return {} if inputs is None else {"questions of the short benchmarks": inputs}

    def score(self, of: ShortTasks, subject: Subject, scores: Path, reporter: Reporter) -> None:
        measure_short(
            self._options(of, subject.recipe, subject.model, scores, subject.dtype, subject.revision), reporter
        )

    def _options(
        self, of: ShortTasks, recipe: ComparisonRecipe, model: str, folder: Path, dtype: Any, revision: str | None
    ) -> ShortOptions:
        given = {"model": model, "out": str(folder / "short"), "dtype": dtype, "revision": revision}
        return ShortOptions(**vars(of), **given, tokenizer=recipe.tokenizer)

    def told(self, scores: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
        if (path := scores / "short" / "short.json").is_file():
            yield path, way_of(read_json(path).get("measurement"), "short benchmarks")

    def measures(self, scores: Path) -> Iterator[Measured]:
        if not (path := scores / "short" / "short.json").is_file():
            return
        measured = read_json(path)["tasks"]
        tasks = {name: task for name, task in measured.items() if "score" in task}
        everything: list[Record] = []
        for name, task in tasks.items():
            rows = read_jsonl(scores / "short" / f"{name}.jsonl")
            records: list[Record] = [(_question(row), 0, float(row[task["metric"]]), 1.0) for row in rows]
            yield Measure(f"short-{name}", name, "%", "higher", "short", task=name), records
            number = sorted(tasks).index(name)  # in files: the order in which tasks were measured
            everything += [(key, number, total, weight) for key, _, total, weight in records]
        missing = set(names_of(asked_of(scores, self.key).get("tasks", ""))) - set(measured)
        if len(tasks) > 1 and not missing:  # of a row that failed on the way it would be a mean of other tasks
            yield Measure("short-mean", "mean of the short benchmarks", "%", "higher", "short"), everything

    def notes(self, scores: Path) -> Iterator[str]:
        """Of questions that lost their beginning, and of scores that are not those of others."""
        if (path := scores / "short" / "short.json").is_file():
            yield from (f"{name}: {task['note']}." for name, task in read_json(path)["tasks"].items() if "note" in task)

    def asked(self, of: ShortTasks) -> dict[str, str]:
        return {f"short-{name}": name for name in names_of(of.tasks)}


def _question(row: dict[str, Any]) -> Key:
    return str(row["task"]), int(row["doc_id"]), str(row.get("prompt_hash", "")), str(row.get("target", ""))
