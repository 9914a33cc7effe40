"""Answers needle samples with greedy generation and scores them."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from itertools import groupby
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harpe.distributed.processes import ALONE, Processes
from harpe.evaluation.greedy import answer
from harpe.evaluation.needles.samples import NeedleSample, hits

Key = tuple[str, int, int, float | None]
"""Task, length, index and depth of a sample."""


@torch.inference_mode()
def answer_batch(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch: list[NeedleSample]
) -> list[list[str]]:
    """Greedy answers, one text a turn, of samples of one shape. Earlier questions and answers stay in the context.

    Only the last position's logits are computed, and the key/value cache is carried from turn to turn.
    """
    texts: list[list[str]] = [[] for _ in batch]
    cache: Any = None
    pending = torch.tensor([sample.context for sample in batch], device=model.device)
    for number, turn in enumerate(batch[0].turns):
        question = torch.tensor([sample.turns[number].question for sample in batch], device=model.device)
        ids, _, cache = answer(model, torch.cat([pending, question], dim=1), cache, turn.budget, whole=True)
        pending = ids[:, -1:]
        for text, row in zip(texts, ids.tolist(), strict=True):
            text.append(str(tokenizer.decode(row)))
    return texts


def score(sample: NeedleSample, texts: list[str]) -> float:
    """Share of the expected numbers that stand in their turn's answer, as whole numbers: 1.0 is all right."""
    found = sum(hits(turn.answers, text) for turn, text in zip(sample.turns, texts, strict=True))
    return found / sum(len(turn.answers) for turn in sample.turns)


def key_of(record: dict[str, Any]) -> Key:
    """What tells a record from all others."""
    return record["task"], record["length"], record["index"], record["depth"]


def record_of(sample: NeedleSample, texts: list[str]) -> dict[str, Any]:
    """One line of the results: task, length, index, depth (null where the needles' places were drawn), depths,
    expected, answers, score."""
    return {
        "task": sample.task,
        "length": sample.length,
        "index": sample.index,
        "depth": sample.depth,
        "depths": [round(d, 4) for d in sample.depths],
        "expected": [list(turn.answers) for turn in sample.turns],
        "answers": texts,
        "score": score(sample, texts),
    }


def answer_samples(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    samples: Iterable[NeedleSample],
    batch_tokens: int = 16384,
    done: Container[Key] = (),
    ranks: Processes = ALONE,
) -> Iterator[list[dict[str, Any]]]:
    """Answer and score samples; yields the records of one batch at a time.

    Samples of equal shape share a batch of at most `batch_tokens` tokens.

    Parameters
    ----------
    done
        Keys of samples that need no answer: batches that hold no other sample are passed over. Batches are always
        formed from all samples, so that a resumed evaluation computes what an uninterrupted one does.
    ranks
        Processes that share the batches that are left.
    """
    model.eval()
    batches = []
    for _, group in groupby(sorted(samples, key=lambda s: (s.shape, s.task, s.length)), key=lambda s: s.shape):
        same = list(group)
        size = max(1, batch_tokens // max(1, sum(same[0].shape)))
        for start in range(0, len(same), size):
            batch = same[start : start + size]
            if not all((s.task, s.length, s.index, s.depth) in done for s in batch):
                batches.append(batch)
    for batch in ranks.share(batches):
        texts = answer_batch(model, tokenizer, batch)
        yield [record_of(sample, answers) for sample, answers in zip(batch, texts, strict=True)]
