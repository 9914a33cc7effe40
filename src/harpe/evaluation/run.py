"""Evaluate one model by a protocol into a folder of result files; what is already there is not computed again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harpe.data.overlap import unknown_overlap
from harpe.data.token_ids import begin_ids
from harpe.distributed.processes import ALONE, Processes
from harpe.errors import HarpeError
from harpe.evaluation.cache import cache_reuse
from harpe.evaluation.flops import reading_cost
from harpe.evaluation.identity import MEASURING
from harpe.evaluation.needles.answers import Key, answer_samples, key_of
from harpe.evaluation.needles.grid import answer_grid, check_grid, grid_samples, reading_report
from harpe.evaluation.needles.samples import NEEDLE_TASKS, NeedleSample, NeedleWriter
from harpe.evaluation.perplexity.by_position import document_records, summarise
from harpe.evaluation.records import Records, record_files
from harpe.evaluation.statistics.intervals import share
from harpe.files import read_json, sha256_json, write_json
from harpe.measurement import Measurement, check_summary, measurement_id, refuse_other
from harpe.options.measuring import NeedleOptions
from harpe.ownership import refuse_foreign

GRID = "one haystack and needle a sample for all cells; depth in tokens of the length"
"""How the grid's samples are drawn, for protocol.json: grids drawn in another way are not mixed with it."""

Progress = Callable[[str, int, int], None]
"""Called with (what, done, total)."""


@dataclass(frozen=True)
class EvaluationProtocol:
    """Everything that decides what is measured."""

    original_length: int
    length: int
    documents: int = 32
    """Held-out documents of at least length + 1 tokens that perplexity is measured on."""
    samples: int = 100
    """Needle samples a task and length; 0 leaves needles out."""
    tasks: tuple[str, ...] = tuple(NEEDLE_TASKS)
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

    @property
    def files(self) -> tuple[str, ...]:
        """The summaries that are written."""
        asked = {"perplexity.json": 1, "needles.json": self.samples, "grid.json": self.grid_samples}
        return tuple(file for file, samples in asked.items() if samples)

    @staticmethod
    def of(asked: NeedleOptions, original_length: int, length: int, seed: int) -> EvaluationProtocol:
        """With the numbers that options or a recipe ask for."""
        numbers = {field.name: getattr(asked, field.name) for field in fields(NeedleOptions)}
        return EvaluationProtocol(original_length, length, seed=seed, **numbers)

    def reads(self) -> Mapping[int, int]:
        """Tokens that the model reads, roughly, by the length of the texts that they are read in: what the expected
        time is counted from."""
        found = Counter({self.length: self.documents * self.length})
        found[self.original_length] += self.documents * self.length  # the same documents, in windows
        for length in self.task_lengths:
            found[length] += self.samples * len(self.tasks) * length
        ends: dict[int, int] = {}  # by where needles start, how far the longest cell goes
        for length in self.grid_lengths:
            ends |= {int(depth * length): length for depth in self.depths}
        grid = max(ends) + sum(end - place for place, end in ends.items())
        found[max(self.grid_lengths)] += self.grid_samples * grid
        return found

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "tasks": list(self.tasks), "depths": list(self.depths), "grid": GRID}


@dataclass(frozen=True)
class HeldOut:
    """Texts that were never trained on, as token ids of the model's tokenizer."""

    documents: list[list[int]]
    """Behind what the tokenizer begins texts with (`harpe.data.token_ids.text_ids`)."""
    haystacks: list[list[int]]
    """Without special tokens."""
    description: str
    read: dict[str, Any] = field(default_factory=dict)
    """What was read and what was passed over (`harpe.data.special_tokens.Watched.account`), for score files."""

    def identity(self) -> str:
        """SHA-256 that names the texts."""
        return sha256_json([self.documents, self.haystacks])


def long_documents(held_out: HeldOut, protocol: EvaluationProtocol) -> list[list[int]]:
    """The first `protocol.documents` documents that are long enough; HarpeError where there is none."""
    documents = [ids for ids in held_out.documents if len(ids) > protocol.length][: protocol.documents]
    if not documents:
        longest = max(map(len, held_out.documents), default=0)
        raise HarpeError(
            f"None of the {len(held_out.documents)} held-out documents has more than {protocol.length} tokens (the "
            f"longest has {longest}): perplexity at that length cannot be measured. Give longer texts, or a shorter "
            "--length."
        )
    return documents


