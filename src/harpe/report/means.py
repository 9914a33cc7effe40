"""Means over the seeds of a row: loss by position, training loss, needle grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from harpe.errors import HarpeError
from harpe.measurement import common_seeds
from harpe.report.read.run import Row
from harpe.report.read.scores import Bin, Curve, Perplexity, Score

T = TypeVar("T")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _alike(row: Row, what: str, keys: Sequence[T]) -> None:
    if any(key != keys[0] for key in keys):
        raise HarpeError(f"The seeds of {row.name} have {what} of different protocols. Evaluate them again in one way.")


def mean_bins(row: Row, beside: Row | None = None) -> tuple[Bin, ...]:
    """Loss by position, the mean over seeds; the ends of the interval are the means of the seeds' ends.

    All seeds read the same documents: the interval covers documents and not seeds. Empty where none was measured.

    Parameters
    ----------
    beside
        A row that it is compared with: of seeds that both have, as differences are.
    """
    by_seed = _by_seed(row)
    if beside is not None:
        common = common_seeds(list(by_seed), list(_by_seed(beside)), row.trained and beside.trained)
        by_seed = {seed: by_seed[seed] for seed in common[0]} if common else {}
    found = list(by_seed.values())
    if not found:
        return ()
    _alike(row, "losses by position", [[(b.start, b.end) for b in perplexity.bins] for perplexity in found])
    bins = []
    for same in zip(*(perplexity.bins for perplexity in found), strict=True):
        nll, low, high = (_mean([getattr(b, key) for b in same]) for key in ("nll", "low", "high"))
        bins.append(Bin(same[0].start, same[0].end, nll, low, high, same[0].tokens))
    return tuple(bins)


def _by_seed(row: Row) -> dict[int, Perplexity]:
    return {run.seed: run.perplexity for run in row.runs if run.perplexity is not None}


def mean_curve(row: Row) -> Curve | None:
    """Training loss, the mean over seeds at the steps that all have logged; of seeds that failed only where all did."""
    runs = [run for run in row.runs if run.failed is None] or row.runs
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


def mean_grid(row: Row) -> MeanGrid | None:
    """Needle scores by length and depth, the mean over seeds."""
    found = [run.grid for run in row.runs if run.grid is not None]
    if not found:
        return None
    first = found[0]
    _alike(row, "needle grids", [(grid.lengths, grid.depths) for grid in found])
    same = [list(zip(*rows, strict=True)) for rows in zip(*(grid.cells for grid in found), strict=True)]

    def note(cell: tuple[Score, ...]) -> str:
        if len(cell) == 1:
            return cell[0].interval_words()
        return f"seeds {', '.join(f'{100 * c.score:.0f}' for c in cell)} %, n = {cell[0].samples} each"

    values = [[_mean([c.score for c in cell]) for cell in line] for line in same]
    return MeanGrid(first.lengths, first.depths, values, [[note(cell) for cell in line] for line in same])


def smoothed(curve: Curve) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]] | None:
    """Tokens, loss and running mean of the loss, each [n] with n <= 400; None where no loss is finite."""
    tokens, loss = np.array(curve.tokens), np.array(curve.loss)
    tokens, loss = tokens[np.isfinite(loss)], loss[np.isfinite(loss)]
    size = -(-len(loss) // 400)
    if not size:
        return None
    cuts = np.arange(0, len(loss), size)
    counts = np.diff(np.append(cuts, len(loss)))
    tokens, loss = np.add.reduceat(tokens, cuts) / counts, np.add.reduceat(loss, cuts) / counts
    half = max(len(loss) // 40, 0)
    return tokens, loss, np.array([loss[max(i - half, 0) : i + half + 1].mean() for i in range(len(loss))])
