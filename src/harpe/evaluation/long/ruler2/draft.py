"""What the three kinds of tasks draw."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from harpe.errors import HarpeError


class Draft(NamedTuple):
    """A sample before its tokens are counted."""

    text: str
    outputs: list[str]
    """The references that the score reads."""
    answer: str
    """What somebody who knows would write."""
    chance: Callable[[], float]
    """Expected score, 0..1, of the task's guesser; a function, since the search draws many samples for their size."""


class Maker(Protocol):
    """Draws samples of a task with a context of so many pieces, from one stream of random numbers."""

    index: int
    """Of what is asked for; set before each sample. The search for the size asks for the first."""

    def indices(self, count: int) -> Sequence[int]:
        """What so many samples ask for, drawn once the size is found."""

    def __call__(self, size: int) -> Draft: ...


def number(rng: random.Random, digits: int) -> str:
    """A number of so many digits."""
    return str(rng.randint(10 ** (digits - 1), 10**digits - 1))


def enough(count: int, there: int, what: str) -> None:
    """Raises HarpeError where more is asked for than there is."""
    if count > there:
        raise HarpeError(f"--samples {count}: there are only {there} {what}. Ask for fewer.")
