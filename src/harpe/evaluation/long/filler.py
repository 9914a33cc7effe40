"""Filler text for facts to be hidden in: sentences of RULER's noise, or of its essays."""

from __future__ import annotations

import random
from collections.abc import Sequence

from harpe.evaluation.ruler.essays import Essays
from harpe.evaluation.ruler.sources import DataFolder
from harpe.evaluation.ruler.templates import NOISE


class Filler:
    """Sentences, over and over where more are wanted than there are."""

    def __init__(self, sentences: Sequence[str]) -> None:
        self._sentences = [sentence.split() for sentence in sentences if sentence.strip()]

    def start(self, rng: random.Random) -> int:
        """Where the filler of a sample begins."""
        return rng.randrange(len(self._sentences))

    def sentences(self, words: int, start: int) -> list[str]:
        """That many words from the sentence `start` on, in sentences; the last one may be cut."""
        found: list[str] = []
        while words > 0:
            sentence = self._sentences[(start + len(found)) % len(self._sentences)]
            found.append(" ".join(sentence[:words]))
            words -= len(sentence)
        return found


def noise() -> Filler:
    """The five sentences of RULER's noise."""
    return Filler([f"{sentence.strip('. ')}." for sentence in NOISE.split(". ")])


def essays(data: DataFolder) -> Filler:
    """RULER's essays. Raises HarpeError where they, or what splits them into sentences, are missing."""
    return Filler(Essays.load(data).all())


def scattered(pieces: Sequence[str], places: Sequence[float], sentences: Sequence[str]) -> list[str]:
    """Sentences with pieces between them, both in their order.

    Parameters
    ----------
    places
        0..1 for each piece, ascending: the share of the sentences that stands before it. None stands behind the last
        sentence, which may be cut.
    """
    parts: list[str] = []
    last = 0
    for piece, place in zip(pieces, places, strict=True):
        at = int(place * len(sentences))
        parts += [*sentences[last:at], piece]
        last = at
    return [*parts, *sentences[last:]]
