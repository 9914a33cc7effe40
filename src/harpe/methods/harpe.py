"""HARPE: a base for every key/value head, one stage of training at the target length (Lian et al. 2024, arXiv 2412.07171)."""

from __future__ import annotations

from harpe.methods.types import ModelGeometry, Stage, per_head_encoding
from harpe.positions.base_sets import BaseSet


def harpe(geometry: ModelGeometry, length: int, base_set: BaseSet) -> list[Stage]:
    """One stage at `length` with head h on `base_set.bases[h]`."""
    return [Stage(per_head_encoding(base_set.bases, geometry), length, share=1.0)]
