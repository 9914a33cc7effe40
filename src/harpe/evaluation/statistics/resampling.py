"""Intervals over seeds and documents, differences between methods, and Holm's correction.

Every method is measured on the same documents (or samples) after every training seed. A resample draws documents with
replacement, one draw for all seeds and for all methods, because documents are crossed with seeds and not nested in
them; other documents for each seed would average away their part of the variance (Owen 2007, "The pigeonhole
bootstrap"). Seeds are few, and a bootstrap of three is too narrow by half and more: their spread is Student's.
Differences are paired: both methods see the same draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harpe.evaluation.statistics.intervals import Interval

RESAMPLES = 10_000
CHUNK = 2_000_000
"""Numbers in one block of draws."""
FEWEST_SEEDS = 3
"""Below this seeds are averaged and only documents are drawn."""
SPREAD = "student"
"""How the spread of seeds is taken; in files, which have no such word where seeds were drawn with replacement."""


@dataclass(frozen=True)
class Units:
    """The documents or samples, alike for all methods."""

    weights: np.ndarray
    """Tokens of a document, or ones: float64 [units]."""
    strata: np.ndarray
    """Which mean a unit belongs to (a task): int64 [units]. The measure is the mean of the strata's weighted means."""

    @staticmethod
    def of(weights: Sequence[float], strata: Sequence[int] | None = None) -> Units:
        return Units(np.asarray(weights, float), np.asarray(strata if strata is not None else [0] * len(weights), int))


@dataclass(frozen=True)
class Draws:
    """Resampled values of one measure."""

    value: float
    """On all seeds and units as they are."""
    by_seed: tuple[float, ...]
    resampled: np.ndarray
    """float64 [resamples]."""
    units: int
    """Documents or samples behind it; of a mean over tasks, those of the task that has the fewest."""

    def interval(self) -> Interval:
        low, high = np.percentile(self.resampled, [2.5, 97.5])
        return Interval(self.value, float(low), float(high))

    def p_value(self) -> float:
        """Two-sided, that the value is zero: twice the smaller share of resamples on one side (ties on both).

        Never below 2^(1 - units), what a sign test could reach at best: few documents give a bootstrap too narrow a
        spread, and one sample of a task none. 1 where values are not finite.
        """
        n = len(self.resampled)
        if not np.isfinite(self.resampled).all():
            return 1.0
        below, above = int((self.resampled <= 0).sum()), int((self.resampled >= 0).sum())
        return min(1.0, max(2.0 ** (1 - self.units), 2 * (min(below, above) + 1) / (n + 1)))


def _means(totals: np.ndarray, units: Units, counts: np.ndarray) -> np.ndarray:
    """Measure of every seed under every draw: [draws, seeds], for counts [draws, units]."""
    strata = np.unique(units.strata)
    found = np.zeros((len(counts), len(totals)))
    for stratum in strata:
        part = units.strata == stratum
        with np.errstate(invalid="ignore"):  # of a loss that is not finite
            found += (counts[:, part] @ totals[:, part].T) / (counts[:, part] @ units.weights[part])[:, None]
    return found / len(strata)


def _unit_draws(units: Units, draws: int, rng: np.random.Generator) -> np.ndarray:
    """How often each unit is drawn, within its stratum: float64 [draws, units]."""
    counts = np.zeros((draws, len(units.weights)))
    for stratum in np.unique(units.strata):
        part = np.flatnonzero(units.strata == stratum)
        counts[:, part] = rng.multinomial(len(part), np.full(len(part), 1 / len(part)), size=draws)
    return counts


def student(whole: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """What other training seeds would add to the mean over seeds: draws around 0, float64 [draws, ...], zeros below
    `FEWEST_SEEDS`.

    sum(z x) / (chi sqrt(n)), for the deviations x of n seeds from their mean, standard normal z, and chi with n - 1
    degrees of freedom: of themselves they give Student's interval. Measures of the same seeds keep what they share.

    Parameters
    ----------
    whole
        On all documents, float64 [seeds, ...].
    """
    seeds, rng = len(whole), np.random.default_rng([seed, len(whole)])
    if seeds < FEWEST_SEEDS:
        return np.zeros((draws, *whole.shape[1:]))
    normal = rng.standard_normal((draws, seeds)) / np.sqrt(seeds * rng.chisquare(seeds - 1, (draws, 1)))
    return np.tensordot(normal, whole - whole.mean(0), 1)


def _own_share(means: np.ndarray, whole: np.ndarray) -> float:
    """How much of the spread of seeds to keep, 0 to 1: they differ too because each meets the documents with noise of
    its own, which draws of documents hold already.

    Half of that is taken off. Simulated, of a hundred differences that are none 1 to 5 are called real with none of it
    taken off, 3 to 6 with half, 4 to 8 with all (three seeds, 24 documents).

    Parameters
    ----------
    means, whole
        Under draws of documents, float64 [draws, seeds], and on all of them, float64 [seeds].
    """
    if len(whole) < FEWEST_SEEDS or not (seen := whole.var(ddof=1)) > 0:
        return 0.0
    noise = (means - means.mean(1, keepdims=True)).var(0).sum() / (len(whole) - 1)
    return float(np.sqrt(max(0.0, 1 - noise / 2 / seen)))


def resample(totals: np.ndarray, units: Units, *, resamples: int = RESAMPLES, seed: int = 0) -> Draws:
    """Resampled values of a measure, or of a difference of two (their totals subtracted).

    Parameters
    ----------
    totals
        float64 [seeds, units]; a method without training has one seed.
    """
    totals = np.atleast_2d(np.asarray(totals, float))
    whole = _means(totals, units, np.ones((1, len(units.weights))))[0]
    rng, parts, left = np.random.default_rng(seed), [], resamples
    while left:
        block = min(left, max(1, CHUNK // len(units.weights)))
        parts.append(_means(totals, units, _unit_draws(units, block, rng)))
        left -= block
    means = np.concatenate(parts)
    found = means.mean(1) + _own_share(means, whole) * student(whole, resamples, seed)
    _, sizes = np.unique(units.strata, return_counts=True)
    return Draws(float(whole.mean()), tuple(map(float, whole)), found, int(sizes.min()))


def paired(first: np.ndarray, second: np.ndarray, units: Units, **options: int) -> Draws:
    """`first` minus `second` by seed and unit; a method of one seed is compared with every seed of the other."""
    a, b = np.atleast_2d(np.asarray(first, float)), np.atleast_2d(np.asarray(second, float))
    if len(a) != len(b) and 1 not in (len(a), len(b)):
        raise ValueError(f"{len(a)} and {len(b)} seeds cannot be paired")
    return resample(a - b, units, **options)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (1979, "A simple sequentially rejective multiple test procedure")."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted
