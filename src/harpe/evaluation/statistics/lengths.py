"""How long a context a model uses: effective length and length score, with the bootstrap through their samples.

The effective length is NoLiMa's (Modarressi et al. 2025, arXiv 2502.05167): the longest length at which the score is at
least 85 % of the base score, the best score at a short length. It is one of the lengths that were asked, and a length
counts also where a shorter one falls below. The length score is the mean of the score over the logarithm of the length:
the area under the straight lines between the lengths asked, over the width, so that every doubling counts the same.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from harpe.evaluation.statistics.resampling import RESAMPLES, student

KEPT = 0.85
"""Of the base score, at the effective length."""
ROUNDING = 1e-9
CHUNK = 2_000_000
"""Numbers in one block of draws."""


@dataclass(frozen=True)
class Asked:
    """The samples of one task at one length, and what every model scored."""

    length: int
    """In tokens."""
    scores: np.ndarray
    """0..1: float64 [models, samples]."""
    draw: Hashable
    """Tasks and lengths with the same name hold the same samples, and are drawn together."""


def base_score(scores: np.ndarray, lengths: Sequence[int], trained: int) -> np.ndarray:
    """The highest score at the lengths up to `trained`: [...] for scores [..., lengths]; nan where no length is."""
    short = [i for i, length in enumerate(lengths) if length <= trained]
    return scores[..., short].max(-1) if short else np.full(scores.shape[:-1], np.nan)


def effective_length(scores: np.ndarray, lengths: Sequence[int], base: np.ndarray | float) -> np.ndarray:
    """The longest of `lengths` with at least 85 % of `base`, in tokens: int64 [...] for scores [..., lengths].

    0 where no length has that, and where the base score is 0: of nothing nothing is kept.
    """
    floor = np.asarray(base, float)[..., None]
    passed = (scores >= KEPT * floor - ROUNDING) & (floor > 0)
    return np.where(passed, np.asarray(lengths, np.int64), 0).max(-1)


def length_score(scores: np.ndarray, lengths: Sequence[int]) -> np.ndarray:
    """Area under the score by log2 of the length, over the width: [...] for scores [..., lengths], in their unit.

    Raises ValueError for fewer than two lengths, or lengths that do not ascend.
    """
    at = np.log2(np.asarray(lengths, float))
    steps = np.diff(at)
    if len(steps) < 1 or (steps <= 0).any():
        raise ValueError(f"the lengths are {list(lengths)}; an area needs two that ascend")
    return ((scores[..., 1:] + scores[..., :-1]) / 2 * steps).sum(-1) / steps.sum()


@dataclass(frozen=True)
class ByLength:
    """Scores by length of all models."""

    lengths: tuple[int, ...]
    """In tokens, ascending."""
    scores: np.ndarray
    """As they were measured, the mean over tasks: float64 [models, lengths]."""
    resampled: np.ndarray
    """Of the same models under the same draws of samples: float64 [resamples, models, lengths]."""
    seed: int = 0

    def over_seeds(self, models: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """The mean over models that differ by their training seed: [lengths], and [resamples, lengths].

        Where there are three seeds or more, the spread holds theirs, drawn alike for all methods with that many.
        """
        picked, whole = self.resampled[:, list(models)], self.scores[list(models)]
        return whole.mean(0), np.clip(picked.mean(1) + student(whole, len(picked), self.seed), 0.0, 1.0)


def resample_lengths(asked: Sequence[Asked], *, resamples: int = RESAMPLES, seed: int = 0) -> ByLength:
    """Scores by length, and what they are under draws of samples with replacement, within each task and length.

    All models see the same draws. Of several tasks at a length the mean is taken, each with the same weight.
    """
    lengths = tuple(sorted({each.length for each in asked}))
    tasks = [sum(each.length == length for each in asked) for length in lengths]
    models = len(asked[0].scores)
    scores, found = np.zeros((models, len(lengths))), np.zeros((resamples, models, len(lengths)))
    for number, draw in enumerate(dict.fromkeys(each.draw for each in asked)):
        those = [each for each in asked if each.draw == draw]
        samples, rng = those[0].scores.shape[1], np.random.default_rng([seed, number])
        for each in those:
            at = lengths.index(each.length)
            scores[:, at] += each.scores.mean(1) / tasks[at]
        for start in range(0, resamples, block := max(1, CHUNK // samples)):
            rows = slice(start, min(start + block, resamples))
            counts = rng.multinomial(samples, np.full(samples, 1 / samples), size=rows.stop - rows.start)
            for each in those:
                at = lengths.index(each.length)
                found[rows, :, at] += counts @ each.scores.T / samples / tasks[at]
    return ByLength(lengths, scores, found, seed)
