"""Answering RULER's samples: by a model in this process, by several processes, or by a server."""

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
from harpe.evaluation.records import Records
from harpe.evaluation.ruler.answer import answer_from, answer_task, summary
from harpe.evaluation.ruler.tasks import RULER_TASKS, RulerTask
from harpe.evaluation.server import CompletionServer
from harpe.files import read_jsonl, write_json
from harpe.measurement import Measurement, measurement_id
from harpe.models.load import load_model, to_accelerator
from harpe.options.measuring import RulerOptions
from harpe.reporter import Reporter
from harpe.runs.overlap import Prompts, training_overlap

Rows = list[dict[str, Any]]
Engine = Callable[[RulerTask, Rows, Container[int]], Iterator[Rows]]
"""Answers those of a task's samples that are not done yet."""


def write_answers(
    options: RulerOptions,
    tokenizer: PreTrainedTokenizerBase,
    tasks: list[RulerTask],
    folder: Path,
    server: CompletionServer | None,
    of: Measurement,
    reason: str,
    ranks: Processes,
    reporter: Reporter,
) -> None:
    """Write answers.jsonl, a record a sample in the order of the samples, and ruler.json; `reason`: why in the dtype of
    `of`."""
    order = list(RULER_TASKS)
    records = Records(
        folder / "answers.jsonl", lambda row: (order.index(row["task"]), row["sample"]), ranks, reporter.say, of
    )
    todo = [(task, read_jsonl(folder / f"{task.name}.jsonl")) for task in tasks]
    todo = [
        (task, samples)
        for task, samples in todo
        if len(samples) > sum(row["task"] == task.name for row in records.rows.values())
    ]
    if todo and not server:
        reporter.say(f"Arithmetic in {reason}.")
    if todo:
        engine, arithmetic = (
            _by_server(options, tokenizer, server) if server else _by_model(options, tokenizer, of["dtype"], ranks)
        )
    with arithmetic if todo else nullcontext():
        for task, samples in todo:
            done = {row["sample"] for row in records.rows.values() if row["task"] == task.name}
            reporter.progress(task.name, len(done), len(samples), ranks.note)
            for batch in engine(task, samples, done):
                for record in batch:
                    records.add(record)
                    done.add(record["sample"])
                reporter.progress(task.name, len(done), len(samples), ranks.note)
    answers = records.gather()
    if ranks.first:
        facts = {"server": of["server"], "endpoint": options.endpoint} if server else {"dtype": of["dtype"]}
        scores = summary(answers)
        asked = Prompts([_prompts(folder / f"{task}.jsonl") for task in scores["tasks"]], tokenizer)
        overlap = training_overlap(str(options.model), tokenizer, asked, reporter)
        facts |= {"measurement": measurement_id(of)}
        write_json(folder / "ruler.json", {"length": options.length, **facts, **scores, "overlap": overlap})
    ranks.wait()


def _prompts(path: Path) -> Iterator[str]:
    """What a task's samples ask, one at a time: a file of samples may be longer than the memory."""
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            sample = json.loads(line)
            yield sample["input"] + sample["answer_prefix"]


def _by_model(
    options: RulerOptions, tokenizer: PreTrainedTokenizerBase, dtype: str, ranks: Processes
) -> tuple[Engine, AbstractContextManager[Any]]:
    model = to_accelerator(load_model(str(options.model), torch.float32, options.revision))

    def engine(task: RulerTask, samples: Rows, done: Container[int]) -> Iterator[Rows]:
        return answer_task(model, tokenizer, task, samples, options.batch_tokens, done, ranks)

    return engine, torch.autocast(model.device.type, torch.bfloat16, enabled=dtype == "bfloat16")


def _by_server(
    options: RulerOptions, tokenizer: PreTrainedTokenizerBase, server: CompletionServer
) -> tuple[Engine, AbstractContextManager[Any]]:
    def complete(prompt: str, budget: int) -> str:
        return server.complete(prompt if options.endpoint == "chat" else unbegun(tokenizer, prompt), budget)

    def engine(task: RulerTask, samples: Rows, done: Container[int]) -> Iterator[Rows]:
        return answer_from(complete, task, samples, options.requests, done)

    return engine, nullcontext()
