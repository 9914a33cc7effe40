"""Evaluate one model by a protocol into a folder of result files; what is already there is not computed again."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harpe.errors import HarpeError
from harpe.evaluation.flops import reading_cost
from harpe.evaluation.generation import Key, answer_samples, key_of
from harpe.evaluation.grid import answer_grid, grid_samples, reading_report, way_of
from harpe.evaluation.needles import TASKS, NeedleWriter
from harpe.evaluation.perplexity import document_records, summarise
from harpe.evaluation.statistics import weighted_mean, wilson
from harpe.files import append_jsonl, read_json, read_jsonl, sha256_json, write_json, write_jsonl

GRID = "one haystack and needle a sample for all cells; depth in tokens of the length"
"""How the grid's samples are drawn, for protocol.json: grids drawn in another way are not mixed with it."""

Progress = Callable[[str, int, int], None]
"""Called with (what, done, total)."""


@dataclass(frozen=True)
class Protocol:
    """Everything that decides what is measured."""

    original_length: int
    length: int
    documents: int = 32
    """Held-out documents of at least length + 1 tokens that perplexity is measured on."""
    samples: int = 100
    """Needle samples a task and length; 0 leaves needles out."""
    tasks: tuple[str, ...] = tuple(TASKS)
    grid_samples: int = 10
    """Needle samples a cell of the grid; 0 leaves the grid out."""
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    seed: int = 1

    @property
    def grid_lengths(self) -> tuple[int, ...]:
        """The original length, doubled until the target, and the target."""
        lengths = [self.original_length]
        while lengths[-1] * 2 < self.length:
            lengths.append(lengths[-1] * 2)
        return (*lengths, self.length) if lengths[-1] < self.length else tuple(lengths)

    @property
    def task_lengths(self) -> tuple[int, ...]:
        """Where the needle tasks are asked: within the original context and at the target length."""
        return tuple(sorted({self.original_length, self.length}))

    def tokens(self) -> int:
        """Tokens that the model reads, roughly: what the expected time is counted from."""
        needles = self.samples * len(self.tasks) * sum(self.task_lengths)
        return 2 * self.documents * self.length + needles + self.grid_samples * len(self.depths) * sum(self.grid_lengths)

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "tasks": list(self.tasks), "depths": list(self.depths), "grid": GRID}


@dataclass(frozen=True)
class HeldOut:
    """Texts that were never trained on, as token ids of the model's tokenizer."""

    documents: list[list[int]]
    """With the tokenizer's own special tokens."""
    haystacks: list[list[int]]
    """Without."""
    description: str

    def identity(self) -> str:
        """SHA-256 that names the texts."""
        return sha256_json([self.documents, self.haystacks])


def long_documents(held_out: HeldOut, protocol: Protocol) -> list[list[int]]:
    """The first `protocol.documents` documents that are long enough; HarpeError where there is none."""
    documents = [ids for ids in held_out.documents if len(ids) > protocol.length][: protocol.documents]
    if not documents:
        longest = max(map(len, held_out.documents), default=0)
        raise HarpeError(
            f"None of the {len(held_out.documents)} held-out documents has more than {protocol.length} tokens (the longest has "
            f"{longest}): perplexity at that length cannot be measured. Give longer texts, or a shorter --length."
        )
    return documents


def _rows(path: Path, key: Callable[[dict[str, Any]], Any]) -> dict[Any, dict[str, Any]]:
    """Rows that are already there, by key; a line that a kill cut short is removed."""
    rows = read_jsonl(path) if path.exists() else []
    write_jsonl(path, rows)
    return {key(row): row for row in rows}


def _answer(
    answers: Callable[[Container[Key]], Iterator[list[dict[str, Any]]]], count: int, path: Path, what: str, progress: Progress
) -> list[dict[str, Any]]:
    """All `count` records: those in the file, and those that `answers` makes beside them, which are appended as they come."""
    rows = _rows(path, key_of)
    progress(what, len(rows), count)
    for batch in answers(rows.keys()):
        for record in batch:
            if key_of(record) not in rows:
                append_jsonl(path, record)
                rows[key_of(record)] = record
        progress(what, len(rows), count)
    return list(rows.values())


