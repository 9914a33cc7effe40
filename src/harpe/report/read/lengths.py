"""Effective length and length score of every row, for each task that was asked at several lengths."""

from __future__ import annotations

from dataclasses import dataclass

from harpe.report.read.contrast import Contrast


@dataclass(frozen=True)
class Percent:
    """A score in per cent with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class AtLength(Percent):
    """A score at a length in tokens."""

    length: int


@dataclass(frozen=True)
class Effective:
    """The effective length in tokens, 0 for none, with the lengths that its 95 % interval ends at."""

    value: int
    low: int
    high: int
    failed_below: tuple[int, ...] = ()
    """Shorter lengths that were asked and fell below."""


@dataclass(frozen=True)
class MethodLengths:
    """One row in one task."""

    seeds: int
    scores: tuple[AtLength, ...]
    base: Percent | None
    """The best score at a length of the training; None where none of them was asked."""
    effective: Effective | None
    area: Percent | None
    """The length score; None at one length."""
    reason: str
    """Why there is no effective length."""


@dataclass(frozen=True)
class LengthTask:
    """A task, or the mean of several, at all lengths."""

    id: str
    title: str
    group: str
    task: str | None
    """None: a mean over tasks."""
    lengths: tuple[int, ...]
    units: int
    """Samples that were drawn from, those that all lengths have in common once."""
    methods: dict[str, MethodLengths]
    differences: dict[str, Contrast]
    """Of the length score, to the reference."""
    incomplete: tuple[str, ...] = ()
    """Rows that were not asked at all of the lengths yet, and are left out."""
    guessed: tuple[float, ...] = ()
    """What a guesser scores at every length, in per cent."""

    @property
    def chief(self) -> bool:
        """Whether it is shown by itself: a mean over tasks, or the grid."""
        return self.task is None or self.id == "grid"


@dataclass(frozen=True)
class LengthScores:
    """Of all rows."""

    reference: str
    trained_length: int
    kept: float
    """The share of the base score that an effective length keeps."""
    resamples: int
    tasks: tuple[LengthTask, ...]


def check_rows(found: LengthScores | None, names: set[str]) -> None:
    """ValueError for rows that the plan does not have, and for scores that are not one for each length."""
    for task in found.tasks if found else ():
        if unknown := {*task.methods, *task.differences} - names:
            raise ValueError(f"{task.id} by length has {min(unknown)!r}, which is none of the plan's methods")
        for name, each in task.methods.items():
            if tuple(score.length for score in each.scores) != task.lengths:
                raise ValueError(f"{task.id} of {name} has not one score for each of {list(task.lengths)}")
