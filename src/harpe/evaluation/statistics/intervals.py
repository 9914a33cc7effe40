"""Intervals for measured values: 95 %, by the bootstrap over documents or samples, or Wilson's for shares."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95
Z = 1.959963984540054
"""The normal distribution's 97.5 % point."""


@dataclass(frozen=True)
class Interval:
    """A value with the ends of its 95 % interval."""

    value: float
    low: float
    high: float
    units: int | None = None
    """Documents or samples that a bootstrap has drawn from, of a mean over tasks those of the task that has the fewest;
    None where it is not one's."""

    @property
    def clear(self) -> bool:
        """Whether it leaves out zero, by enough units: with fewer than six no sign test could tell, and a bootstrap of
        two that agree has no width."""
        enough = self.units is None or 2.0 ** (1 - self.units) < 1 - LEVEL
        return enough and (self.low > 0 or self.high < 0)

    def within(self, low: float, high: float) -> Interval:
        """The same with ends between two bounds (a share's), or up to the value where that lies beyond one."""
        low, high = min(low, self.value), max(high, self.value)
        return replace(self, low=min(max(self.low, low), high), high=min(max(self.high, low), high))

    def as_dict(self, name: str = "value", scale: float = 1.0) -> dict[str, float]:
        """For files: the value under `name`, then its ends, all times `scale`."""
        return {name: scale * self.value, "low": scale * self.low, "high": scale * self.high}


def wilson(hits: float, samples: int) -> Interval:
    """A share with Wilson's score interval (Wilson 1927), which has a width at 0 and 1; the bootstrap's has none."""
    if samples < 1:
        raise ValueError("no samples")
    share = hits / samples
    centre = share + Z**2 / (2 * samples)
    half = Z * math.sqrt(share * (1 - share) / samples + Z**2 / (4 * samples**2))
    scale = 1 + Z**2 / samples
    return Interval(share, max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale))


def _resampled(count: int, seed: int) -> Iterator[np.ndarray]:
    """The units of each resample: int64 [some, count], a few million numbers at a time, RESAMPLES rows in all."""
    rng, left = np.random.default_rng(seed), RESAMPLES
    while left:
        rows = min(left, max(1, 4_000_000 // count))
        yield rng.integers(0, count, (rows, count))
        left -= rows


def _resampled_means(totals: np.ndarray, weights: np.ndarray, seed: int) -> np.ndarray:
    """float64 [RESAMPLES]: the weighted mean of every resample."""
    return np.concatenate([totals[picks].sum(1) / weights[picks].sum(1) for picks in _resampled(len(totals), seed)])


def _ends(values: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def weighted_mean(totals: Sequence[float], weights: Sequence[float], seed: int = 0) -> Interval:
    """sum(totals) / sum(weights) with a bootstrap over the units (documents): token-weighted, not a mean of means."""
    t, w = np.asarray(totals, float), np.asarray(weights, float)
    return Interval(float(t.sum() / w.sum()), *_ends(_resampled_means(t, w, seed)), len(t))


def share(scores: Sequence[float]) -> tuple[Interval, str]:
    """The mean of scores from 0 to 1, and whose its interval is: Wilson's where all are 0 or 1, else a bootstrap's."""
    if set(scores) <= {0.0, 1.0}:
        return wilson(sum(scores), len(scores)), "Wilson"
    return weighted_mean(scores, [1.0] * len(scores)), "bootstrap over samples"


def paired_difference(
    first: Sequence[float], second: Sequence[float], weights: Sequence[float] | None = None, seed: int = 0
) -> Interval:
    """Weighted mean of first - second over the same units, with a bootstrap over the units.

    Without weights each unit counts the same; `first` and `second` are then the units' values, else their totals.
    """
    difference = np.asarray(first, float) - np.asarray(second, float)
    return weighted_mean(
        difference.tolist(), weights if weights is not None else np.ones(len(difference)).tolist(), seed
    )


def mean_of_differences(differences: Sequence[Sequence[float]], seed: int = 0) -> Interval:
    """The mean over tasks of each task's mean difference, by a bootstrap over the units within every task.

    The tasks are what they are: the interval speaks about other questions of the same tasks.
    """
    values = [np.asarray(task, float) for task in differences]
    means = [_resampled_means(task, np.ones(len(task)), seed + number) for number, task in enumerate(values)]
    mean, units = float(np.mean([task.mean() for task in values])), min(map(len, values))
    return Interval(mean, *_ends(np.mean(means, axis=0)), units)
