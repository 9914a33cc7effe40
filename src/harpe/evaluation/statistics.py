"""Intervals for measured values: 95 %, by the bootstrap over documents or samples, or Wilson's for shares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
Z = 1.959963984540054
"""The normal distribution's 97.5 % point."""


@dataclass(frozen=True)
class Interval:
    """A value with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def wilson(hits: float, samples: int) -> Interval:
    """A share of samples with Wilson's score interval (Wilson 1927): sensible at 0 and at 1, where the bootstrap has no width."""
    if samples < 1:
        raise ValueError("no samples")
    share = hits / samples
    centre = share + Z**2 / (2 * samples)
    half = Z * math.sqrt(share * (1 - share) / samples + Z**2 / (4 * samples**2))
    scale = 1 + Z**2 / samples
    return Interval(share, max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale))


def _resampled(count: int, seed: int) -> np.ndarray:
    """int64 [RESAMPLES, count]: which units each resample holds."""
    return np.random.default_rng(seed).integers(0, count, (RESAMPLES, count))


def _ends(values: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def weighted_mean(totals: Sequence[float], weights: Sequence[float], seed: int = 0) -> Interval:
    """sum(totals) / sum(weights) with a bootstrap over the units (documents): token-weighted, not a mean of means."""
    t, w = np.asarray(totals, float), np.asarray(weights, float)
    picks = _resampled(len(t), seed)
    return Interval(float(t.sum() / w.sum()), *_ends(t[picks].sum(1) / w[picks].sum(1)))


def paired_difference(first: Sequence[float], second: Sequence[float], weights: Sequence[float] | None = None, seed: int = 0) -> Interval:
    """Weighted mean of first - second over the same units, with a bootstrap over the units.

    Without weights each unit counts the same; `first` and `second` are then the units' values, else their totals.
    """
    difference = np.asarray(first, float) - np.asarray(second, float)
    return weighted_mean(difference.tolist(), weights if weights is not None else np.ones(len(difference)).tolist(), seed)
