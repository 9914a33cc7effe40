"""Perplexity as the literature reports it: by prefix length, and in sliding windows.

Two kinds of figure that are not comparable, and carry their kind with them:

* `prefixes`: documents cut to L tokens, for many L. One forward pass over a document gives all of them, since under
  causal attention the losses of its first L tokens do not depend on what follows; where the rotations do
  (`harpe.models.angles`), every L has a pass of its own;
* `windows`: a window of W tokens that moves on by S (Press et al. 2021, arXiv 2108.12409); every token is scored once,
  with at least W - S tokens before it, but for the beginning of the document.

Every document and every window begins as the tokenizer begins texts (with BOS, where it does), and that takes places of
the window.

Averages are over tokens. `yarn` is the way of YaRN's script (jquesnelle/yarn, eval/perplexity.py at 995db5b): a mean
over windows, each of them counting the same however many tokens it scores, with one beginning-of-text token in front of
every window, whatever the tokenizer does. It is here to compare with published tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel

from harpe.errors import HarpeError
from harpe.evaluation.statistics.intervals import weighted_mean
from harpe.models.angles import moving_rope, start_anew
from harpe.models.head import hidden_states, token_nll

Average = Literal["tokens", "yarn"]

PREFILL = 4096
"""Tokens that are read in one forward pass; a longer document goes on with the key/value cache."""
WINDOW_BINS = 64
"""Bins of the loss by position in sliding windows, at most."""


@torch.inference_mode()
def document_losses(
    model: PreTrainedModel, ids: Sequence[int] | torch.Tensor, prefill: int = PREFILL, logits: int = 0
) -> np.ndarray:
    """-log p of every next token of one document: float64 [S - 1] in nats; entry p is the loss of token p + 1.

    The document is read `prefill` tokens at a time and its logits are formed `logits` positions at a time (0:
    `harpe.models.head.CHUNK`), so that beside the weights only the key/value cache grows with its length. Where
    rotations depend on the length of the text, all S tokens are read at once, as by a model that has read nothing
    before.
    """
    row = torch.as_tensor(ids, dtype=torch.int64, device=model.device)[None]
    size, parts = row.shape[1] - 1, []
    if moving_rope(model.config) is not None:
        start_anew(model)
        return token_nll(model, hidden_states(model, row)[:, :-1], row[:, 1:], logits)[0].double().cpu().numpy()
    cache = DynamicCache(config=model.config) if size > prefill else None
    for start in range(0, size, prefill):
        part = slice(start, min(start + prefill, size))
        states = hidden_states(model, row[:, part], past_key_values=cache, use_cache=cache is not None)
        parts.append(token_nll(model, states, row[:, 1:][:, part], logits)[0])
    return torch.cat(parts).double().cpu().numpy() if parts else np.zeros(0)


def prefix_totals(losses: np.ndarray, lengths: Sequence[int]) -> tuple[list[float], list[int]]:
    """For every L of `lengths` (at least 2): sum and number of the losses [S - 1] of a document's first L tokens."""
    sums = np.concatenate([[0.0], np.cumsum(losses)])
    counts = [min(length - 1, len(losses)) for length in lengths]
    return [float(sums[n]) for n in counts], counts


def window_totals(
    model: PreTrainedModel, ids: Sequence[int], window: int, stride: int, begin: Sequence[int] = ()
) -> list[tuple[float, int]]:
    """Sum of losses and number of scored tokens of every window of one document.

    Windows begin at 0, S, 2S, …; each scores the tokens that no earlier one has scored; the last may be shorter than
    `window`.

    Parameters
    ----------
    ids
        Token ids without `begin`.
    window, stride
        W and S in tokens, 1 <= S < W, and S <= W - P where `begin` has P ids.
    begin
        Ids in front of every window, which then predicts its first token too; they take places of the window.

    Raises
    ------
    HarpeError
        For a stride that leaves tokens unscored.
    """
    width = window - len(begin)
    if not 1 <= stride <= width - (not begin):
        raise HarpeError(
            f"--window {window} --stride {stride}: the stride has to be at least 1 and less than the window."
        )
    totals, before = [], 0
    for start in range(0, len(ids), stride):
        end = min(start + width, len(ids))
        losses = document_losses(model, [*begin, *ids[start:end]])
        new = end - before if begin or start > 0 else end - 1
        totals.append((float(losses[len(losses) - new :].sum()), new))
        before = end
        if end == len(ids):
            break
    return totals


def position_edges(length: int) -> list[int]:
    """Edges of the bins for losses by position: 0, 16, 32, 64 … and `length` - 1, the number of losses."""
    return [0, *(2**k for k in range(4, 64) if 2**k < length - 1), length - 1]


