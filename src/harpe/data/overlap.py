"""How much of some texts stands in the training data: the share of their n-grams of tokens that occur in the training
stream.

The training data may be billions of tokens and are read once, a block at a time; memory grows with the texts alone. An
n-gram is looked up by a 64-bit hash, and every hit is compared token by token, so that the count is exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

NGRAM = 13
"""Tokens of an n-gram; 13 as for GPT-3 (Brown et al. 2020, arXiv 2005.14165, appendix C, there words)."""
MULTIPLIERS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0xD6E8FEB86659FD93)
"""Odd numbers; the next one is taken where two n-grams of the texts have one hash."""
SLOTS = 8
"""Entries of the first filter for every n-gram of the texts: one in eight other n-grams passes it."""


@dataclass(frozen=True)
class Overlap:
    """Places of the texts, by what stands there."""

    grams: tuple[int, ...]
    """For every text, its n-grams; each place counts."""
    found: tuple[int, ...]
    """Those among them that occur in the training data."""

    @property
    def share(self) -> float:
        return sum(self.found) / sum(self.grams)


def _hashes(tokens: NDArray[np.integer], ngram: int, multiplier: int) -> NDArray[np.uint64]:
    """A hash of every n-gram, uint64 [S - n + 1], of tokens [S]; its high bits are well mixed."""
    count = len(tokens) - ngram + 1
    values, factor = tokens.astype(np.uint64), np.uint64(multiplier)
    result = np.zeros(max(count, 0), np.uint64)
    for j in range(ngram if count > 0 else 0):
        result *= factor
        result += values[j : j + count]
    result ^= result >> np.uint64(32)
    result *= factor
    return result


def _same(
    a: NDArray[np.integer], starts: NDArray[np.int64], b: NDArray[np.integer], others: NDArray[np.int64], ngram: int
) -> NDArray[np.bool_]:
    """Whether the n-grams of `a` at `starts` are those of `b` at `others`: bool [n]."""
    same = np.ones(len(starts), np.bool_)
    for j in range(ngram):
        same &= a[starts + j] == b[others + j]
    return same


class _Index:
    """The n-grams of the texts, to be looked up."""

    def __init__(self, texts: Sequence[Sequence[int]], ngram: int) -> None:
        self.ngram = ngram
        self.counts = [max(0, len(text) - ngram + 1) for text in texts]
        self.tokens = np.concatenate([np.asarray(text, np.int64) for text in texts])
        begins = np.concatenate([[0], np.cumsum([len(text) for text in texts])[:-1]])
        starts = np.concatenate(
            [begin + np.arange(count) for begin, count in zip(begins, self.counts, strict=True)]
        ).astype(np.int64)
        for multiplier in MULTIPLIERS:
            self.multiplier = multiplier
            hashes = _hashes(self.tokens, ngram, multiplier)[starts]
            self.hashes, first, self.inverse = np.unique(hashes, return_index=True, return_inverse=True)
            self.starts = starts[first]
            if _same(self.tokens, starts, self.tokens, self.starts[self.inverse], ngram).all():
                break
        else:
            raise ArithmeticError("different n-grams have the same hash under every multiplier")
        bits = min(max(int(np.ceil(np.log2(SLOTS * len(self.hashes) + 1))), 8), 30)
        self.shift = np.uint64(64 - bits)
        self.filter = np.zeros(2**bits, np.bool_)
        self.filter[self.hashes >> self.shift] = True
        self.found = np.zeros(len(self.hashes), np.bool_)

    def look_up(self, block: NDArray[np.integer]) -> None:
        """Mark the n-grams that stand in a block of the training data."""
        hashes = _hashes(block, self.ngram, self.multiplier)
        places = np.flatnonzero(self.filter[hashes >> self.shift])
        entries = np.minimum(np.searchsorted(self.hashes, hashes[places]), len(self.hashes) - 1)
        hit = self.hashes[entries] == hashes[places]
        places, entries = places[hit], entries[hit]
        self.found[entries[_same(block, places, self.tokens, self.starts[entries], self.ngram)]] = True


def count_overlap(
    texts: Sequence[Sequence[int]], blocks: Iterable[NDArray[np.integer]], ngram: int = NGRAM
) -> Overlap | None:
    """Count the n-grams of `texts` that occur in the training data; None where no text has `ngram` tokens.

    Parameters
    ----------
    texts
        Token ids of the same tokenizer as the training data, without special tokens.
    blocks
        The training stream in pieces [S], each of which begins with the last ngram - 1 tokens of the one before
        (`PackedDataset.blocks`).
    """
    if not any(len(text) >= ngram for text in texts):
        return None
    index = _Index(texts, ngram)
    for block in blocks:
        index.look_up(block)
    there = np.concatenate([[0], np.cumsum(index.found[index.inverse])])
    ends = np.concatenate([[0], np.cumsum(index.counts)])
    return Overlap(tuple(index.counts), tuple(int(n) for n in np.diff(there[ends])))


def unknown_overlap(reason: str) -> dict[str, Any]:
    """What a score file holds where the overlap cannot be counted."""
    return {"ngram": NGRAM, "share": None, "reason": reason}
