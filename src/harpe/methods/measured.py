"""What methods may ask of a model's heads."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

from harpe.errors import HarpeError
from harpe.positions.geometry import ModelGeometry

HeadQuantity = Literal["distances", "awareness"]
"""What methods may ask of heads: how far they look in tokens (`harpe.models.head_distance`), and their position
awareness (`harpe.models.position_awareness`)."""
MeasureHeads = Callable[..., Sequence[Sequence[float]]]
"""Measures a `HeadQuantity`, without one distances, of every key/value head, [layers][heads], in a forward pass over a
few texts."""


def measured_rows(
    method: str,
    what: HeadQuantity,
    given: Sequence[Sequence[float]] | None,
    measure: MeasureHeads | None,
    geometry: ModelGeometry,
) -> Sequence[Sequence[float]]:
    """A quantity of every key/value head, [layers][heads]: as `given`, or else measured.

    Raises HarpeError where neither can be, and for numbers that are not one for each head.
    """
    if given is None and measure is None:
        raise HarpeError(
            f"{method} measures the heads of the model on texts, which are not at hand here. Give {what}, [layers]"
            "[key/value heads], or use it in `harpe compare`, which has texts."
        )
    rows = measure(what) if given is None and measure is not None else given
    assert rows is not None
    layers, heads = geometry.layers, geometry.key_value_heads
    if len(rows) != layers or any(len(row) != heads for row in rows):
        raise HarpeError(f"{what} of {method} must be {layers} rows, one a layer, of {heads} numbers, one a head.")
    if not all(math.isfinite(value) for row in rows for value in row):
        raise HarpeError(f"{what} of {method} holds something else than numbers.")
    return rows
