"""Training documents for the embedded base model: Python text, copy drills and needle drills, as token arrays.

A plain language model of this size learns to continue text but not to look things up. The copy drill (a random string
of tokens, repeated) teaches induction; needle drills then teach keyed look-up. Every document is (ids [n] int64, weight
[n] float32): the loss at a token is multiplied by its weight, which is above one for answers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from harpe.evaluation.needles.samples import KEYS, LIST_QUESTION, NEEDLE, QUESTION

ANSWER_WEIGHT = 4.0
KINDS = ("pool", "copy", "lookup", "listing", "mention", "text")
Document = tuple[np.ndarray, np.ndarray]
Piece = tuple[list[int], list[float]]


@dataclass(frozen=True)
class Mixture:
    """Shares of the document kinds in a batch; what remains is text."""

    pool: float = 0.0
    copy: float = 0.0
    lookup: float = 0.0
    listing: float = 0.0
    mention: float = 0.0


class DrillWriter:
    """Draws documents of exactly n tokens from a generator of random numbers."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, texts: list[np.ndarray]) -> None:
        def encode(text: str) -> list[int]:
            return tokenizer(text, add_special_tokens=False).input_ids

        self.texts = texts
        self.sizes = np.array([len(t) for t in texts])
        self.stream = np.concatenate(texts)
        self.vocabulary = len(tokenizer)
        self.prefix = tokenizer("").input_ids
        self.question = [encode(QUESTION.format(key=key)) for key in KEYS]
        self.list_question = [encode(LIST_QUESTION.format(key=key)) for key in KEYS]
        self.value = {v: encode(f" {v}") for v in range(1000, 10000)}
        self.newline = encode("\n")
        example = encode(NEEDLE.format(key=KEYS[7], value=4821))
        if example != self.question[7] + self.value[4821] + self.newline:
            raise SystemExit("The tokenizer does not split a needle into question, value and newline.")

    def text(self, rng: np.random.Generator, n: int) -> Document:
        """A stretch of one source file."""
        fitting = np.flatnonzero(self.sizes >= n)
        document = self.texts[rng.choice(fitting, p=self.sizes[fitting] / self.sizes[fitting].sum())]
        start = int(rng.integers(0, len(document) - n + 1))
        return document[start : start + n], np.ones(n, np.float32)

    def _repeated(self, rng: np.random.Generator, n: int, ids: np.ndarray) -> Document:
        """A string, then its tails again and again."""
        out = ids.tolist()
        while len(out) < n:
            out += ids[int(rng.integers(0, max(1, len(ids) // 2))) :].tolist()
        return np.array(out[:n], np.int64), np.ones(n, np.float32)

    def pool(self, rng: np.random.Generator, n: int) -> Document:
        """A repeated string of tokens from a small pool: that tokens come back is a signal long before strings can be
        copied."""
        size = int(rng.integers(8, max(9, n // 4)))
        count = int(np.exp(rng.uniform(np.log(4), np.log(2 * size))))
        pool = rng.integers(1, self.vocabulary, count) if rng.random() < 0.5 else rng.choice(self.stream, count)
        return self._repeated(rng, n, rng.choice(pool, size))

    def copy(self, rng: np.random.Generator, n: int) -> Document:
        """A repeated string of different tokens: what followed last time follows again (induction)."""
        size = int(rng.integers(8, max(9, n // 4)))
        if rng.random() < 0.5:
            return self._repeated(rng, n, 1 + rng.choice(self.vocabulary - 1, size, replace=False))
        return self._repeated(rng, n, rng.permutation(np.unique(rng.choice(self.stream, size))))

    def _needle(self, key: int, value: int, answer: bool = False) -> Piece:
        ids = self.question[key] + self.value[value] + self.newline
        weight = ANSWER_WEIGHT if answer else 1.0
        return ids, [1.0] * len(self.question[key]) + [weight] * len(self.value[value]) + [1.0] * len(self.newline)

    def _spread(self, rng: np.random.Generator, n: int, pieces: list[Piece], tail: Piece) -> Document:
        """Pieces at random places of a haystack, the tail at the end; n tokens in all."""
        room = n - len(self.prefix) - sum(len(ids) for ids, _ in pieces) - len(tail[0])
        if room < 0:
            raise ValueError(f"the pieces need {n - room} tokens, the document has {n}")
        hay = self.text(rng, room)[0].tolist() if room else []
        ids, weights, last = list(self.prefix), [1.0] * len(self.prefix), 0
        for (piece, weight), place in zip(pieces, np.sort((rng.random(len(pieces)) * room).astype(int)), strict=True):
            ids += hay[last:place] + piece
            weights += [1.0] * (place - last) + weight
            last = place
        ids += hay[last:] + tail[0]
        weights += [1.0] * (room - last) + tail[1]
        return np.array(ids, np.int64), np.array(weights, np.float32)

    def _capacity(self, n: int) -> int:
        """How many needles fill about half of a document."""
        return max(2, n // (2 * len(self._needle(0, 1000)[0])))

    def lookup(self, rng: np.random.Generator, n: int) -> Document:
        """Several keys, one value each, some asked for at the end."""
        count = int(rng.integers(1, self._capacity(n) + 1))
        keys = rng.choice(len(KEYS), count, replace=False)
        values = rng.choice(np.arange(1000, 10000), count)
        tail: Piece = ([], [])
        room = n - len(self.prefix) - count * len(self._needle(0, 1000)[0]) - 8
        for i in rng.permutation(count):
            question, value = self.question[keys[i]], self.value[values[i]]
            if len(tail[0]) + len(question) + len(value) > room:
                break
            tail[0].extend(question + value)
            tail[1].extend([1.0] * len(question) + [ANSWER_WEIGHT] * len(value))
        return self._spread(rng, n, [self._needle(k, v) for k, v in zip(keys, values, strict=True)], tail)

    def listing(self, rng: np.random.Generator, n: int) -> Document:
        """Keys with one to three values each; questions list all values of a key in the order of the document."""
        groups = int(rng.integers(1, max(2, self._capacity(n) // 3) + 1))
        keys = rng.choice(len(KEYS), groups, replace=False)
        counts = rng.choice([1, 2, 3], groups, p=[0.35, 0.15, 0.5])
        counts[0] = 3
        items = [
            (int(k), int(v)) for k, c in zip(keys, counts, strict=True) for v in rng.choice(np.arange(1000, 10000), c)
        ]
        items = [items[i] for i in rng.permutation(len(items))]
        pieces = [self._needle(k, v) for k, v in items]
        room = n - len(self.prefix) - sum(len(ids) for ids, _ in pieces)
        tail: Piece = ([], [])
        for key in (int(k) for k in rng.permutation(keys)):
            values = [self.value[v] for k, v in items if k == key]
            if len(values) == 1 and len(keys) > 1 and rng.random() < 0.7:
                continue
            size = len(self.list_question[key]) + sum(map(len, values))
            if len(tail[0]) + size > room:
                break
            tail[0].extend(self.list_question[key] + [t for v in values for t in v])
            tail[1].extend([1.0] * len(self.list_question[key]) + [ANSWER_WEIGHT] * sum(map(len, values)))
        return self._spread(rng, n, pieces, tail)

    def mention(self, rng: np.random.Generator, n: int) -> Document:
        """Needles that come again later, with the same value: look-ups all along the document."""
        count = int(rng.integers(1, self._capacity(n) + 1))
        keys = rng.choice(len(KEYS), count, replace=False)
        values = rng.choice(np.arange(1000, 10000), count)
        places = list(range(count)) + [min(int(rng.exponential(count / 2)), count - 1) for _ in range(int(count * 0.8))]
        seen: set[int] = set()
        pieces = []
        for i in (places[j] for j in rng.permutation(len(places))):
            pieces.append(self._needle(keys[i], values[i], answer=i in seen))
            seen.add(i)
        return self._spread(rng, n, pieces, ([], []))

    def batch(
        self, rng: np.random.Generator, count: int, n: int, mixture: Mixture
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`count` documents of n tokens: ids [count, n] int64, weights [count, n] float32, kinds [count] str."""
        shares = [mixture.pool, mixture.copy, mixture.lookup, mixture.listing, mixture.mention]
        kinds = rng.choice(KINDS, count, p=[*shares, 1 - sum(shares)])
        documents = [getattr(self, kind)(rng, n) for kind in kinds]
        return np.stack([ids for ids, _ in documents]), np.stack([weight for _, weight in documents]), kinds
