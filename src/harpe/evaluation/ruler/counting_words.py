"""The two counting tasks: the commonest words of a numbered list, and the most frequent words of a coded text."""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Sequence

import numpy as np

from harpe.errors import HarpeError
from harpe.evaluation.ruler.search import Draft, Shuffler
from harpe.evaluation.ruler.words import single_words

COMMON = 10
"""Words that are common in a list, and that are asked for."""
ZETA_2 = 1.6449340668482264
"""Riemann's zeta function at 2, the sum of the frequencies 1/k^2."""


class CommonWordsMaker:
    """Draws lists of words for `cwe`: ten of them occur ten times as often as the others.

    Parameters
    ----------
    length
        Tokens of a sample: below 4,096 words are repeated less often.
    more_words
        Gives the second list; called when a list wants more words than the first has.
    """

    def __init__(
        self, template: str, rng: random.Random, shuffle: Shuffler, length: int, more_words: Callable[[], list[str]]
    ) -> None:
        self._template, self._rng, self._shuffle, self._more = template, rng, shuffle, more_words
        self._words = shuffle(single_words())
        self._example, self._repeats = ((20, 3, 1), (6, 1)) if length < 4096 else ((40, 10, 3), (30, 3))
        self._numbers: list[str] = []

    def _list(self, words: int, common_repeats: int, repeats: int) -> tuple[str, list[str]]:
        drawn = self._rng.sample(self._words if words <= len(self._words) else self._more(), words)
        items = self._shuffle(drawn[:COMMON] * common_repeats + drawn[COMMON:] * repeats)
        while len(self._numbers) < len(items):
            self._numbers.append(f"{len(self._numbers) + 1}. ")
        return " ".join(map(str.__add__, self._numbers, items)), drawn[:COMMON]

    def __call__(self, size: int) -> Draft:
        """A list of `size` different words, behind a solved example."""
        example, solution = self._list(*self._example)
        context, answers = self._list(size, *self._repeats)
        solved = " ".join(f"{i}. {word}" for i, word in enumerate(solution, 1))
        asked = self._template.format(num_cw=COMMON, context=context, query="")
        return Draft(f"{self._template.format(num_cw=COMMON, context=example, query='')} {solved}\n{asked}", answers)


class FrequentWordsMaker:
    """Draws coded texts for `fwe`: made-up words whose frequencies fall with the square of their rank; the first one is
    dots.

    The number of words is found by making texts longer until they have `limit` tokens, for one vocabulary; every
    sample, with a vocabulary of its own, starts from there and is made shorter where it is too long.
    """

    def __init__(
        self, template: str, rng: random.Random, shuffle: Shuffler, limit: int, count: Callable[[str], int]
    ) -> None:
        self._template, self._rng, self._shuffle, self._limit, self._count = template, rng, shuffle, limit, count
        self._step = limit // 32
        if self._step < 1 or limit // 50 < 4:
            raise self._too_short("the vocabulary would have no four words")
        vocabulary = self._vocabulary()
        words = limit // 6
        while count(self._text(vocabulary, words)) < limit:
            words += self._step
        self._start = words - self._step

    def _too_short(self, why: str) -> HarpeError:
        return HarpeError(
            f"fwe cannot be made with {self._limit} tokens before the answer: {why}. Give a longer --length."
        )

    def _vocabulary(self) -> list[str]:
        size = self._limit // 50
        words = ["".join(self._rng.choices(string.ascii_lowercase, k=6)) for _ in range(size)]
        different = set(words)
        while len(different) < size:
            different.add("".join(self._rng.choices(string.ascii_lowercase, k=6)))
        return ["...", *self._shuffle(sorted(different))[1:]]

    def _text(self, vocabulary: Sequence[str], words: int) -> str:
        ranks = np.arange(1, len(vocabulary) + 1)
        counts = (words * ranks**-2.0 / ZETA_2).astype(int)
        coded = self._shuffle(
            [word for word, times in zip(vocabulary, counts.tolist(), strict=True) for _ in range(times)]
        )
        return self._template.format(context=" ".join(coded), query="")

    def __call__(self) -> tuple[Draft, int]:
        """A sample and its tokens, without those of the answer."""
        vocabulary, words = self._vocabulary(), self._start
        if words <= 0:  # asked for without a number of words, the published search begins at its own beginning
            words = self._limit // 6
            while self._count(self._text(vocabulary, words)) < self._limit:
                words += self._step
            words -= self._step
            text = self._text(vocabulary, words)
            return Draft(text, vocabulary[1:4]), self._count(text)
        while (tokens := self._count(text := self._text(vocabulary, words))) > self._limit:
            if words < 0:
                raise self._too_short(f"its question alone takes {tokens}")
            words -= self._step
        return Draft(text, vocabulary[1:4]), tokens
