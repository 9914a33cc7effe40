"""Reads the scores of all methods and seeds of a comparison into measures: one number a unit (document, sample), paired over methods."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from harpe.comparison.inputs import texts_of_curve
from harpe.errors import HarpeError
from harpe.evaluation.statistics.resampling import Units
from harpe.files import read_json, read_jsonl, sha256_file
from harpe.runs.differences import GATED

Key = tuple[Any, ...]
Record = tuple[Key, int, float, float]
"""A unit's key, its stratum (a task's number), its total and its weight."""


@dataclass(frozen=True)
class Measure:
    """One measured quantity of all methods."""

    id: str
    title: str
    unit: str
    """`nats` a token, or `%`."""
    better: str
    """`lower` or `higher`."""
    group: str
    task: str | None = None
    length: int | None = None
    found: dict[tuple[str, int], list[Record]] = field(default_factory=dict)
    """By method and seed."""

    def units(self) -> Units:
        """Of any method: they are alike.

        Raises
        ------
        HarpeError
            Where two methods were measured on different units.
        """
        first = next(iter(self.found.values()))
        for (method, seed), records in self.found.items():
            if [(key, stratum, weight) for key, stratum, _, weight in records] != [(k, s, w) for k, s, _, w in first]:
                raise HarpeError(
                    f"{method} (seed {seed}) was measured on other documents or samples than the other methods ({self.title}). Delete its "
                    "scores and run the comparison again."
                )
        return Units.of([weight for *_, weight in first], [stratum for _, stratum, _, _ in first])

    def totals(self, method: str, seeds: Sequence[int]) -> np.ndarray:
        """float64 [seeds, units]."""
        return np.array([[total for _, _, total, _ in self.found[method, seed]] for seed in seeds])

    def seeds(self, method: str) -> list[int]:
        return sorted(seed for name, seed in self.found if name == method)


class Collector:
    """Measures by id, in the order in which they are first met."""

    def __init__(self) -> None:
        self.measures: dict[str, Measure] = {}

    def add(self, measure: Measure, method: str, seed: int, records: Iterable[Record]) -> None:
        rows = sorted(records, key=lambda record: (record[1], record[0]))
        if rows:
            self.measures.setdefault(measure.id, measure).found[method, seed] = rows


def collect(run: Path, methods: Sequence[str], seeds: Sequence[int]) -> list[Measure]:
    """All measures of a run; what a method lacks is left out of them."""
    collector = Collector()
    for method in methods:
        for seed in seeds:
            scores = run / method / f"seed-{seed}" / "scores"
            for read in (_losses, _needles, _grid, _ruler, _curves, _short):
                read(collector, scores, method, seed)
            _over_lengths(collector, method, seed)
    return list(collector.measures.values())


def _texts(scores: Path) -> str:
    """SHA-256 of the texts that scores are of: units with the same number are the same where this is too."""
    path = scores / "protocol.json"
    return str(read_json(path).get("held_out", "")) if path.is_file() else ""


def _question(row: dict[str, Any]) -> Key:
    return str(row["task"]), int(row["doc_id"]), str(row.get("prompt_hash", "")), str(row.get("target", ""))


def _losses(collector: Collector, scores: Path, method: str, seed: int) -> None:
    if not (scores / "perplexity.json").is_file():
        return
    value, rows = read_json(scores / "perplexity.json"), read_jsonl(scores / "perplexity.jsonl")
    short, long, texts = value["short"]["length"], value["long"], _texts(scores)
    title = f"loss in windows of {short:,} tokens"
    records = [((texts, row["document"]), 0, row["short_nll"], row["short_tokens"]) for row in rows]
    collector.add(Measure("loss-short", title, "nats", "lower", "perplexity", length=short), method, seed, records)
    title = f"loss at positions {long['start']:,} to {long['end']:,}"
    records = [((texts, row["document"]), 0, row["nll"][-1], row["tokens"][-1]) for row in rows]
    collector.add(Measure("loss-long", title, "nats", "lower", "perplexity", length=long["end"]), method, seed, records)


def _needles(collector: Collector, scores: Path, method: str, seed: int) -> None:
    if not (scores / "needles.json").is_file():
        return
    rows, texts = read_jsonl(scores / "needles.jsonl"), _texts(scores)
    tasks = list(dict.fromkeys(entry["task"] for entry in read_json(scores / "needles.json")["tasks"]))
    for length in sorted({row["length"] for row in rows}):
        for task in tasks:
            measure = Measure(
                f"needles-{task}-{length}", f"{task} needles at {length:,} tokens", "%", "higher", "needles", task=task, length=length
            )
            asked = [r for r in rows if (r["task"], r["length"]) == (task, length)]
            collector.add(measure, method, seed, [((texts, r["index"]), 0, r["score"], 1.0) for r in asked])
        title = f"mean of the single, multi-key and multi-query needles at {length:,} tokens"
        gated = [name for name in GATED if name in tasks]
        asked = [r for r in rows if r["length"] == length and r["task"] in gated]
        records: list[Record] = [((texts, r["task"], r["index"]), gated.index(r["task"]), r["score"], 1.0) for r in asked]
        collector.add(Measure(f"needles-mean-{length}", title, "%", "higher", "needles", length=length), method, seed, records)


def _grid(collector: Collector, scores: Path, method: str, seed: int) -> None:
    if not (scores / "grid.json").is_file():
        return
    rows, texts = read_jsonl(scores / "grid.jsonl"), _texts(scores)
    cells = sorted({(row["length"], row["depth"]) for row in rows})
    records = [((texts, r["index"]), cells.index((r["length"], r["depth"])), r["score"], 1.0) for r in rows]
    collector.add(Measure("grid-mean", "single needles over the grid", "%", "higher", "needles"), method, seed, records)


def _ruler(collector: Collector, scores: Path, method: str, seed: int) -> None:
    for folder in sorted(scores.glob("ruler-*"), key=lambda path: int(path.name.rsplit("-", 1)[1])):
        if not (folder / "ruler.json").is_file():
            continue
        length, rows = int(folder.name.rsplit("-", 1)[1]), read_jsonl(folder / "answers.jsonl")
        tasks = list(dict.fromkeys(row["task"] for row in rows))
        asked = {task: sha256_file(file) for task in tasks if (file := folder / f"{task}.jsonl").is_file()}
        for task in tasks:
            measure = Measure(f"ruler-{task}-{length}", f"RULER {task} at {length:,} tokens", "%", "higher", "ruler", task, length)
            collector.add(
                measure, method, seed, [((asked.get(task, ""), r["sample"]), 0, r["score"], 1.0) for r in rows if r["task"] == task]
            )
        niah = [task for task in tasks if task.startswith("niah")]
        for name, title, group, chosen, wanted in (
            ("niah", "the eight needle tasks", "ruler-niah", niah, 8),
            ("all", "all 13 tasks", "ruler", tasks, 13),
        ):
            if len(chosen) == wanted:
                those = [(asked.get(r["task"], ""), r) for r in rows if r["task"] in chosen]
                records = [((samples, r["task"], r["sample"]), chosen.index(r["task"]), r["score"], 1.0) for samples, r in those]
                measure = Measure(
                    f"ruler-{name}-{length}", f"RULER, mean of {title} at {length:,} tokens", "%", "higher", group, None, length
                )
                collector.add(measure, method, seed, records)


def _over_lengths(collector: Collector, method: str, seed: int) -> None:
    """Means over lengths, as the paper's tables have them, of the tasks that were asked at several."""
    for name, title, group in (("niah", "the eight needle tasks", "ruler-niah"), ("all", "all 13 tasks", "ruler")):
        _mean_over(collector, f"ruler-{name}", f"RULER, mean of {title} over lengths", group, None, method, seed)
    for task in dict.fromkeys(m.task for m in list(collector.measures.values()) if m.group == "ruler" and m.task):
        _mean_over(collector, f"ruler-{task}", f"RULER {task}, mean over lengths", "ruler", task, method, seed)


