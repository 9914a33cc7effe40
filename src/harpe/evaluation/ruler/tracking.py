"""Variable tracking: a chain of assignments hidden in noise, behind one solved example."""

from __future__ import annotations

import random
import string
from collections.abc import Callable
from itertools import pairwise

import numpy as np

from harpe.evaluation.ruler.search import Budget, Draft, fitting, largest_size
from harpe.evaluation.ruler.templates import NOISE, TASK_TEMPLATES

HOPS = 4
_EXAMPLE_LENGTH, _EXAMPLE_STEP = 500, 5
_EXAMPLE_VALUE = "12345"


class TrackingMaker:
    """Draws contexts of variable tracking. Making one draws the example, which belongs to the stream of random numbers.

    Parameters
    ----------
    numbers
        The stream of the values, beside `rng`'s for everything else.
    """

    def __init__(
        self, template: str, rng: random.Random, numbers: np.random.RandomState, count: Callable[[str], int]
    ) -> None:
        self._template, self._rng, self._numbers = template, rng, numbers
        budget = Budget("vt (its example)", _EXAMPLE_LENGTH, 0, _EXAMPLE_STEP)
        example, _ = fitting(
            self._example, count, budget, largest_size(self._example, count, budget, self._upper(count, budget))
        )
        self._solved = f"{example.text} {' '.join(example.answers)}\n"
        self.example_tokens = count(self._solved)

    def _upper(self, count: Callable[[str], int], budget: Budget) -> int:
        return int(budget.length / (count(self._example(budget.step).text) / budget.step) * 3)

    def bare(self, size: int) -> Draft:
        """A context of `size` lines without the example."""
        return self._draw(size, 5, None, self._template)

    def __call__(self, size: int) -> Draft:
        """A context of `size` lines behind the example, in which variables and value are drawn anew."""
        draft = self.bare(size)
        cut = draft.text.index(TASK_TEMPLATES["vt"][0][:20])
        return Draft(f"{draft.text[:cut]}{self._renamed()}\n{draft.text[cut:]}", draft.answers)

    def _example(self, size: int) -> Draft:
        return self._draw(size, 3, _EXAMPLE_VALUE, "".join(TASK_TEMPLATES["vt"]))

    def _name(self, letters: int) -> str:
        return "".join(self._rng.choices(string.ascii_uppercase, k=letters))

    def _draw(self, size: int, letters: int, value: str | None, template: str) -> Draft:
        names = [self._name(letters) for _ in range(HOPS + 1)]
        while len(set(names)) < HOPS + 1:  # a name that came twice stays, and more names make a chain of their own
            names.append(self._name(letters))
        chains, first = [], ""
        for start in range(0, len(names), HOPS + 1):
            chain = names[start : start + HOPS + 1]
            drawn = value or str(self._numbers.randint(10000, 99999))
            first = first or drawn
            chains.append([f"VAR {chain[0]} = {drawn}", *(f"VAR {b} = VAR {a} " for a, b in pairwise(chain))])
        lines = [NOISE] * size
        for steps in chains:
            for offset, (place, step) in enumerate(
                zip(sorted(self._rng.sample(range(len(lines)), len(steps))), steps, strict=True)
            ):
                lines.insert(place + offset, step)
        context = "\n".join(lines).replace(". \n", ".\n")
        return Draft(template.format(context=context, query=first, num_v=HOPS + 1), names[: HOPS + 1])

    def _renamed(self) -> str:
        text = self._solved
        for name in text.split()[-HOPS - 1 :]:
            text = text.replace(name, self._name(len(name)))
        return text.replace(_EXAMPLE_VALUE, str(self._numbers.randint(10000, 99999)))