def check_needles(tokenizer: PreTrainedTokenizerBase, held_out: HeldOut, protocol: EvaluationProtocol) -> None:
    """HarpeError where needle, question and answer of any sample do not fit into its length; to be asked before
    anything is measured."""
    writer = NeedleWriter(tokenizer, held_out.haystacks, protocol.seed)
    for length in protocol.task_lengths:
        for name in protocol.tasks:
            writer.check(NEEDLE_TASKS[name], length, protocol.samples)
    check_grid(writer, max(protocol.grid_lengths), min(protocol.grid_lengths), protocol.grid_samples)


def _share(scores: list[float]) -> dict[str, Any]:
    mean, kind = share(scores)
    return {"samples": len(scores), **mean.as_dict("score"), "interval": kind}


def check_protocol(folder: Path, protocol: EvaluationProtocol, of: Measurement) -> list[str]:
    """Keep what is measured beside the scores; returns the summaries that are still to be made, by name of file.

    Raises HarpeError where the folder holds scores of another model, tokenizer, texts or protocol, files that belong to
    another measurement, or files with a name of ours that harpe did not write. Nothing is written then.
    """
    path, *others = score_files(folder)
    refuse_foreign(path, *others)
    if path.exists():
        refuse_other(read_json(path), of, folder, "Delete the folder to measure again, or name another one with --out.")
    for file in others:
        check_summary(file, of)
    if not path.exists():
        write_json(path, of)
    return [name for name in protocol.files if not ((folder / name).exists() and (folder / _records(name)).exists())]


def score_files(folder: Path) -> list[Path]:
    """Everything that may be written into a folder of scores, protocol.json first; with what processes have left
    there."""
    names = EvaluationProtocol(2, 2).files
    records = [folder / _records(name) for name in names]
    parts = [file for path in records for file in record_files(path) if file != path]
    return [folder / "protocol.json", *(folder / name for name in names), *records, *parts]


def _records(summary: str) -> str:
    """The file with the records of a summary."""
    return str(Path(summary).with_suffix(".jsonl"))


def measurement(protocol: EvaluationProtocol, held_out: HeldOut, dtype: str, identity: dict[str, Any]) -> Measurement:
    """What a folder of scores is of; `identity` says which model and tokenizer."""
    facts = {
        "protocol": protocol.as_dict(),
        "held_out": held_out.identity(),
        "dtype": dtype,
        "measuring": MEASURING["evaluate"],
    }
    return {**facts, **identity}


