"""What was computed from the scores of all rows: measures, differences, sentences.

The summary of a comparison holds measures with differences to one baseline. That of a single run holds differences
between pairs of rows; its measures are taken from the scores themselves (`harpe.report.read.measures`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from harpe.report.read.contrast import Contrast
from harpe.report.read.fields import build
from harpe.report.read.lengths import LengthScores, check_rows
from harpe.report.read.positions import PositionDifferences, parse_positions

SEEDS_AND_DOCUMENTS = "seeds and documents"
SEEDS_NEEDED = 3
"""With fewer, the randomness of training cannot be in an interval."""


@dataclass(frozen=True)
class Value:
    """A measure of one row, over its seeds and documents (or samples), with its 95 % interval."""

    value: float
    low: float
    high: float
    seeds: int | None
    """None in a single run, whose rows have one training each."""
    documents: int
    by_seed: tuple[float, ...] = ()


@dataclass(frozen=True)
class Measure:
    """One quantity, for all rows that it was measured of."""

    id: str
    title: str
    unit: Literal["nats", "%"]
    """Nats a token, or per cent."""
    better: Literal["lower", "higher"]
    group: str
    documents: int
    values: dict[str, Value]
    differences: dict[str, Contrast]
    task: str | None = None
    length: int | None = None
    """In tokens; None for a mean over lengths and for what has none."""


@dataclass(frozen=True)
class Difference:
    """One measure of one row of a single run minus another's."""

    name: str
    measure: str
    value: float
    low: float
    high: float
    unit: str
    significant: bool


@dataclass(frozen=True)
class Generation:
    """A sample of what the extended model writes."""

    prompt: str | None = None
    text: str | None = None


@dataclass(frozen=True)
class Summary:
    """What summary.json holds; the fields without a value are those of the other kind of run directory."""

    reading: tuple[str, ...] = ()
    """Sentences on what the numbers show."""
    positions: PositionDifferences | None = None
    lengths: LengthScores | None = None
    interval: Literal["seeds and documents", "documents only"] | None = None
    """What the intervals of the measures cover."""
    seeds_spread: Literal["student"] | None = None
    """None where an earlier version drew seeds with replacement."""
    resamples: int | None = None
    measures: tuple[Measure, ...] = ()
    differences: tuple[Difference, ...] = ()
    generation: Generation | None = None


def parse_summary(value: dict[str, Any], baseline: str, names: set[str], seeds: tuple[int, ...] | None) -> Summary:
    """What summary.json holds, checked against the plan: its baseline, names and seeds (None in a single run)."""
    for key in ("differences", "reading") if seeds is None else ("baseline", "interval", "resamples", "measures"):
        if value[key] is None:
            raise TypeError(f"{key} is empty")
    if seeds is None:
        return build(Summary, value, "the summary", positions=None)
    if value["baseline"] != baseline:
        raise ValueError(f"its baseline is {value['baseline']!r}, the plan's {baseline!r}")
    positions = parse_positions(value["positions"]) if value.get("positions") is not None else None
    summary = build(Summary, value, "the summary", positions=positions)
    if summary.interval == SEEDS_AND_DOCUMENTS and len(seeds) < SEEDS_NEEDED:
        there = f"there are {len(seeds)} seeds and {SEEDS_NEEDED} are needed for that"
        raise ValueError(f"interval is {summary.interval!r}, but {there}")
    if len({measure.id for measure in summary.measures}) < len(summary.measures):
        raise ValueError("two measures have the same id")
    for measure in summary.measures:
        unknown = {*measure.values, *measure.differences} - names
        if unknown:
            raise ValueError(f"{measure.id} has values of {min(unknown)!r}, which is none of the plan's methods")
    check_rows(summary.lengths, names)
    return summary
