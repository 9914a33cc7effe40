"""Means over the seeds of a method: loss by position, training loss, needle grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from harpe.errors import HarpeError
from harpe.report.comparison_read import Entry
from harpe.report.read import Bin, Curve, Estimate, Perplexity

T = TypeVar("T")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _alike(entry: Entry, what: str, keys: Sequence[T]) -> None:
    if any(key != keys[0] for key in keys):
        raise HarpeError(f"The seeds of {entry.name} have {what} of different protocols. Evaluate them again in one way.")


def mean_bins(entry: Entry) -> tuple[Bin, ...]:
    """Loss by position, the mean over seeds; the ends of the interval are the means of the seeds' ends.

    All seeds read the same documents, so that the interval covers documents and not seeds. Empty where nothing was measured.
    """
    found: list[Perplexity] = [run.perplexity for run in entry.runs if run.perplexity is not None]
    if not found:
        return ()
    _alike(entry, "losses by position", [[(b.start, b.end) for b in perplexity.bins] for perplexity in found])
    bins = []
    for same in zip(*(perplexity.bins for perplexity in found), strict=True):
        nll, low, high = (_mean([getattr(b, key) for b in same]) for key in ("nll", "low", "high"))
        bins.append(Bin(same[0].start, same[0].end, nll, low, high, same[0].tokens))
    return tuple(bins)


def mean_curve(entry: Entry) -> Curve | None:
    """Training loss, the mean over seeds at the steps that all of them have logged; of seeds that failed only where all did."""
    runs = [run for run in entry.runs if run.failed is None] or entry.runs
    logs = [dict(zip(run.curve.tokens, run.curve.loss, strict=True)) for run in runs if run.curve is not None]
    shared = sorted(set.intersection(*(set(log) for log in logs))) if logs else []
    return Curve(tuple(shared), tuple(_mean([log[at] for log in logs]) for at in shared)) if shared else None


@dataclass(frozen=True)
class MeanGrid:
    """Needle scores 0..1 by length and depth, `values[length][depth]`, and what to say of each cell."""

    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    values: list[list[float]]
    notes: list[list[str]]
    """The interval where there is one seed, else the seeds' scores."""


def mean_grid(entry: Entry) -> MeanGrid | None:
    """Needle scores by length and depth, the mean over seeds."""
    found = [run.grid for run in entry.runs if run.grid is not None]
    if not found:
        return None
    first = found[0]
    _alike(entry, "needle grids", [(grid.lengths, grid.depths) for grid in found])
    same = [list(zip(*rows, strict=True)) for rows in zip(*(grid.cells for grid in found), strict=True)]

    def note(cell: tuple[Estimate, ...]) -> str:
        if len(cell) == 1:
            return cell[0].interval_words()
        return f"seeds {', '.join(f'{100 * c.value:.0f}' for c in cell)} %, n = {cell[0].n} each"

    values = [[_mean([c.value for c in cell]) for cell in row] for row in same]
    return MeanGrid(first.lengths, first.depths, values, [[note(cell) for cell in row] for row in same])
