"""The tasks on questions of MMLU: copy or solve those that have a number, among others."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harpe.evaluation.long.order_probe import ordinal
from harpe.evaluation.long.ruler2 import wording
from harpe.evaluation.long.ruler2.data import LETTERS, Question
from harpe.evaluation.long.ruler2.draft import Draft, enough, number

STEP = 10
"""Questions that the search starts from and by which samples are shortened."""
_DIGITS = 7
_GUESSED = 8
"""Other questions that the guesser's score is estimated from."""


@dataclass(frozen=True)
class QuestionSettings:
    """What is asked of the questions."""

    head: str
    asks: str
    gives: str
    """one (question, copied), all (with that number), all then one, or letter."""
    alike: int = 1
    """Questions with one number, at most."""
    examples: int = 0
    """That are solved in front of the task."""
    example_copies: bool = False
    """Whether those copy the question first."""


class QuestionMaker:
    """Draws contexts of questions.

    Parameters
    ----------
    asked
        Questions that are asked for, each once.
    others
        Those that the contexts are filled with, over and over where more are wanted than there are.
    score
        Of an answer with these references, 0..1; the guesser's is an expectation of it.
    """

    def __init__(
        self,
        settings: QuestionSettings,
        rng: random.Random,
        asked: Sequence[Question],
        others: Sequence[Question],
        score: Callable[[str, Sequence[str]], float],
    ) -> None:
        self._settings, self._rng, self._asked, self._others, self._score = settings, rng, asked, others, score
        self.index = 0

    def indices(self, count: int) -> Sequence[int]:
        enough(count, len(self._asked), "questions in the test set of MMLU")
        return self._rng.sample(range(len(self._asked)), count)

    def _numbers(self, count: int) -> list[str]:
        """Numbers for so many questions, shuffled; the last one is that of the question that is asked for."""
        alike = self._settings.alike
        numbers = [number(self._rng, _DIGITS) for _ in range(-(-count // alike))] * alike
        self._rng.shuffle(numbers)
        return numbers[:count]

    def __call__(self, size: int) -> Draft:
        """The question `index` among `size` others."""
        rng, settings = self._rng, self._settings
        repeats = max(1, -(-size // len(self._others)))
        picked = [i // repeats for i in rng.sample(range(len(self._others) * repeats), size)]
        *numbers, own = self._numbers(size + 1)
        number_of = dict(zip(picked, numbers, strict=True))  # a question that came twice has its last number at both
        rng.shuffle(picked)
        examples = [(number_of[i], self._others[i]) for i in rng.sample(picked, settings.examples)]
        place = rng.randint(0, size)
        asked = self._asked[self.index]
        lines = [(number_of[i], self._others[i]) for i in picked]
        lines.insert(place, (own, asked))
        order = sum(each == own for each, _ in lines[: place + 1])
        ordered = wording.ORDER.format(ordinal=ordinal(order)) if settings.alike > 1 else ""
        context = "\n\n".join([wording.QUESTION.format(number=each, question=it.text) for each, it in lines])
        text = f"{settings.head}\n\n{context}\n\n{self._solved(examples)}{self._asks(own, ordered)}"
        if settings.gives == "letter":
            solved = wording.QUESTION.format(number=own, question=asked.text)
            solved += wording.SOLUTION.format(letter=asked.letter)
            return Draft(text, [asked.letter], solved, lambda: 1 / len(LETTERS))
        alike = [it.text for each, it in lines if each == own]
        others = [it.text for each, it in lines if each != own]
        if settings.alike > 1 and settings.gives != "all":
            others = []  # the guesser knows the number, and not the order
        outputs = alike if settings.gives == "all" else [asked.text]
        answer = [*alike, asked.text] if settings.gives == "all then one" else outputs
        return Draft(text, outputs, "\n\n".join(answer), lambda: self._guessed(outputs, alike, others))

    def _guessed(self, outputs: list[str], alike: list[str], others: list[str]) -> float:
        """The mean score of one question, of all; that of `others` is estimated from a few that lie evenly."""
        few = [others[i * len(others) // _GUESSED] for i in range(_GUESSED)] if len(others) > _GUESSED else others
        right = sum(self._score(each, outputs) for each in alike)
        wrong = len(others) * sum(self._score(each, outputs) for each in few) / max(1, len(few))
        return (right + wrong) / (len(alike) + len(others))

    def _asks(self, own: str, order: str) -> str:
        return self._settings.asks.format(number=own, order=order)

    def _solved(self, examples: Sequence[tuple[str, Question]]) -> str:
        if not examples:
            return ""
        parts = []
        for own, it in examples:
            copied = f"\n{wording.QUESTION.format(number=own, question=it.text)}"
            copied = copied if self._settings.example_copies else ""
            parts.append(self._asks(own, "") + copied + wording.SOLUTION.format(letter=it.letter))
        return wording.EXAMPLES.format(examples="\n\n".join(parts))
