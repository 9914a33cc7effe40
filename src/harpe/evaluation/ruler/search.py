"""What all tasks draw with: shuffles, and the published search for the size of a context, but with an end.

The search draws random numbers at every step, and the samples that follow go on in the same stream. So its steps cannot
be left out.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

from harpe.errors import HarpeError

T = TypeVar("T")


class HasText(Protocol):
    """A context in its template, whatever else it has."""

    @property
    def text(self) -> str: ...


D = TypeVar("D", bound=HasText)
TRIES = 1000
"""Draws of the smallest context before it is told that no sample can be short enough. The published program would go on
for ever."""


class Shuffler:
    """`random.Random(seed).shuffle`; the order depends on the number of items alone, and is found once."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._orders: dict[int, list[int]] = {}

    def __call__(self, items: Sequence[T]) -> list[T]:
        """The items in their shuffled order; the argument stays as it is."""
        if (order := self._orders.get(len(items))) is None:
            if len(self._orders) > 64:
                self._orders.clear()
            order = list(range(len(items)))
            random.Random(self._seed).shuffle(order)
            self._orders[len(items)] = order
        return [items[i] for i in order]


class Draft(NamedTuple):
    """A context in its template, before it is cut into the fields of a sample."""

    text: str
    answers: list[str]


@dataclass(frozen=True)
class Budget:
    """What a sample may take."""

    task: str
    length: int
    """Tokens of a sample at most, the answer included."""
    answer: int
    """Tokens of the answer."""
    step: int
    """By how many pieces a context that came out too long is shortened; also the smallest context that is searched."""
    option: str = "--length"
    """That names the length."""


def largest_size(
    make: Callable[[int], HasText], count: Callable[[str], int], budget: Budget, upper: int, extra: int = 0
) -> int:
    """The most pieces of a context within the budget, by bisection between `budget.step` and `upper`.

    Parameters
    ----------
    make
        Draws a context of a number of pieces.
    extra
        Tokens that are put in front later (an example).

    Returns
    -------
    The size, or `budget.step` where nothing fits. Since every draw differs, the result is one of many that the
    bisection may find."""
    low, high, best = budget.step, max(upper, budget.step * 2), budget.step
    while low <= high:
        middle = (low + high) // 2
        if count(make(middle).text) + extra + budget.answer <= budget.length:
            best, low = middle, middle + 1
        else:
            high = middle - 1
    return best


def fitting(make: Callable[[int], D], count: Callable[[str], int], budget: Budget, size: int) -> tuple[D, int]:
    """A sample within the budget, and its length in tokens with the answer: a context that is too long is drawn again,
    smaller.

    Raises HarpeError where the smallest context is too long again and again, or cannot be drawn at all.
    """
    shortest, tries = 0, 0
    while tries < TRIES:
        try:
            draft = make(size)
        except ValueError as error:  # more is to be hidden than the context has places: a smaller one has fewer still
            if size <= budget.step:
                raise _too_short(budget, f"a context of {size} pieces has no room for what is hidden in it") from error
        else:
            length = count(draft.text) + budget.answer
            if length <= budget.length:
                return draft, length
            shortest = min(shortest or length, length)
        if size > budget.step:
            size -= budget.step
        else:
            tries += 1
    raise _too_short(budget, f"the shortest of {TRIES} samples took {shortest}")


def _too_short(budget: Budget, why: str) -> HarpeError:
    return HarpeError(
        f"{budget.task} cannot be made with {budget.length} tokens and this tokenizer: {why}. Give a longer "
        f"{budget.option}, or leave the task out."
    )
