"""Answers needle samples with greedy generation and scores them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harpe.evaluation.needles import NeedleSample

Progress = Callable[[int], None]


@torch.inference_mode()
def answer_batch(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch: list[NeedleSample]) -> list[list[str]]:
    """Greedy answers, one text a turn, of samples of one shape. Earlier questions and answers stay in the context.

    Only the last position's logits are computed, and the key/value cache is carried from turn to turn.
    """
    device = model.device
    texts: list[list[str]] = [[] for _ in batch]
    cache: Any = None
    pending = torch.tensor([sample.context for sample in batch], device=device)
    for number in range(len(batch[0].turns)):
        question = torch.tensor([sample.turns[number].question for sample in batch], device=device)
        pending = torch.cat([pending, question], dim=1)
        answer = []
        for _ in range(batch[0].turns[number].budget):
            out = model(input_ids=pending, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = out.past_key_values
            pending = out.logits[:, -1].argmax(-1, keepdim=True)
            answer.append(pending)
        for text, ids in zip(texts, torch.cat(answer, dim=1).tolist(), strict=True):
            text.append(tokenizer.decode(ids))
    return texts


def score(sample: NeedleSample, texts: list[str]) -> float:
    """Share of the expected numbers that stand in their turn's answer, as whole numbers: 1.0 is all right."""
    expected = [answer for turn in sample.turns for answer in turn.answers]
    hits = sum(
        answer in re.findall(r"\d+", text) for turn, text in zip(sample.turns, texts, strict=True) for answer in turn.answers
    )
    return hits / len(expected)


def answer_samples(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    samples: Iterable[NeedleSample],
    batch_tokens: int = 16384,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Answer and score samples; returns one record each (task, length, index, depths, expected, answers, score).

    Samples of equal shape share a batch of at most `batch_tokens` tokens.
    """
    model.eval()
    records = []
    for _, group in groupby(sorted(samples, key=lambda s: (s.shape, s.task, s.length)), key=lambda s: s.shape):
        same = list(group)
        size = max(1, batch_tokens // max(1, sum(same[0].shape)))
        for start in range(0, len(same), size):
            batch = same[start : start + size]
            for sample, texts in zip(batch, answer_batch(model, tokenizer, batch), strict=True):
                records.append(
                    {
                        "task": sample.task,
                        "length": sample.length,
                        "index": sample.index,
                        "depths": [round(d, 4) for d in sample.depths],
                        "expected": [list(turn.answers) for turn in sample.turns],
                        "answers": texts,
                        "score": score(sample, texts),
                    }
                )
            if progress is not None:
                progress(len(batch))
    return records
