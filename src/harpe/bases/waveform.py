"""The attention waveform of a RoPE base: how much two tokens attend to each other, as a function of the distance
between them.

A_b(m) = (2 / sqrt(d)) * sum over i = 0 .. d/2 - 1 of cos(m b^(-2i/d))

is the score of a query and a key of all ones at distance m, with d rotary dimensions (Chen et al. 2024, "Fortify the
Shortest Stave in Attention", arXiv 2312.04455; used by HARPE, arXiv 2412.07171).

Shapes: N bases, D rotary dimensions, P = D/2 pairs, M positions, C coarse steps, F fine steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

FINE_STEPS = 256
"""Positions that share a coarse step: near sqrt(131072), where the two tables of cosines are smallest together."""


def frequencies(bases: Sequence[float] | NDArray[np.float64], head_dim: int) -> NDArray[np.float64]:
    """b^(-2i/d), i = 0 .. d/2 - 1, for every base: float64 [N, D/2], in radians a position."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
    return np.asarray(np.asarray(bases, dtype=np.float64)[:, None] ** -exponents)


def weighted_cosines(
    frequencies_NP: NDArray[np.float64],
    weights_NP: NDArray[np.float64],
    coarse_C: NDArray[np.float64],
    steps: int = FINE_STEPS,
) -> NDArray[np.float64]:
    """sum over pairs p of weight * cos(m * frequency) at m = c + f, for c in `coarse_C` and f = 0 .. steps - 1: float64
    [N, C, F].

    cos((c + f) t) = cos(c t) cos(f t) - sin(c t) sin(f t), so that the sum over the pairs is one matrix product of [C,
    D] and [D, F], and C + F cosines for each frequency take the place of C * F. It agrees with the plain formula to
    1e-10 up to position 131,072, where the rounding of one angle alone can be 1e-11.

    Memory is the result and, for one base at a time, the tables.
    """
    fine_F = np.arange(steps, dtype=np.float64)
    sums_NCF = np.empty((len(frequencies_NP), len(coarse_C), steps))
    for sums_CF, frequency, weight in zip(sums_NCF, frequencies_NP, weights_NP, strict=True):
        coarse_angle, fine_angle = coarse_C[:, None] * frequency, frequency[:, None] * fine_F
        coarse_CD = np.concatenate((np.cos(coarse_angle), np.sin(coarse_angle)), axis=1)
        fine_DF = np.concatenate((np.cos(fine_angle) * weight[:, None], -np.sin(fine_angle) * weight[:, None]), axis=0)
        np.matmul(coarse_CD, fine_DF, out=sums_CF)
    return sums_NCF


def attention_waveform(
    bases: Sequence[float] | NDArray[np.float64], head_dim: int, start: int, end: int
) -> NDArray[np.float64]:
    """A_b(m) for every base and every integer m = start .. end (both included): float64 [N, M].

    See `weighted_cosines` for how. Beside the result it holds the tables of one base (about 2 MB at 131,072 positions
    and 128 dimensions). Pass the bases in groups where the result of all of them would be too large.

    Parameters
    ----------
    bases
        Finite numbers above 1.
    head_dim
        Rotary dimensions of a head: even, at least 2.
    end
        At least `start`.
    """
    positions = end - start + 1
    coarse_C = start + FINE_STEPS * np.arange(-(-positions // FINE_STEPS), dtype=np.float64)
    frequencies_NP = frequencies(bases, head_dim)
    weights_NP = np.full_like(frequencies_NP, 2 / np.sqrt(head_dim))
    return weighted_cosines(frequencies_NP, weights_NP, coarse_C).reshape(len(frequencies_NP), -1)[:, :positions]
