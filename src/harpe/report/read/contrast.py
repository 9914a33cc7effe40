"""A difference between two rows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Contrast:
    """A measure of one row minus the baseline's on the same documents, with its 95 % interval."""

    value: float
    low: float
    high: float
    real: bool
    p: float | None = None
    holm: float | None = None
    """p after Holm's correction across rows."""
    seeds: int | None = None
    """That both rows have; None where an earlier version has not told."""
