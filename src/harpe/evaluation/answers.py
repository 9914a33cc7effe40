"""Samples answered by a model or a server: greedy, one record a sample, resumable.

A sample has an input and the beginning of its answer, answer_prefix; a suite adds what it needs to score.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from threading import Event
from typing import Any, Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harpe.data.token_ids import text_ids
from harpe.distributed.processes import ALONE, Processes
from harpe.errors import HarpeError
from harpe.evaluation.cache import ROWS, tokens_at_once, why_padded
from harpe.evaluation.greedy import completions
from harpe.evaluation.statistics.intervals import share


class Asked(Protocol):
    """Samples that are asked in one way: a task of RULER, or a long-context task at a length."""

    @property
    def name(self) -> str:
        """Of their file, without its ending."""

    @property
    def tokens(self) -> int:
        """That an answer may take."""

    def record(self, number: int, sample: dict[str, Any], answer: str) -> dict[str, Any]:
        """The record of an answer: at least task, sample (its number in the file), prediction, outputs and score."""

    def decided(self, sample: dict[str, Any], answer: str) -> bool:
        """Whether no text that follows an answer so far can change its score."""


def answer_samples(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Asked,
    samples: Sequence[dict[str, Any]],
    batch_tokens: int | None = None,
    done: Container[int] = (),
    ranks: Processes = ALONE,
    full: bool = True,
    tick: Callable[[float], None] = lambda samples: None,
) -> Iterator[list[dict[str, Any]]]:
    """Answer samples; yields the records of one batch at a time.

    The prompt is the sample's input and the beginning of the answer, behind what the tokenizer begins texts with. A
    record tells by `cut` whether the answer was ended because its score was decided.

    Parameters
    ----------
    batch_tokens
        Tokens of a batch at most, with the answers; a longer sample is a batch of its own. None: as many as have 1 GiB
        of keys and values, in 32 samples at most; 16384 where samples are padded to one length.
    done
        Numbers of samples that need no answer. Batches are always formed from all samples, so that a resumed evaluation
        computes what an uninterrupted one does.
    ranks
        Processes that share the batches in turn: batches differ in length, and neighbours differ least.
    full
        False: an answer ends where its score is decided.
    tick
        Told from time to time how much of the batch is done, in samples.
    """
    model.eval()
    prompts = [text_ids(tokenizer, sample["input"] + sample["answer_prefix"]) for sample in samples]
    if padded := why_padded(model) is not None:
        order = sorted(range(len(samples)), key=lambda i: (len(prompts[i]), i))
    else:  # prompts that begin alike are neighbours
        order = sorted(range(len(samples)), key=lambda i: (prompts[i], i))
    rows = ROWS if batch_tokens is None else len(order)
    if batch_tokens is None:
        batch_tokens = 16384 if padded else tokens_at_once(model)
    # this setting takes spaces out of what was said before
    full = full or bool(getattr(tokenizer, "clean_up_tokenization_spaces", False))
    start = number = 0
    while start < len(order):
        end, longest = start + 1, len(prompts[order[start]])
        while end < len(order) and end - start < rows:
            longest = max(longest, len(prompts[order[end]]))
            if (end + 1 - start) * (longest + asked.tokens) > batch_tokens:
                break
            end += 1
        batch, start, number = order[start:end], end, number + 1
        if (number - 1) % ranks.count != ranks.rank or all(i in done for i in batch):
            continue
        cut: set[int] = set()

        def enough(row: int, text: str, batch: list[int] = batch, cut: set[int] = cut) -> bool:
            if not full and asked.decided(samples[batch[row]], text):
                cut.add(batch[row])
            return batch[row] in cut

        def share_done(done: float, size: int = len(batch)) -> None:
            tick(done * size)

        answers = completions(model, tokenizer, [prompts[i] for i in batch], asked.tokens, enough, share_done)
        yield [
            asked.record(i, samples[i], answer) | {"cut": i in cut} for i, answer in zip(batch, answers, strict=True)
        ]


def answer_from(
    complete: Callable[[str, int], str],
    asked: Asked,
    samples: Sequence[dict[str, Any]],
    at_once: int,
    done: Container[int] = (),
) -> Iterator[list[dict[str, Any]]]:
    """Answer samples by a function; yields the records of `answer_samples` as they come.

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
            return complete(sample["input"] + sample["answer_prefix"], asked.tokens)
        except HarpeError:
            stop.set()
            raise

    with ThreadPoolExecutor(at_once) as pool:
        try:
            futures = {pool.submit(ask, sample): number for number, sample in enumerate(samples) if number not in done}
            for future in as_completed(futures):
                try:
                    answer = future.result()
                except HarpeError as error:
                    failure = failure or error
                    continue
                if answer is not None:
                    yield [asked.record(futures[future], samples[futures[future]], answer) | {"cut": False}]
        finally:
            stop.set()
    if failure is not None:
        raise failure


def scored(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The mean score of records in per cent, with its 95 % interval; `empty` counts answers without any text."""
    mean, kind = share([float(row["score"]) for row in records])
    counts = {"samples": len(records), "empty": sum(not row["prediction"].strip() for row in records)}
    return {**mean.as_dict("score", 100), "interval": kind, **counts}
