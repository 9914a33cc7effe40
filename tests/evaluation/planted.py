"""Faults that are planted into a rotation, as real programs have had them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from harpe.positions import rotation


@contextmanager
def angles_in_bfloat16() -> Iterator[None]:
    """Positions, frequencies and their product in bfloat16: what `model.to(bfloat16)` does to an ordinary rotary
    module."""

    def cos_and_sin(position_ids: torch.Tensor, table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        frequencies = (table.double() * (2 * math.pi / 2**64)).bfloat16()
        angles = (position_ids.bfloat16()[:, :, None, None] * frequencies).float()
        return angles.cos(), angles.sin()

    exact = rotation.cos_and_sin
    rotation.cos_and_sin = cos_and_sin
    try:
        yield
    finally:
        rotation.cos_and_sin = exact
