"""What was measured of one model, over all suites: the values of a page of scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from harpe.report.read.contrast import Contrast
from harpe.report.read.lengths import Effective, Percent
from harpe.report.read.scores import Bin

Units = Mapping[Any, tuple[float, float]]
"""Of every sample or document, by what names it: its total and its weight (score and 1; nats and tokens)."""


@dataclass(frozen=True)
class Number:
    """One measured value with its 95 % interval; `low` and `high` are None where its file has none."""

    suite: str
    task: str
    length: int | None
    """In tokens; None where a suite has no lengths."""
    unit: str
    """% or perplexity."""
    value: float
    low: float | None
    high: float | None
    samples: int
    """Samples, questions or documents behind it."""
    file: str
    same: str
    """Names what was read and how: numbers of two models are paired where it is the same."""
    units: tuple[Units, ...] = ()
    """By task; a mean over tasks has several. Empty: cannot be paired."""

    @property
    def key(self) -> tuple[str, str, int | None]:
        return self.suite, self.task, self.length


@dataclass(frozen=True)
class OverLengths:
    """What all lengths of a task say together."""

    suite: str
    task: str
    effective: Effective | None
    area: Percent | None
    """The length score."""
    reason: str
    """Why there is no effective length."""


@dataclass(frozen=True)
class ScoreFile:
    """A file of scores: what of, by which engine, when, and whether the model was trained on its texts."""

    file: str
    suite: str
    engine: str
    overlap: str
    written: str


@dataclass(frozen=True)
class ModelScores:
    """Everything in a folder of scores."""

    name: str
    marks: dict[str, str]
    """What tells the model from others: hashes or a commit; of a server its name alone."""
    numbers: tuple[Number, ...]
    lengths: tuple[OverLengths, ...]
    positions: dict[str, tuple[Bin, ...]]
    """Loss by position, by what was read."""
    files: tuple[ScoreFile, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Pair:
    """The same thing measured of two models."""

    ours: Number | None
    theirs: Number | None
    difference: Contrast | None = None
    """Ours minus theirs, in points, or in nats a token for perplexities; None where they did not read the same."""
    why: str = field(default="")
    """Why there is no difference."""
