"""Answers RULER's samples with a model or a server: greedy, one record a sample, resumable."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from threading import Event
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harpe.data.token_ids import text_ids
from harpe.distributed.processes import ALONE, Processes
from harpe.errors import HarpeError
from harpe.evaluation.greedy import completions
from harpe.evaluation.ruler.tasks import RULER_TASKS, RulerTask, score
from harpe.evaluation.statistics.intervals import share


def _record(task: RulerTask, number: int, sample: dict[str, Any], answer: str) -> dict[str, Any]:
    outputs, place = sample["outputs"], sample.get("token_position_answer")
    said = {"task": task.name, "sample": number, "prediction": answer, "outputs": outputs}
    return {**said, "score": score(task, answer, outputs), "token_position_answer": place}


def answer_task(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: RulerTask,
    samples: Sequence[dict[str, Any]],
    batch_tokens: int = 16384,
    done: Container[int] = (),
    ranks: Processes = ALONE,
) -> Iterator[list[dict[str, Any]]]:
    """Answer a task's samples; yields the records of one batch at a time.

    A record has task, sample (its number in the file), prediction, outputs, score, and token_position_answer (null
    where a task has none). The prompt is the sample's input and the beginning of the answer, behind what the tokenizer
    begins texts with.

    Parameters
    ----------
    done
        Numbers of samples that need no answer. Batches are always formed from all samples, so that a resumed evaluation
        computes what an uninterrupted one does.
    ranks
        Processes that share the batches in turn: batches differ in length, and neighbours differ least.
    """
    model.eval()
    prompts = [text_ids(tokenizer, sample["input"] + sample["answer_prefix"]) for sample in samples]
    order = sorted(range(len(samples)), key=lambda i: (len(prompts[i]), i))
    start = number = 0
    while start < len(order):
        end = start + 1
        while end < len(order) and (end + 1 - start) * (len(prompts[order[end]]) + task.tokens) <= batch_tokens:
            end += 1
        batch, start, number = order[start:end], end, number + 1
        if (number - 1) % ranks.count != ranks.rank or all(i in done for i in batch):
            continue
        answers = completions(model, tokenizer, [prompts[i] for i in batch], task.tokens)
        yield [_record(task, i, samples[i], answer) for i, answer in zip(batch, answers, strict=True)]


def answer_from(
    complete: Callable[[str, int], str],
    task: RulerTask,
    samples: Sequence[dict[str, Any]],
    at_once: int,
    done: Container[int] = (),
) -> Iterator[list[dict[str, Any]]]:
    """Answer a task's samples by a function; yields the records of `answer_task` as they come.

    Parameters
    ----------
    complete
        Gives the greedy continuation of a prompt by a number of tokens; called from `at_once` threads.

    Raises
    ------
    HarpeError
        The first one of `complete`, after the answers that were already under way have been yielded. No further samples
        are asked.
    """
    failure: HarpeError | None = None
    stop = Event()

    def ask(sample: dict[str, Any]) -> str | None:
        if stop.is_set():
            return None
        try:
            return complete(sample["input"] + sample["answer_prefix"], task.tokens)
        except HarpeError:
            stop.set()
            raise

    with ThreadPoolExecutor(at_once) as pool:
        try:
            asked = {pool.submit(ask, sample): number for number, sample in enumerate(samples) if number not in done}
            for future in as_completed(asked):
                try:
                    answer = future.result()
                except HarpeError as error:
                    failure = failure or error
                    continue
                if answer is not None:
                    yield [_record(task, asked[future], samples[asked[future]], answer)]
        finally:
            stop.set()
    if failure is not None:
        raise failure


def summary(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Scores in per cent by task, with 95 % intervals, and their means over the needle tasks and over all 13 where
    those are complete.

    `empty` counts answers without any text.
    """
    tasks: dict[str, dict[str, Any]] = {}
    for name in RULER_TASKS:
        rows = [r for r in records if r["task"] == name]
        if not rows:
            continue
        scores = [float(r["score"]) for r in rows]
        mean, kind = share(scores)
        counts = {"samples": len(rows), "empty": sum(not r["prediction"].strip() for r in rows)}
        tasks[name] = {**mean.as_dict("score", 100), "interval": kind, **counts}
    needles = [float(value["score"]) for name, value in tasks.items() if name.startswith("niah")]
    value: dict[str, Any] = {"tasks": tasks}
    if len(needles) == 8:
        value["needle_mean"] = sum(needles) / 8
    if len(tasks) == len(RULER_TASKS):
        value["mean"] = sum(t["score"] for t in tasks.values()) / len(RULER_TASKS)
    return value
