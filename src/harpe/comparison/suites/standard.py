"""What `harpe evaluate` measures: perplexity by position, needle tasks, and the grid."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harpe.comparison.suites.base import WAY, Measure, Measured, Record, Subject, Suite, check_least
from harpe.evaluation.run import EvaluationProtocol
from harpe.files import read_json, read_jsonl
from harpe.options.recipe import ComparisonRecipe, EvaluationRecipe
from harpe.reporter import Reporter
from harpe.runs.differences import GATED
from harpe.runs.length_scores import AnsweredTask, needle_tasks
from harpe.suites.standard import evaluate_checkpoint


def protocol_of(recipe: ComparisonRecipe, original_length: int) -> EvaluationProtocol:
    """What is measured of every method."""
    return EvaluationProtocol.of(recipe.evaluation, original_length, recipe.length, recipe.evaluation.seed)


class Standard(Suite):
    """Its settings are the keys of the evaluation itself."""

    key = ""
    settings = EvaluationRecipe

    def check(self, of: EvaluationRecipe, recipe: ComparisonRecipe, where: str) -> None:
        counts = [("documents", of.documents, 1), ("samples", of.samples, 0), ("grid_samples", of.grid_samples, 0)]
        check_least(counts, where)

    def score(self, of: EvaluationRecipe, subject: Subject, scores: Path, reporter: Reporter) -> None:
        protocol = protocol_of(subject.recipe, subject.source.geometry.original_length)
        evaluate_checkpoint(
            subject.model,
            subject.source.tokenizer,
            subject.held_out,
            protocol,
            scores,
            subject.dtype,
            reporter,
            title=subject.title,
            revision=subject.revision,
        )

    def told(self, scores: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
        if (path := scores / "protocol.json").is_file():
            value = read_json(path)
            words = {"held-out texts": "held_out", "protocol": "protocol", "dtype": "dtype"}
            words |= {"settings of the tokenizer": "tokenizer", WAY: "measuring"}
            yield path, {name: value.get(key) for name, key in words.items()}

    def measures(self, scores: Path) -> Iterator[Measured]:
        yield from _losses(scores)
        yield from _needles(scores)
        yield from _grid(scores)

    def by_length(self, scores: Path) -> Iterator[AnsweredTask]:
        yield from needle_tasks(scores)

    def asked(self, of: EvaluationRecipe) -> dict[str, str]:
        found = {"needles-": "needles"} if of.samples else {}
        return found | ({"grid-mean": "the needle grid"} if of.grid_samples else {})


def _texts(scores: Path) -> str:
    """SHA-256 of the texts that scores are of: units with the same number are the same where this is too."""
    path = scores / "protocol.json"
    return str(read_json(path).get("held_out", "")) if path.is_file() else ""


def _losses(scores: Path) -> Iterator[Measured]:
    if not (scores / "perplexity.json").is_file():
        return
    value, rows = read_json(scores / "perplexity.json"), read_jsonl(scores / "perplexity.jsonl")
    short, long, texts = value["short"]["length"], value["long"], _texts(scores)
    title = f"loss in windows of {short:,} tokens"
    records = [((texts, row["document"]), 0, row["short_nll"], row["short_tokens"]) for row in rows]
    yield Measure("loss-short", title, "nats", "lower", "perplexity", length=short), records
    title = f"loss at positions {long['start']:,} to {long['end']:,}"
    records = [((texts, row["document"]), 0, row["nll"][-1], row["tokens"][-1]) for row in rows]
    yield Measure("loss-long", title, "nats", "lower", "perplexity", length=long["end"]), records


def _needles(scores: Path) -> Iterator[Measured]:
    if not (scores / "needles.json").is_file():
        return
    rows, texts = read_jsonl(scores / "needles.jsonl"), _texts(scores)
    tasks = list(dict.fromkeys(entry["task"] for entry in read_json(scores / "needles.json")["tasks"]))
    for length in sorted({row["length"] for row in rows}):
        for task in tasks:
            title = f"{task} needles at {length:,} tokens"
            measure = Measure(f"needles-{task}-{length}", title, "%", "higher", "needles", task, length)
            asked = [r for r in rows if (r["task"], r["length"]) == (task, length)]
            yield measure, [((texts, r["index"]), 0, r["score"], 1.0) for r in asked]
        title = f"mean of the single, multi-key and multi-query needles at {length:,} tokens"
        gated = [name for name in GATED if name in tasks]
        asked = [r for r in rows if r["length"] == length and r["task"] in gated]
        records: list[Record] = [
            ((texts, r["task"], r["index"]), gated.index(r["task"]), r["score"], 1.0) for r in asked
        ]
        yield Measure(f"needles-mean-{length}", title, "%", "higher", "needles", length=length), records


def _grid(scores: Path) -> Iterator[Measured]:
    if not (scores / "grid.json").is_file():
        return
    texts, samples = _texts(scores), dict[int, list[float]]()
    for row in read_jsonl(scores / "grid.jsonl"):
        samples.setdefault(row["index"], []).append(row["score"])
    # one unit a sample: all cells are of the same haystacks
    records: list[Record] = [((texts, i), 0, sum(found) / len(found), 1.0) for i, found in samples.items()]
    yield Measure("grid-mean", "single needles over the grid", "%", "higher", "needles"), records
