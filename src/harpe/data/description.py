"""How long the documents of a packed data set are, and how they lie across its sequences.

Everything follows from where documents start: no token is read, and the arrays are worked on in pieces, since a corpus
may have 60 million documents in 10^11 tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LONG = (4096, 32_768, 131_072)
"""Tokens from which on a document is counted as long."""
DOCUMENTS = 2**22
"""Documents that are worked on at a time."""
TOKENS = 2**26
"""Tokens of the stream whose sequences are worked on at a time: at most so many documents begin in them."""


@dataclass(frozen=True)
class LengthBin:
    """The documents of `first` to `last` tokens, both among them; `first` is a power of two and `last + 1` the next."""

    first: int
    last: int
    documents: int
    tokens: int
    share: float
    """Of all tokens."""


@dataclass(frozen=True)
class LongShare:
    """The documents of at least `length` tokens."""

    length: int
    documents: int
    tokens: int
    share: float
    """Of all tokens."""


@dataclass(frozen=True)
class DocumentLengths:
    """Tokens of the documents of a stream, end-of-text among them; the last one may be cut by the stream's end."""

    documents: int
    mean: float
    median: float
    shortest: int
    longest: int
    bins: tuple[LengthBin, ...]
    """From the bin of the shortest document to that of the longest, without gaps."""
    long: tuple[LongShare, ...]


@dataclass(frozen=True)
class SequenceLayout:
    """How documents lie across sequences of `length` tokens. A document that goes on in the next sequence has a part in
    both."""

    length: int
    sequences: int
    documents_mean: float
    """Documents that a sequence has a part of."""
    documents_median: float
    documents_most: int
    single_share: float
    """Share of the sequences that are one document, or a part of one."""
    cut_share: float
    """Share of the documents that are cut by the boundary of a sequence."""
    longest_share: float
    """Share of a sequence's tokens that belong to the document with most of them; mean over sequences."""
    look_back: float
    """Tokens of the same document in front of a token, inside its sequence; mean over all tokens."""
    look_back_most: float
    """The same, were every sequence one document: (length - 1) / 2."""


def document_lengths(starts: NDArray[np.int64], tokens: int) -> DocumentLengths:
    """Lengths of the documents that start at `starts` in a stream of `tokens` tokens.

    Parameters
    ----------
    starts
        int64 [documents], ascending; the first is 0.
    """
    lengths = np.diff(starts, append=tokens)
    documents, sums = np.zeros(64, np.int64), np.zeros(64, np.int64)
    long = np.zeros((len(LONG), 2), np.int64)
    for piece in (lengths[low : low + DOCUMENTS] for low in range(0, len(lengths), DOCUMENTS)):
        power = np.frexp(piece.astype(np.float64))[1] - 1  # whole numbers below 2^53 are exact
        documents += np.bincount(power, minlength=64)
        sums += np.bincount(power, piece, 64).astype(np.int64)
        for row, length in zip(long, LONG, strict=True):
            reaching = piece[piece >= length]
            row += len(reaching), reaching.sum()
    used = np.flatnonzero(documents)
    return DocumentLengths(
        documents=len(lengths),
        mean=tokens / len(lengths),
        shortest=int(lengths.min()),
        longest=int(lengths.max()),
        bins=tuple(
            LengthBin(2**k, 2 ** (k + 1) - 1, int(documents[k]), int(sums[k]), int(sums[k]) / tokens)
            for k in range(int(used[0]), int(used[-1]) + 1)
        ),
        long=tuple(
            LongShare(length, count, total, total / tokens)
            for length, (count, total) in zip(LONG, long.tolist(), strict=True)
        ),
        median=float(np.median(lengths, overwrite_input=True)),  # last: it leaves them in another order
    )


def sequence_layout(starts: NDArray[np.int64], tokens: int, length: int) -> SequenceLayout:
    """How the documents that start at `starts` lie across the sequences of a stream of `tokens` tokens.

    Parameters
    ----------
    starts
        int64 [documents], ascending; the first is 0.
    tokens
        A multiple of `length`.
    """
    count = tokens // length
    parts_in = np.empty(count, np.int64)
    longest = in_front = 0
    step = max(1, TOKENS // length)
    for first in range(0, count, step):
        last = min(first + step, count)
        begins = np.arange(first, last, dtype=np.int64) * length
        low, high = np.searchsorted(starts, (first * length, last * length))
        parts = np.union1d(begins, starts[low:high])  # a part begins with its sequence, or with its document
        sizes = np.diff(parts, append=last * length)
        at = np.searchsorted(parts, begins)
        parts_in[first:last] = np.diff(at, append=len(parts))
        longest += int(np.maximum.reduceat(sizes, at).sum())
        in_front += int((sizes * (sizes - 1) // 2).sum())
    return SequenceLayout(
        length=length,
        sequences=count,
        documents_mean=float(parts_in.mean()),
        documents_median=float(np.median(parts_in)),
        documents_most=int(parts_in.max()),
        single_share=int((parts_in == 1).sum()) / count,
        cut_share=_cut(starts, tokens, length) / len(starts),
        longest_share=longest / tokens,
        look_back=in_front / tokens,
        look_back_most=(length - 1) / 2,
    )


def _cut(starts: NDArray[np.int64], tokens: int, length: int) -> int:
    """How many documents have tokens in more than one sequence."""
    cut = 0
    for low in range(0, len(starts), DOCUMENTS):
        piece = starts[low : low + DOCUMENTS + 1]
        ends = piece[1:] if len(piece) > DOCUMENTS else np.append(piece[1:], tokens)
        cut += int(np.count_nonzero(piece[: len(ends)] // length != (ends - 1) // length))
    return cut