def evaluate_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    held_out: HeldOut,
    protocol: EvaluationProtocol,
    folder: Path,
    *,
    dtype: str = "float32",
    identity: dict[str, Any] | None = None,
    overlap: dict[str, Any] | None = None,
    ranks: Processes = ALONE,
    progress: Progress = lambda what, done, total: None,
    tell: Callable[[str], None] = lambda sentence: None,
) -> None:
    """Write perplexity.json, needles.json and grid.json, each with its records in a .jsonl file, into `folder`.

    Parameters
    ----------
    dtype
        Of the arithmetic: the weights stay as they are, products run under autocast where this is bfloat16.
    identity
        Says what is evaluated (`harpe.evaluation.identity.identity_of`); kept in protocol.json, so that a folder holds
        one model's scores.
    overlap
        What is known of the overlap between the texts and the training data; written into every file, by the first
        process.
    ranks
        Processes that share the documents and batches of samples; all of them call this with the same arguments.
    tell
        Called with a sentence where something was repaired.
    """

    of = ranks.broadcast_from_rank0(lambda: measurement(protocol, held_out, dtype, identity or {}))

    def missing() -> list[str]:
        check_needles(tokenizer, held_out, protocol)
        files = check_protocol(folder, protocol, of)
        if "perplexity.json" in files:
            long_documents(held_out, protocol)
        return files

    files = ranks.broadcast_from_rank0(missing)
    if overlap is None:
        overlap = unknown_overlap("The texts that this model was trained on are not known.")
    known = {"measurement": measurement_id(of), "overlap": overlap}
    writer = ranks.on_every_rank(lambda: NeedleWriter(tokenizer, held_out.haystacks, protocol.seed))
    work = _Work(model, tokenizer, writer, protocol, folder, of, known, ranks, progress, tell)
    model.eval()
    with torch.autocast(model.device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
        if "perplexity.json" in files:
            work.perplexity(long_documents(held_out, protocol))
        if "needles.json" in files:
            work.needles()
        if "grid.json" in files:
            work.grid()
    ranks.wait()


@dataclass(frozen=True)
class _Work:
    """What the three measurements share. Each adds its records to a .jsonl file, and then the first process writes its
    summary."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    writer: NeedleWriter
    protocol: EvaluationProtocol
    folder: Path
    of: Measurement
    known: dict[str, Any]
    """Entries of every summary."""
    ranks: Processes
    progress: Progress
    tell: Callable[[str], None]

    def perplexity(self, documents: list[list[int]]) -> None:
        lengths = (self.protocol.original_length, self.protocol.length)
        records = Records(self.folder / "perplexity.jsonl", lambda row: row["document"], self.ranks, self.tell, self.of)
        mine = self.ranks.share([number for number in range(len(documents)) if number not in records.rows])
        before = len(records.rows)

        def record(row: dict[str, Any]) -> None:
            records.add(row)
            self.progress("perplexity", len(records.rows), before + len(mine))

        document_records(self.model, documents, *lengths, record, numbers=mine, begin=begin_ids(self.tokenizer))
        self._write("perplexity.json", records, lambda rows: summarise(rows, *lengths))

    def needles(self) -> None:
        protocol = self.protocol
        places = [(name, n) for n in protocol.task_lengths for name in protocol.tasks]

        def drawn() -> list[NeedleSample]:
            return [s for name, n in places for s in self.writer.samples(NEEDLE_TASKS[name], n, protocol.samples)]

        samples = self.ranks.on_every_rank(drawn)
        records = self._answer(
            lambda done: answer_samples(self.model, self.tokenizer, samples, done=done, ranks=self.ranks),
            [(s.task, s.length, s.index, s.depth) for s in samples],
            "needles.jsonl",
            "needles",
        )

        def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
            found = {place: [r["score"] for r in rows if (r["task"], r["length"]) == place] for place in places}
            return {"tasks": [{"task": name, "length": n, **_share(found[name, n])} for name, n in places]}

        self._write("needles.json", records, summary)

    def grid(self) -> None:
        lengths, depths, way = self.protocol.grid_lengths, self.protocol.depths, cache_reuse(self.model)
        samples = self.ranks.on_every_rank(
            lambda: grid_samples(self.writer, max(lengths), min(lengths), self.protocol.grid_samples)
        )
        places = [(n, d) for n in lengths for d in depths]
        records = self._answer(
            lambda done: answer_grid(self.model, self.tokenizer, samples, places, way[0], done=done, ranks=self.ranks),
            [("single", n, sample.index, depth) for sample in samples for n, depth in places],
            "grid.jsonl",
            "needle grid",
        )

        def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
            cells = [
                [_share([r["score"] for r in rows if (r["length"], r["depth"]) == (n, d)]) for d in depths]
                for n in lengths
            ]
            value: dict[str, Any] = {"task": "single", "lengths": list(lengths), "depths": list(depths), "cells": cells}
            return value | {"reading": reading_report(samples, places, reading_cost(self.model), way, rows)}

        self._write("grid.json", records, summary)

    def _answer(
        self,
        answers: Callable[[Container[Key]], Iterator[list[dict[str, Any]]]],
        keys: Sequence[Key],
        file: str,
        what: str,
    ) -> Records:
        """The records named by `keys`, in their order: those that are there, and this process's share of those that
        `answers` makes."""
        order = {key: number for number, key in enumerate(keys)}
        records = Records(self.folder / file, lambda row: order[key_of(row)], self.ranks, self.tell, self.of)
        done = frozenset(key_of(row) for row in records.rows.values())
        self.progress(what, len(done), len(keys))
        for batch in answers(done):
            for record in batch:
                records.add(record)
            self.progress(what, len(records.rows), len(keys))
        return records

    def _write(self, file: str, records: Records, summary: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> None:
        """The summary of what all processes have measured, by the first of them."""
        rows = records.gather()
        if self.ranks.first:
            write_json(self.folder / file, summary(rows) | self.known)
