"""Answering samples: by a model in this process, by several processes, or by a server."""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from harpe.data.token_ids import unbegun
from harpe.distributed.processes import Processes
from harpe.evaluation.answers import Asked, answer_from, answer_samples
from harpe.evaluation.records import Records
from harpe.evaluation.server import CompletionServer
from harpe.files import read_jsonl, write_json, write_text
from harpe.measurement import Measurement, measurement_id
from harpe.models.load import load_model, to_accelerator
from harpe.options.measuring import AnswerOptions
from harpe.reporter import Reporter
from harpe.runs.overlap import Prompts, training_overlap
from harpe.suites.asking import Asking

Rows = list[dict[str, Any]]
Engine = Callable[[Asked, Rows, Container[int]], Iterator[Rows]]
"""Answers those of the samples that are not done yet."""


def write_answers(
    asking: Asking,
    tokenizer: PreTrainedTokenizerBase,
    server: CompletionServer | None,
    of: Measurement,
    reason: str,
    ranks: Processes,
    reporter: Reporter,
) -> None:
    """Write answers.jsonl, a record a sample in the order of the samples, and VERB.json; `reason`: why in the dtype of
    `of`."""
    folder, options, file_of = asking.folder, asking.options, asking.file_of
    records = Records(
        folder / "answers.jsonl",
        lambda row: (asking.place(file_of(row)), row["sample"]),
        ranks,
        reporter.say,
        of,
    )
    numbers: dict[str, set[int]] = {each.name: set() for each in asking.asked}
    for row in records.rows.values():
        numbers.setdefault(file_of(row), set()).add(row["sample"])
    todo = [(each, read_jsonl(folder / f"{each.name}.jsonl")) for each in asking.asked]
    todo = [(each, samples) for each, samples in todo if len(samples) > len(numbers[each.name])]
    if todo and not server:
        reporter.say(f"Arithmetic in {reason}.")
    if todo:
        engine, arithmetic = (
            _by_server(options, tokenizer, server) if server else _by_model(options, tokenizer, of["dtype"], ranks)
        )
    with arithmetic if todo else nullcontext():
        for each, samples in todo:
            done = numbers[each.name]
            reporter.progress(each.name, len(done), len(samples), ranks.note)
            for batch in engine(each, samples, done):
                for record in batch:
                    records.add(record)
                    done.add(record["sample"])
                reporter.progress(each.name, len(done), len(samples), ranks.note)
    answers = records.gather()
    if ranks.first:
        facts = {"server": of["server"], "endpoint": options.endpoint} if server else {"dtype": of["dtype"]}
        files = dict.fromkeys(map(file_of, answers))
        asked = Prompts([_prompts(folder / f"{name}.jsonl") for name in files], tokenizer)
        overlap = training_overlap(str(options.model), tokenizer, asked, reporter)
        facts |= {"measurement": measurement_id(of)}
        value = {**asking.facts, **facts, **asking.summary(answers), "overlap": overlap}
        write_json(asking.results[0], value)
        if asking.figure is not None:
            write_text(asking.results[1], asking.figure(value, of["name"]))
    ranks.wait()


def _prompts(path: Path) -> Iterator[str]:
    """What a task's samples ask, one at a time: a file of samples may be longer than the memory."""
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            sample = json.loads(line)
            yield sample["input"] + sample["answer_prefix"]


def _by_model(
    options: AnswerOptions, tokenizer: PreTrainedTokenizerBase, dtype: str, ranks: Processes
) -> tuple[Engine, AbstractContextManager[Any]]:
    model = to_accelerator(load_model(str(options.model), torch.float32, options.revision))

    def engine(asked: Asked, samples: Rows, done: Container[int]) -> Iterator[Rows]:
        return answer_samples(model, tokenizer, asked, samples, options.batch_tokens, done, ranks)

    return engine, torch.autocast(model.device.type, torch.bfloat16, enabled=dtype == "bfloat16")


def _by_server(
    options: AnswerOptions, tokenizer: PreTrainedTokenizerBase, server: CompletionServer
) -> tuple[Engine, AbstractContextManager[Any]]:
    def complete(prompt: str, budget: int) -> str:
        return server.complete(prompt if options.endpoint == "chat" else unbegun(tokenizer, prompt), budget)

    def engine(asked: Asked, samples: Rows, done: Container[int]) -> Iterator[Rows]:
        return answer_from(complete, asked, samples, options.requests, done)

    return engine, nullcontext()
