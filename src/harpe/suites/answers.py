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
from harpe.evaluation.cache import why_padded
from harpe.evaluation.records import Records
from harpe.evaluation.server import CompletionServer
from harpe.files import read_jsonl, write_json, write_text
from harpe.measurement import Measurement, measurement_id
from harpe.models.dtype import hold_weights
from harpe.models.load import load_model, to_accelerator
from harpe.options.measuring import AnswerOptions
from harpe.reporter import Reporter
from harpe.runs.overlap import Prompts, training_overlap
from harpe.suites.asking import Asking

Rows = list[dict[str, Any]]
Engine = Callable[[Asked, Rows, Container[int], Callable[[float], None]], Iterator[Rows]]
"""Answers those of the samples that are not done yet; tells how many samples of a batch are done so far."""


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
            _by_server(options, tokenizer, server)
            if server
            else _by_model(options, tokenizer, of["dtype"], ranks, reporter)
        )
    with arithmetic if todo else nullcontext():
        sizes = [sum(sample["length"] for sample in samples) / ranks.count for _, samples in todo]
        what, whole = f"tokens of {asking.title}", int(sum(sizes))
        for place, (each, samples) in enumerate(todo):
            done = numbers[each.name]
            note = ", ".join(part for part in (each.name, ranks.note) if part)

            def tick(more: float, place: int = place, done: set[int] = done, note: str = note) -> None:
                tokens = sum(sizes[:place]) + sizes[place] * (len(done) + more) / len(todo[place][1])
                reporter.progress(what, min(int(tokens), whole - 1), whole, note)

            tick(0)
            for batch in engine(each, samples, done, tick):
                for record in batch:
                    records.add(record)
                    done.add(record["sample"])
                tick(0)
        if todo:
            reporter.progress(what, whole, whole)
    answers = records.gather()
    if ranks.first:
        facts: dict[str, Any] = {name: of[name] for name in ("server", "dtype", "answers") if name in of}
        facts |= {"endpoint": options.endpoint} if server else {}
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
    options: AnswerOptions, tokenizer: PreTrainedTokenizerBase, dtype: str, ranks: Processes, reporter: Reporter
) -> tuple[Engine, AbstractContextManager[Any]]:
    model = to_accelerator(load_model(str(options.model), torch.float32, options.revision)).eval()
    if dtype == "bfloat16" and not hold_weights(model, torch.bfloat16):
        reporter.say("The weights stay in float32, which takes longer: the model multiplies some outside of autocast.")
    if reason := why_padded(model):
        reporter.say(f"Samples are read padded to one length, which takes longer. {reason}")

    def engine(asked: Asked, samples: Rows, done: Container[int], tick: Callable[[float], None]) -> Iterator[Rows]:
        return answer_samples(
            model, tokenizer, asked, samples, options.batch_tokens, done, ranks, options.full_answers, tick
        )

    return engine, torch.autocast(model.device.type, torch.bfloat16, enabled=dtype == "bfloat16")


def _by_server(
    options: AnswerOptions, tokenizer: PreTrainedTokenizerBase, server: CompletionServer
) -> tuple[Engine, AbstractContextManager[Any]]:
    def complete(prompt: str, budget: int) -> str:
        return server.complete(prompt if options.endpoint == "chat" else unbegun(tokenizer, prompt), budget)

    def engine(asked: Asked, samples: Rows, done: Container[int], tick: Callable[[float], None]) -> Iterator[Rows]:
        return answer_from(complete, asked, samples, options.requests, done)

    return engine, nullcontext()
