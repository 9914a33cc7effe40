"""The scores of two models beside each other, with paired differences where both read the same."""

from __future__ import annotations

from harpe.evaluation.statistics.intervals import mean_of_differences, paired_difference
from harpe.report.read.contrast import Contrast
from harpe.report.read.model import ModelScores, Number, Pair


def pairs(ours: ModelScores, theirs: ModelScores) -> list[Pair]:
    """Every number of either model beside the other's, with the paired difference where both read the same."""
    first, second = ({number.key: number for number in each.numbers} for each in (ours, theirs))
    return [_pair(first.get(key), second.get(key)) for key in dict.fromkeys((*first, *second))]


def _pair(a: Number | None, b: Number | None) -> Pair:
    if a is None or b is None:
        return Pair(a, b, why="measured of one alone")
    if a.same != b.same or [x.keys() for x in a.units] != [x.keys() for x in b.units]:
        return Pair(a, b, why="not the same samples or options")
    if not a.units:
        return Pair(a, b, why="cannot be paired")
    if a.unit == "%":
        found = mean_of_differences(
            [[100 * (x[k][0] - y[k][0]) for k in x] for x, y in zip(a.units, b.units, strict=True)]
        )
    else:
        (x,), (y,) = a.units, b.units
        if any(x[k][1] != y[k][1] for k in x):
            return Pair(a, b, why="not the same tokens")
        found = paired_difference([x[k][0] for k in x], [y[k][0] for k in x], [x[k][1] for k in x])
    return Pair(a, b, Contrast(found.value, found.low, found.high, found.clear))