def prefix_losses(model: PreTrainedModel, row: Sequence[int], lengths: Sequence[int]) -> list[np.ndarray]:
    """The losses of a document cut to each of `lengths` (ascending, at least 2).

    Where rotations depend on the text's length every length has a pass of its own; else all have the longest one's.
    """
    losses = document_losses(model, row[: lengths[-1]])
    if moving_rope(model.config) is None:
        return [losses] * len(lengths)
    return [*(document_losses(model, row[:length]) for length in lengths[:-1]), losses]


def prefix_record(losses: Sequence[np.ndarray], lengths: Sequence[int]) -> dict[str, Any]:
    """One document's sums of losses, out of its `prefix_losses`.

    Returns
    -------
    nll (sums in nats) and tokens by length; position_nll and position_tokens by the bins of
    `position_edges(lengths[-1])`, of the text of that length."""
    nll, tokens = prefix_totals(losses[-1], lengths)
    if losses[0] is not losses[-1]:
        nll[:-1] = [float(each.sum()) for each in losses[:-1]]
    parts = [losses[-1][a:b] for a, b in pairwise(position_edges(lengths[-1]))]
    return {
        "nll": nll,
        "tokens": tokens,
        "position_nll": [float(part.sum()) for part in parts],
        "position_tokens": [len(part) for part in parts],
    }


def prefix_curve(
    records: Sequence[dict[str, Any]], lengths: Sequence[int], average: Average = "tokens"
) -> dict[str, Any]:
    """Perplexity of documents cut to each length, and loss by position, from the documents' `prefix_record`s.

    Returns
    -------
    points: for every length perplexity with the ends of its interval (bootstrap over documents), and by document nll
    and tokens. positions: for every bin start, end, nll a token (over tokens, whatever `average` is) with its ends, and
    tokens."""
    points = []
    for i, length in enumerate(lengths):
        sums, counts = [r["nll"][i] for r in records], [r["tokens"][i] for r in records]
        if average == "tokens":
            mean = weighted_mean(sums, counts)
        else:
            mean = weighted_mean([s / n for s, n in zip(sums, counts, strict=True)], [1] * len(sums))
        ends = {"low": float(np.exp(mean.low)), "high": float(np.exp(mean.high))}
        points.append(
            {"length": length, "perplexity": perplexity(sums, counts, average), **ends, "nll": sums, "tokens": counts}
        )
    rows = [(r["position_nll"], r["position_tokens"]) for r in records]
    return {"points": points, "positions": position_means(list(pairwise(position_edges(lengths[-1]))), rows)}


def window_curve(
    records: Sequence[dict[str, Any]], window: int, stride: int, average: Average, begin: int
) -> dict[str, Any]:
    """Perplexity in sliding windows, and loss by position, from documents' nll and tokens by window (`window_totals`,
    `begin` ids of it).

    Returns
    -------
    perplexity and tokens, over everything that was scored; positions as in `prefix_curve`, a bin for what a window
    scores (or several in a row: at most WINDOW_BINS bins)."""
    sums, counts = [s for r in records for s in r["nll"]], [n for r in records for n in r["tokens"]]
    width, windows = window - begin, max(len(r["nll"]) for r in records)
    size = -(-windows // WINDOW_BINS)
    parts = range(0, windows, size)
    edges = [0, *(width + (first + size - 1) * stride for first in parts)]
    rows = [
        ([sum(r["nll"][i : i + size]) for i in parts], [sum(r["tokens"][i : i + size]) for i in parts]) for r in records
    ]
    positions = position_means(list(pairwise(edges)), rows)
    return {"perplexity": perplexity(sums, counts, average), "tokens": sum(counts), "positions": positions}


def position_means(
    bins: Sequence[tuple[int, int]], rows: Sequence[tuple[list[float], list[int]]]
) -> list[dict[str, Any]]:
    """Mean loss of every bin over the documents that reach it; of a document that ends inside of it, what it has."""
    found = []
    for i, (start, end) in enumerate(bins):
        there = [(sums[i], counts[i]) for sums, counts in rows if i < len(counts) and counts[i]]
        if there:
            mean = weighted_mean([s for s, _ in there], [n for _, n in there])
            counts = {"tokens": sum(n for _, n in there), "documents": len(there)}
            found.append({"start": start, "end": end} | mean.as_dict("nll") | counts)
    return found


def perplexity(sums: Sequence[float], counts: Sequence[int], average: Average) -> float:
    """exp of the mean loss: over tokens, or over the units with the same weight each (`yarn`)."""
    s, n = np.asarray(sums, float), np.asarray(counts, float)
    return float(np.exp(s.sum() / n.sum() if average == "tokens" else (s / n).mean()))