def _mean_over(collector: Collector, stem: str, title: str, group: str, task: str | None, method: str, seed: int) -> None:
    parts = [m for m in collector.measures.values() if m.id.removeprefix(f"{stem}-").isdigit() and (method, seed) in m.found]
    records: list[Record] = []
    for m in sorted(parts, key=lambda m: m.length or 0):
        offset = 1 + max((stratum for _, stratum, *_ in records), default=-1)
        records += [((m.length, *key), offset + stratum, total, weight) for key, stratum, total, weight in m.found[method, seed]]
    if len(parts) > 1:
        collector.add(Measure(f"{stem}-mean", title, "%", "higher", group, task), method, seed, records)


def _curves(collector: Collector, scores: Path, method: str, seed: int) -> None:
    for path in sorted(scores.glob("curve-*.json")):
        name, value = path.stem.removeprefix("curve-"), read_json(path)
        texts, yarn = texts_of_curve(value) or "", value.get("average") == "yarn"
        if value["kind"] == "prefixes":
            for point in value["points"]:
                length = point["length"]
                title = f"loss on {name} cut to {length:,} tokens"
                pairs = zip(point["nll"], point["tokens"], strict=True)
                losses = [(total / weight, 1.0) if yarn else (total, weight) for total, weight in pairs]
                measure = Measure(f"curve-{name}-{length}", title, "nats", "lower", "perplexity", length=length)
                collector.add(measure, method, seed, [((texts, i), 0, total, weight) for i, (total, weight) in enumerate(losses)])
        else:
            title = f"loss on {name}, window {value['window']:,}, stride {value['stride']}"
            measure = Measure(f"curve-{name}-{value['window']}", title, "nats", "lower", "perplexity", length=value["window"])
            records = [((texts, d["document"]), 0, *_window_loss(d["nll"], d["tokens"], yarn)) for d in value["documents"]]
            collector.add(measure, method, seed, records)


def _window_loss(nll: Sequence[float], tokens: Sequence[int], yarn: bool) -> tuple[float, float]:
    """A document's total and weight: over tokens, or as YaRN's script has it, where every window counts the same."""
    return (sum(s / n for s, n in zip(nll, tokens, strict=True)), float(len(nll))) if yarn else (sum(nll), float(sum(tokens)))


def _short(collector: Collector, scores: Path, method: str, seed: int) -> None:
    if not (scores / "short" / "short.json").is_file():
        return
    tasks = {name: task for name, task in read_json(scores / "short" / "short.json")["tasks"].items() if "score" in task}
    everything: list[Record] = []
    for number, (name, task) in enumerate(tasks.items()):
        rows = read_jsonl(scores / "short" / f"{name}.jsonl")
        records = [(_question(r), 0, float(r[task["metric"]]), 1.0) for r in rows]
        collector.add(Measure(f"short-{name}", name, "%", "higher", "short", task=name), method, seed, records)
        everything += [(key, number, total, weight) for key, _, total, weight in records]
    if len(tasks) > 1:
        collector.add(Measure("short-mean", "mean of the short benchmarks", "%", "higher", "short"), method, seed, everything)
