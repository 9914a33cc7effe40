"""Token-weighted loss by position, and perplexity, on whole documents.

Every document is read from its start, so that a token at position p is predicted from exactly p tokens: the loss at
position p of the document. Losses are averaged over tokens (never over windows), and perplexity is the exponential of
that mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from harpe.evaluation.statistics.intervals import weighted_mean
from harpe.models.angles import start_anew
from harpe.models.head import hidden_states, token_nll


def position_bins(original_length: int, length: int) -> list[tuple[int, int]]:
    """Bins [start, end) of positions: `length` halved down to an eighth of the original context, and the rest."""
    edges = [length]
    while edges[-1] > max(original_length // 8, 8):
        edges.append(edges[-1] // 2)
    return list(zip([0, *edges[:0:-1]], edges[::-1], strict=True))


@torch.inference_mode()
def token_losses(model: PreTrainedModel, ids: torch.Tensor) -> np.ndarray:
    """-log p of every next token: float64 [B, S-1] in nats, for ids int64 [B, S]. Logits exist for a few positions at a
    time.

    Entry p is the loss of predicting token p + 1 from the p + 1 tokens before it, in a text of S - 1 tokens: where
    rotations depend on a text's length (dynamic NTK, LongRoPE), they are those of the whole text.
    """
    ids = ids.to(model.device)
    start_anew(model)
    return token_nll(model, hidden_states(model, ids[:, :-1]), ids[:, 1:]).double().cpu().numpy()


def short_windows(ids: torch.Tensor, size: int, length: int, begin: Sequence[int] = ()) -> list[torch.Tensor]:
    """The first `length` + 1 tokens of a document in windows, of which each predicts its last `size` tokens; int64 [1 +
    size] each.

    Together they predict the tokens 1, 2, … `length` (as many as whole windows hold), each once. A window after the
    first begins with `begin`, as the document does; where that is empty, with the token before what it predicts. (The
    windows after the first are [P + size] where `begin` has P > 1 ids.)
    """
    windows = [ids[start : start + size + 1] for start in range(0, length - size + 1, size)]
    if begin:
        front = torch.tensor([*begin], dtype=ids.dtype)
        windows[1:] = [torch.cat([front, window[1:]]) for window in windows[1:]]
    return windows


def document_records(
    model: PreTrainedModel,
    documents: Sequence[Sequence[int]],
    original_length: int,
    length: int,
    record: Callable[[dict[str, Any]], None],
    batch_tokens: int = 16384,
    numbers: Sequence[int] | None = None,
    begin: Sequence[int] = (),
) -> None:
    """Measure documents and hand one record of each to `record`.

    Parameters
    ----------
    documents
        Token ids, at least length + 1 of each; the first length + 1 are used.
    original_length
        Also the window of the short-context perplexity: the same tokens, cut into windows of this many
        (`short_windows`).
    numbers
        Which of the documents; None: all.
    begin
        What the documents begin with (`harpe.data.token_ids.begin_ids`), and then all windows do: a model that never
        saw a text without BOS is lost without it.

    Notes
    -----
    A record has document, nll [bins] (sums over the tokens of a bin), tokens [bins], short_nll (a sum) and
    short_tokens."""
    bins = position_bins(original_length, length)
    for number in range(len(documents)) if numbers is None else numbers:
        ids = torch.tensor(documents[number][: length + 1], dtype=torch.int64)
        losses = token_losses(model, ids[None])[0]
        windows = short_windows(ids, original_length, length, begin)
        alike = [torch.stack(list(group)) for _, group in groupby(windows, key=len)]
        short = np.concatenate(
            [
                token_losses(model, part)[:, -original_length:].ravel()
                for rows in alike
                for part in rows.split(max(1, batch_tokens // original_length))
            ]
        )
        record(
            {
                "document": number,
                "nll": [float(losses[start:end].sum()) for start, end in bins],
                "tokens": [len(losses[start:end]) for start, end in bins],
                "short_nll": float(short.sum()),
                "short_tokens": int(short.size),
            }
        )


def summarise(records: Sequence[dict[str, Any]], original_length: int, length: int) -> dict[str, Any]:
    """Loss by position, short-context and long-context perplexity with 95 % intervals (bootstrap over documents)."""
    bins = []
    for i, (start, end) in enumerate(position_bins(original_length, length)):
        mean = weighted_mean([r["nll"][i] for r in records], [r["tokens"][i] for r in records])
        bins.append({"start": start, "end": end, **mean.as_dict("nll"), "tokens": sum(r["tokens"][i] for r in records)})
    short = weighted_mean([r["short_nll"] for r in records], [r["short_tokens"] for r in records])
    last = bins[-1]
    return {
        "documents": len(records),
        "length": length,
        "bins": bins,
        "short": {"length": original_length, **_perplexity(short.value, short.low, short.high)},
        "long": {"start": last["start"], "end": last["end"], **_perplexity(last["nll"], last["low"], last["high"])},
    }


def _perplexity(nll: float, low: float, high: float) -> dict[str, float]:
    return {"perplexity": float(np.exp(nll)), "low": float(np.exp(low)), "high": float(np.exp(high))}
