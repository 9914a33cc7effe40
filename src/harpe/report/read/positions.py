"""Loss by position minus that of a reference on the same documents, with its paired interval: the values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from harpe.report.wording import signed


@dataclass(frozen=True)
class Step:
    """The difference in nats a token at positions start .. end - 1, with its 95 % interval."""

    start: int
    end: int
    value: float
    low: float
    high: float
    documents: int

    @property
    def middle(self) -> float:
        """Middle of the bin on a logarithmic axis of positions."""
        return math.sqrt(max(self.start, 1) * max(self.end, 1))

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out zero, over so many documents that a sign test could tell: six."""
        return 2.0 ** (1 - self.documents) < 0.05 and (self.low > 0 or self.high < 0)

    def words(self) -> str:
        value, interval = signed(self.value, self.low, self.high, 3)
        doubt = "" if self.clear else ", not clear"
        return f"positions {self.start:,} to {self.end:,}: {value} ({interval}) nats a token{doubt}"


@dataclass(frozen=True)
class PositionDifferences:
    """Of all methods that were measured on the reference's documents."""

    reference: str
    """Name of the method that the others are compared with."""
    documents: int
    resamples: int
    methods: dict[str, tuple[Step, ...]]


def parse_positions(value: dict[str, Any]) -> PositionDifferences:
    """Out of positions.json, or the entry `positions` of a comparison's summary.

    Raises KeyError, TypeError or ValueError where an entry is missing, or of another kind.
    """
    bins = [(int(start), int(end)) for start, end in value["bins"]]
    methods, documents = {}, int(value["documents"])
    for name, found in value["differences"].items():
        ends = [[float(number) for number in found[key]] for key in ("value", "low", "high")]
        if not bins or any(len(numbers) != len(bins) for numbers in ends):
            raise ValueError(f"the differences of {name} are not one for each of {len(bins)} bins")
        numbers = zip(bins, *ends, strict=True)
        methods[str(name)] = tuple(
            Step(start, end, value, low, high, documents) for (start, end), value, low, high in numbers
        )
    return PositionDifferences(str(value["reference"]), documents, int(value["resamples"]), methods)
