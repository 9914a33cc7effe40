"""Haystacks out of essays: the first n words, in sentences."""

from __future__ import annotations

import re
from bisect import bisect_right
from itertools import accumulate
from typing import Any

from harpe.errors import optional_module
from harpe.evaluation.ruler.sources import DataFolder

_MARGIN = 4
"""Whole sentences that must lie between a place where the splitting is taken up again and the end of a shorter text."""


def sentence_tokenizer(data: DataFolder) -> Any:
    """NLTK's Punkt for English, with the parameters in the data folder (no pickle: four text files)."""
    nltk = optional_module("nltk.tokenize.punkt", "nltk", "RULER splits essays with")
    folder = data.find("punkt")

    def lines(name: str) -> list[str]:
        return (folder / name).read_text(encoding="utf-8").split("\n")

    parameters = nltk.PunktParameters()
    parameters.abbrev_types = {line.rstrip() for line in lines("abbrev_types.txt") if line}
    parameters.sent_starters = {line.rstrip() for line in lines("sent_starters.txt") if line}
    parameters.collocations = {tuple(line.split("\t")) for line in lines("collocations.tab") if line}
    for line in lines("ortho_context.tab"):
        if line:
            word, flags = line.rsplit("\t", 1)
            parameters.ortho_context[word] = int(flags)
    return nltk.PunktSentenceTokenizer(parameters)


class Essays:
    """The words of the essays, over and over where more are wanted than there are.

    Whether a sentence ends somewhere depends on the words around that place alone. So the text is split once, and the
    sentences of its first n words are those of the whole, but for the last few, which are split again from a safe place
    on.
    """

    def __init__(self, words: list[str], tokenizer: Any) -> None:
        self._words, self._tokenizer = words, tokenizer
        self._cache: dict[int, list[str]] = {}
        self._repeats = 0

    @classmethod
    def load(cls, data: DataFolder) -> Essays:
        """From `PaulGrahamEssays.json`; white space is one space each."""
        text = data.json("essays")["text"]
        return cls(re.sub(r"\s+", " ", text).split(" "), sentence_tokenizer(data))

    def _split(self, repeats: int) -> None:
        """Split the words, repeated so often."""
        self._repeats = repeats
        words = self._words * repeats
        self._ends = list(accumulate((len(word) + 1 for word in words), initial=-1))
        self._text = " ".join(words)
        self._lead = len(self._text) - len(self._text.lstrip())
        text = self._text.strip()
        spans = list(self._tokenizer.span_tokenize(text))
        raw = {start for start, _ in self._tokenizer.span_tokenize(text, realign_boundaries=False)}
        self._sentences = [text[start:end] for start, end in spans]
        self._starts = [start for start, _ in spans]
        # a sentence begins afresh where no punctuation was moved over its beginning, and a space stands before it
        self._fresh = [start in raw and start > 0 and text[start - 1].isspace() for start in self._starts]

    def sentences(self, count: int) -> list[str]:
        """The sentences of the first `count` words."""
        if count not in self._cache:
            repeats = max(1, -(-count // max(1, len(self._words))))
            if repeats > self._repeats:
                self._split(repeats)
            self._cache[count] = self._first(count)
        return self._cache[count]

    def all(self) -> list[str]:
        """The sentences of all essays, once."""
        return self.sentences(len(self._words))

    def _first(self, count: int) -> list[str]:
        text = self._text[: max(0, self._ends[count])].strip()
        k = bisect_right(self._starts, len(text)) - 1 - _MARGIN
        while k > 0 and not self._fresh[k]:
            k -= 1
        if k <= 0:
            return self._tokenizer.tokenize(text)
        return self._sentences[:k] + self._tokenizer.tokenize(text[self._starts[k] :])
