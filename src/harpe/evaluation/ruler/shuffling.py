"""Shuffles that always use the benchmark's seed: the order depends on the number of items alone, and is found once."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Shuffler:
    """`random.Random(seed).shuffle`, remembered by length."""

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
