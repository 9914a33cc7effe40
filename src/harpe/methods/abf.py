"""ABF: one larger base for all heads, one stage (Xiong et al. 2023, "Effective long-context scaling", arXiv 2309.16039)."""

from __future__ import annotations

from harpe.methods.types import ModelGeometry, Stage, shared_encoding


def abf(geometry: ModelGeometry, length: int, base: float) -> list[Stage]:
    """One stage at `length` with the same `base` in every head; the model keeps a stock rope type."""
    return [Stage(shared_encoding(base, geometry), length, share=1.0)]
