"""Boundaries between documents of a packed data set, decoded: the end of one and the beginning of the next."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from harpe.data.packed import PackedDataset

SHOWN = 5
"""Boundaries that are shown."""
AROUND = 60
"""Tokens on each side of one."""
SEED = 0
"""Of which boundaries are shown."""


@dataclass(frozen=True)
class Piece:
    """Text of consecutive tokens of one kind."""

    text: str
    """As the tokenizer decodes it: with whatever the corpus has in it."""
    special: bool
    """A special token itself, not text that spells one."""
    trained: bool
    """These tokens are targets of the loss."""


@dataclass(frozen=True)
class Boundary:
    """Where a document ends and the next begins. All numbers count from 0."""

    document: int
    """That begins here, by its place in the stream."""
    token: int
    """Of the stream, with which it begins."""
    sequence: int
    offset: int
    """Of that token in its sequence; 0: the boundary is one of sequences too."""
    before: tuple[Piece, ...]
    """The last tokens of the document that ends."""
    after: tuple[Piece, ...]
    """The first tokens of the one that begins."""


def boundaries(data: PackedDataset, tokenizer: PreTrainedTokenizerBase) -> list[Boundary]:
    """At most `SHOWN` boundaries, drawn with a fixed seed, in the order of the stream; none of a single document.

    Parameters
    ----------
    tokenizer
        With which the data set was made.
    """
    starts, tokens = data.starts, data.tokens
    inner = range(1, len(starts))
    found = []
    for document in sorted(random.Random(SEED).sample(inner, min(SHOWN, len(inner)))):
        start = int(starts[document])
        end = int(starts[document + 1]) if document + 1 < len(starts) else tokens
        before = _pieces(data, max(start - AROUND, int(starts[document - 1])), start, tokenizer)
        after = _pieces(data, start, min(start + AROUND, end), tokenizer)
        found.append(Boundary(document, start, start // data.length, start % data.length, before, after))
    return found


def _read(data: PackedDataset, start: int, end: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Ids of the stream from `start` to `end`, and which of them are trained on."""
    sequences = range(start // data.length, (end - 1) // data.length + 1)
    rows = [data[i] for i in sequences]
    first = start - sequences.start * data.length
    ids, labels = (
        np.concatenate([row[name].numpy() for row in rows])[first : first + end - start]
        for name in ("input_ids", "labels")
    )
    return ids, labels != -100


def _pieces(data: PackedDataset, start: int, end: int, tokenizer: PreTrainedTokenizerBase) -> tuple[Piece, ...]:
    """The text from `start` to `end`, divided where the kind of its tokens changes.

    It is decoded whole and then divided: tokenizers decode a token differently at the beginning of a text, and one
    character may be several tokens. Such a character goes to the piece in which it ends.
    """
    ids, trained = _read(data, start, end)
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    whole = _decoded(tokenizer, ids.tolist())
    pieces, tokens, characters = [], 0, 0
    kinds = ((number in special, bool(target)) for number, target in zip(ids.tolist(), trained, strict=True))
    for (is_special, is_trained), group in groupby(kinds):
        tokens += len(list(group))
        until = len(whole)
        if tokens < len(ids):
            until = _common(_decoded(tokenizer, ids[:tokens].tolist()), whole)
        if until > characters:
            pieces.append(Piece(whole[characters:until], is_special, is_trained))
            characters = until
    return tuple(pieces)


def _common(text: str, other: str) -> int:
    """How many characters two texts begin with in common."""
    return next((n for n, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
