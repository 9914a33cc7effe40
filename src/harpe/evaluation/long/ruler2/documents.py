"""The tasks on documents of HotpotQA: which one holds a text or an answer, or what the answer is."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harpe.errors import HarpeError
from harpe.evaluation.long.ruler2.data import Sourced
from harpe.evaluation.long.ruler2.draft import Draft, enough, number
from harpe.evaluation.long.ruler2.wording import DOCUMENT

STEP = 5
"""Documents that the search starts from and by which samples are shortened."""
_DIGITS = 7


@dataclass(frozen=True)
class DocumentSettings:
    """What is asked of the documents."""

    head: str
    asks: str
    gives: str
    """text (the number of the document with it), source (the number of one that helps), or answer."""
    copies: bool = False
    """Whether who knows copies the documents first."""


class DocumentMaker:
    """Draws contexts of documents: those of the question, the distractors that come with it, and others.

    Parameters
    ----------
    documents
        Those that the contexts are filled with, over and over where more are wanted than there are.
    score
        Of an answer with these references, 0..1; the guesser's is an expectation of it.
    """

    def __init__(
        self,
        settings: DocumentSettings,
        rng: random.Random,
        questions: Sequence[Sourced],
        documents: Sequence[str],
        score: Callable[[str, Sequence[str]], float],
    ) -> None:
        self._settings, self._rng, self._score = settings, rng, score
        self._questions, self._documents = questions, documents
        self.index = 0

    def indices(self, count: int) -> Sequence[int]:
        enough(count, len(self._questions), "questions in the validation set of HotpotQA")
        return range(count)

    def _numbered(self, texts: Sequence[str]) -> list[tuple[str, str]]:
        return [(number(self._rng, _DIGITS), text) for text in texts]

    def __call__(self, size: int) -> Draft:
        """The question `index` and its distractors among `size` others."""
        rng, settings, asked, total = self._rng, self._settings, self._questions[self.index], len(self._documents)
        own, near = self._numbered(asked.documents), self._numbered(asked.distractors)
        distinct = total - len({*asked.documents, *asked.distractors})
        if distinct < 1:
            raise HarpeError(f"The training set of HotpotQA has only {total} documents, too few for a context.")
        repeats = max(1, -(-size // distinct))
        picked = [i // repeats for i in rng.sample(range(total * repeats), size)]
        context = [*self._numbered([self._documents[i] for i in picked]), *own, *near]
        rng.shuffle(context)
        told = "\n\n".join([DOCUMENT.format(number=each, text=text) for each, text in context])
        asks = settings.asks.format(question=asked.question, text=asked.documents[0])
        text = f"{settings.head}\n\n{told}\n\n{asks}"
        if settings.gives != "answer":
            right = [each for each, _ in own[: 1 if settings.gives == "text" else None]]
            return Draft(text, right, f" {right[0]}", lambda: len(right) / len(context))
        copied = "".join(f"{DOCUMENT.format(number=each, text=it)}\n\n" for each, it in own) if settings.copies else ""
        answer = f"{copied}Answer: {asked.answer}"
        return Draft(text, [asked.answer], answer, lambda: self._guessed([asked.answer]))

    def _guessed(self, outputs: list[str]) -> float:
        """The mean score of yes and of no."""
        return (self._score("yes", outputs) + self._score("no", outputs)) / 2
