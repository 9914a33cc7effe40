"""HARPE: a base for every key/value head, one stage of training at the target length (Lian et al. 2024, arXiv 2412.07171)."""

from __future__ import annotations

from collections.abc import Sequence

from harpe.methods.types import ModelGeometry, Stage, per_head_encoding


def harpe(geometry: ModelGeometry, length: int, bases: Sequence[float] | Sequence[Sequence[float] | None]) -> list[Stage]:
    """One stage at `length` with head h on `bases[h]` in all layers, or on `bases[l][h]` in layer l."""
    return [Stage(per_head_encoding(bases, geometry), length, share=1.0)]