def _share(scores: list[float]) -> dict[str, Any]:
    """Mean score; Wilson's interval where every score is 0 or 1, else a bootstrap over the samples."""
    whole = all(score in (0.0, 1.0) for score in scores)
    mean = wilson(sum(scores), len(scores)) if whole else weighted_mean(scores, [1.0] * len(scores))
    kind = "Wilson" if whole else "bootstrap over samples"
    return {"samples": len(scores), "score": mean.value, "low": mean.low, "high": mean.high, "interval": kind}


def check_protocol(folder: Path, protocol: Protocol, identity: dict[str, Any]) -> None:
    """Keep the protocol beside the scores; refuse to mix scores of two protocols or of two sets of texts."""
    value, path = {"protocol": protocol.as_dict(), **identity}, folder / "protocol.json"
    if path.exists():
        there = {k: v for k, v in read_json(path).items() if k != "schema_version"}
        if there != value:
            raise HarpeError(
                f"{folder} holds scores that were measured in another way (see protocol.json there). Delete the folder to measure "
                "again, or name another one with --out."
            )
    else:
        write_json(path, value)


def evaluate_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    held_out: HeldOut,
    protocol: Protocol,
    folder: Path,
    *,
    dtype: str = "float32",
    identity: dict[str, Any] | None = None,
    progress: Progress = lambda what, done, total: None,
) -> None:
    """Write perplexity.json, needles.json and grid.json, each with its records in a .jsonl file, into `folder`.

    Parameters
    ----------
    dtype
        Of the arithmetic: the weights stay as they are, products run under autocast where this is bfloat16.
    identity
        Names what is evaluated (checkpoint, revision); kept in protocol.json, so that a folder holds one model's scores.
    """
    folder.mkdir(parents=True, exist_ok=True)
    check_protocol(folder, protocol, {"held_out": held_out.identity(), "dtype": dtype, **(identity or {})})
    writer = NeedleWriter(tokenizer, held_out.haystacks, protocol.seed)
    model.eval()
    with torch.autocast(model.device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
        if not (folder / "perplexity.json").exists():
            documents = long_documents(held_out, protocol)
            rows = _rows(folder / "perplexity.jsonl", lambda row: row["document"])

            def record(row: dict[str, Any]) -> None:
                append_jsonl(folder / "perplexity.jsonl", row)
                rows[row["document"]] = row
                progress("perplexity", len(rows), len(documents))

            document_records(model, documents, protocol.original_length, protocol.length, record, first=len(rows))
            write_json(folder / "perplexity.json", summarise(list(rows.values()), protocol.original_length, protocol.length))
        if protocol.samples and not (folder / "needles.json").exists():
            samples = [
                s for n in protocol.task_lengths for name in protocol.tasks for s in writer.samples(TASKS[name], n, protocol.samples)
            ]

            def answers(done: Container[Key]) -> Iterator[list[dict[str, Any]]]:
                return answer_samples(model, tokenizer, samples, done=done)

            records = _answer(answers, len(samples), folder / "needles.jsonl", "needles", progress)
            tasks = [
                {"task": name, "length": n, **_share([r["score"] for r in records if (r["task"], r["length"]) == (name, n)])}
                for n in protocol.task_lengths
                for name in protocol.tasks
            ]
            write_json(folder / "needles.json", {"tasks": tasks})
        if protocol.grid_samples and not (folder / "grid.json").exists():
            _write_grid(model, tokenizer, writer, protocol, folder, progress)


def _write_grid(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, writer: NeedleWriter, protocol: Protocol, folder: Path, progress: Progress
) -> None:
    lengths, depths, way = protocol.grid_lengths, protocol.depths, way_of(model)
    samples = grid_samples(writer, max(lengths), min(lengths), protocol.grid_samples)
    places = [(n, d) for n in lengths for d in depths]

    def answers(done: Container[Key]) -> Iterator[list[dict[str, Any]]]:
        return answer_grid(model, tokenizer, samples, places, way[0], done=done)

    records = _answer(answers, len(samples) * len(places), folder / "grid.jsonl", "needle grid", progress)
    cells = [[_share([r["score"] for r in records if (r["length"], r["depth"]) == (n, d)]) for d in depths] for n in lengths]
    value = {"task": "single", "lengths": list(lengths), "depths": list(depths), "cells": cells}
    write_json(folder / "grid.json", {**value, "reading": reading_report(samples, places, reading_cost(model), way, records)})
