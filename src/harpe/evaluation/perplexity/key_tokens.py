"""LongPPL (Fang et al. 2025, arXiv 2410.23771): perplexity on the tokens that need the long context.

A judge, the model itself or another one, says which tokens those are (`harpe.models.key_tokens`). A judge with another
tokenizer reads the same text, and a token of the model counts where its characters lie within a run of the judge's key
tokens, as in the published program.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harpe.errors import HarpeError
from harpe.evaluation.perplexity.curves import document_losses, position_edges, position_means
from harpe.evaluation.statistics.intervals import weighted_mean
from harpe.models.key_tokens import key_tokens, short_context_nll, step_of

Offsets = list[tuple[int, int]]


@dataclass(frozen=True)
class JudgeText:
    """A document as a judge with another tokenizer reads it."""

    ids: list[int]
    """Of the judge's tokenizer, behind what that begins texts with."""
    judged: Offsets
    """Characters of each of them; (0, 0) where it has none."""
    own: Offsets
    """Characters of the model's tokens."""


def judge_text(
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[int],
    size: int,
    judge: PreTrainedTokenizerBase,
    begin: Sequence[int],
) -> JudgeText:
    """The text of the first `size` ids of a document for a judge whose texts begin with `begin`.

    Raises HarpeError where a tokenizer does not tell characters, or does not give the same tokens of its own text.
    """
    for each in (tokenizer, judge):
        if not each.is_fast:
            raise HarpeError(
                f"A {type(each).__name__} does not say which characters its tokens stand for, and a --judge with "
                "another tokenizer needs that. Leave --judge out: the model then judges itself."
            )
    text = str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
    again = _encoded(tokenizer, text)
    if list(again["input_ids"][:size]) != list(ids[:size]):
        raise HarpeError(
            "A document's tokens do not come back from their text, so that a --judge with another tokenizer would read "
            "something else. Name a --judge with the model's tokenizer, or leave --judge out."
        )
    own: Offsets = [tuple(pair) for pair in again["offset_mapping"][:size]]
    read = _encoded(judge, text[: own[-1][1]])
    return JudgeText(
        [*begin, *read["input_ids"]], [(0, 0)] * len(begin) + [tuple(pair) for pair in read["offset_mapping"]], own
    )


def _encoded(tokenizer: PreTrainedTokenizerBase, text: str) -> Any:
    return tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)


def judged(
    model: PreTrainedModel, ids: Sequence[int], short_context: int, long: np.ndarray | None = None
) -> np.ndarray:
    """Which tokens of a document need the long context: bool [S - 1], entry p for token p + 1.

    Parameters
    ----------
    ids
        [S], as the judge reads the document.
    long
        The model's losses behind all tokens before (`document_losses`), where they are known.
    """
    long = document_losses(model, ids) if long is None else long
    short = short_context_nll(model, torch.as_tensor(ids, dtype=torch.int64), short_context, step_of(short_context))
    return key_tokens(torch.from_numpy(long), short.double().cpu()).numpy()


def covered(offsets: Offsets, keys: Offsets) -> np.ndarray:
    """Which of `offsets` lie within a run of `keys`, both ascending: bool [len(offsets)].

    Keys of which one begins where the one before it ends are one run.
    """
    if not keys:
        return np.zeros(len(offsets), bool)
    starts, ends = np.array(keys).T
    apart = starts[1:] != ends[:-1]
    starts, ends = starts[np.append(True, apart)], np.maximum.accumulate(ends[np.append(apart, True)])
    a, b = np.array(offsets).T
    run = np.searchsorted(starts, a, side="right") - 1
    return (run >= 0) & (b <= ends[np.maximum(run, 0)])


def keys_by_characters(text: JudgeText, mask: np.ndarray, begin: int) -> np.ndarray:
    """The judge's key tokens (bool [its tokens - 1]) as those of the model: bool [tokens - 1 + begin], where the model
    reads `begin` ids in front of the text."""
    keys = [text.judged[p + 1] for p in np.flatnonzero(mask)]
    return np.append(np.zeros(begin, bool), covered(text.own, keys))[1:]


def key_record(losses: Sequence[np.ndarray], keys: np.ndarray, lengths: Sequence[int]) -> dict[str, Any]:
    """One document's losses on key tokens.

    Parameters
    ----------
    losses
        For every length those of the document cut to it: [at least length - 1], the last one of the longest.
    keys
        bool [longest - 1].

    Returns
    -------
    nll (sums in nats) and tokens by length; position_nll and position_tokens by the bins of
    `position_edges(lengths[-1])`."""
    sums, counts = [], []
    for of, length in zip(losses, lengths, strict=True):
        there = of[: length - 1][keys[: length - 1]]
        sums.append(float(there.sum()))
        counts.append(len(there))
    parts = [slice(a, b) for a, b in pairwise(position_edges(lengths[-1]))]
    return {
        "nll": sums,
        "tokens": counts,
        "position_nll": [float(losses[-1][part][keys[part]].sum()) for part in parts],
        "position_tokens": [int(keys[part].sum()) for part in parts],
    }


def key_summary(records: Sequence[dict[str, Any]], lengths: Sequence[int], short_context: int) -> dict[str, Any]:
    """Perplexity on key tokens by length and their loss by position, from the documents' `key_record`s.

    Returns
    -------
    points: for every length count (of key tokens), documents that have any, and perplexity with the ends of its
    interval (over key tokens; bootstrap over documents), which is None where there is no key token; by document nll and
    tokens. share: of the tokens behind the first `short_context`. positions: as in `prefix_curve`."""
    points = []
    for i, length in enumerate(lengths):
        pairs = [(r["nll"][i], r["tokens"][i]) for r in records]
        there = [(s, n) for s, n in pairs if n]
        point: dict[str, Any] = {"length": length, "count": sum(n for _, n in there), "documents": len(there)}
        point |= dict.fromkeys(("perplexity", "low", "high"))
        if there:
            mean = weighted_mean([s for s, _ in there], [n for _, n in there])
            point |= {key: float(np.exp(each)) for key, each in _ends(mean).items()}
        points.append(point | {"nll": [s for s, _ in pairs], "tokens": [n for _, n in pairs]})
    rows = [(r["position_nll"], r["position_tokens"]) for r in records]
    judged_tokens = len(records) * (lengths[-1] - short_context)
    return {
        "points": points,
        "share": points[-1]["count"] / judged_tokens,
        "positions": position_means(list(pairwise(position_edges(lengths[-1]))), rows),
    }


def _ends(mean: Any) -> dict[str, float]:
    return {"perplexity": mean.value, "low": mean.low, "high": mean.high}
