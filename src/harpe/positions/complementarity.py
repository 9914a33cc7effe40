"""How well the waveforms of a set of bases complement each other: valleys of one under peaks of another.

What repeats from position to position in an attention waveform is a ripple: its neighbouring peaks are about one turn of the fastest
pair (2 pi positions) apart whatever the base, and a base decides where they fall. The ripple of a base is its waveform less the moving
mean of the waveform over that one period, scaled to unit root mean square (RMS). The mean of cos(m t) over one turn around m is
cos(m t) sin(pi t) / (pi t), so that the ripple has a closed form:

    A~_b(m) = sum_i w_i cos(m b^(-2i/d)) / sqrt(sum_i w_i^2 / 2),   w_i = 1 - sin(pi t_i) / (pi t_i),   t_i = b^(-2i/d)

A position is covered by a base that has a peak there (A~_b(m) > 0), and by a set when the largest ripple of the set is above zero.
Complementarity C(B) is the share of covered positions in [m0, T]; beside it stands the longest stretch without cover. Scaling changes
neither, as it changes no sign.

With the mean over longer windows, C is 1 for any set of a dozen bases (at d = 128 and 131,072 positions, windows of 13 and more), and
would tell no sets apart.

Shapes: N bases, M positions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harpe.errors import HarpeError
from harpe.positions.waveform import FINE_STEPS, frequencies, weighted_cosines

PUBLISHED_START, PUBLISHED_LENGTH = 1000, 131_072
"""Where the published search begins, and its length."""
MINIMUM_LENGTH = 64
"""Shortest length that is measured: about ten periods of the ripple."""
DENSE_POSITIONS = 2**17
"""Up to this many positions, a sample is every position; of longer ranges it is about this many."""
BLOCK_SAMPLES = 2**23
"""Samples of ripples in memory at a time (64 MiB)."""

Cover = NDArray[np.bool_]
"""Where a base covers: [N, M]."""


@dataclass(frozen=True)
class Complementarity:
    """How well a set covers the positions from `start` to `length`."""

    covered: float
    """C(B): share of positions at which the largest ripple of the set is above zero."""
    longest_uncovered: int
    """Longest run of positions at which it is not."""
    start: int
    length: int

    def as_dict(self) -> dict[str, float | int]:
        return dict(vars(self))


def first_position(length: int) -> int:
    """m0: the start of the published waveform (1000 of 131,072), scaled to the length."""
    if length < MINIMUM_LENGTH:
        raise HarpeError(
            f"--length is {length}; the waveforms of bases are compared over at least {MINIMUM_LENGTH} positions, ten periods of their "
            "fastest pair. Choose a longer --length, or --strategy uniform or log-uniform."
        )
    return max(1, round(length * PUBLISHED_START / PUBLISHED_LENGTH))


def ripple_weights(frequencies_NP: NDArray[np.float64]) -> NDArray[np.float64]:
    """w_i / sqrt(sum w^2 / 2) of every pair: float64 [N, P]."""
    weights = 1 - np.sinc(frequencies_NP)  # numpy's sinc(t) is sin(pi t) / (pi t)
    return np.asarray(weights / np.sqrt((weights**2).sum(axis=1, keepdims=True) / 2))


def ripples(bases: Sequence[float] | NDArray[np.float64], head_dim: int, starts: NDArray[np.float64]) -> NDArray[np.float64]:
    """A~_b at the `FINE_STEPS` positions from each of `starts` on: float64 [N, len(starts) * FINE_STEPS]."""
    frequencies_NP = frequencies(bases, head_dim)
    return weighted_cosines(frequencies_NP, ripple_weights(frequencies_NP), starts).reshape(len(frequencies_NP), -1)


def sample_starts(start: int, length: int) -> NDArray[np.float64]:
    """First positions of stretches of `FINE_STEPS` that stand for [start, length].

    All of it where that is at most `DENSE_POSITIONS`; else that many positions in stretches spread evenly, each moved within its share
    by multiples of the golden ratio, so that their spacing is no period of any pair.
    """
    positions = length - start + 1
    if positions <= DENSE_POSITIONS:
        return start + FINE_STEPS * np.arange(math.ceil(positions / FINE_STEPS), dtype=np.float64)
    count = DENSE_POSITIONS // FINE_STEPS
    share = (positions - FINE_STEPS) / count
    moved = (np.arange(count) * (math.sqrt(5) - 1) / 2) % 1
    return np.asarray(start + np.floor((np.arange(count) + moved) * share))


def sampled_cover(bases: Sequence[float] | NDArray[np.float64], head_dim: int, length: int) -> Cover:
    """Where each base covers, over a sample of [m0, length] (`sample_starts`): bool [N, M], for N bases of one range."""
    start = first_position(length)
    starts = sample_starts(start, length)
    kept = min(length - start + 1, len(starts) * FINE_STEPS)
    values = np.asarray(bases, dtype=np.float64)
    cover = np.empty((len(values), kept), dtype=np.bool_)
    group = max(1, BLOCK_SAMPLES // (len(starts) * FINE_STEPS))
    for first in range(0, len(values), group):
        cover[first : first + group] = ripples(values[first : first + group], head_dim, starts)[:, :kept] > 0
    return cover


def _covered_blocks(bases: Sequence[float], head_dim: int, start: int, length: int) -> Iterator[NDArray[np.bool_]]:
    """Whether the set covers each position of [start, length], block by block."""
    coarse = max(1, BLOCK_SAMPLES // (FINE_STEPS * 8))  # one base at a time, and at most 1 MiB samples of it
    for first in range(start, length + 1, coarse * FINE_STEPS):
        last = min(first + coarse * FINE_STEPS, length + 1)
        starts = first + FINE_STEPS * np.arange(math.ceil((last - first) / FINE_STEPS), dtype=np.float64)
        covered = np.zeros(last - first, dtype=np.bool_)
        for base in bases:
            covered |= ripples([base], head_dim, starts)[0, : last - first] > 0
        yield covered


def complementarity(bases: Sequence[float], head_dim: int, length: int) -> Complementarity:
    """C(B) and the longest stretch without cover, over every position of [m0, length]. Memory does not grow with the length.

    Raises
    ------
    HarpeError
        When the length is too short for a waveform.
    """
    start = first_position(length)
    distinct = sorted(set(bases))
    hits, longest, run = 0, 0, 0
    for covered in _covered_blocks(distinct, head_dim, start, length):
        hits += int(covered.sum())
        edges = np.flatnonzero(np.diff(np.concatenate(([False], ~covered, [False])).astype(np.int8)))
        starts, ends = edges[::2], edges[1::2]
        if len(starts) == 0:
            run = 0
            continue
        lengths = ends - starts
        lengths[0] += run if starts[0] == 0 else 0
        longest = max(longest, int(lengths.max()))
        run = int(lengths[-1]) if ends[-1] == len(covered) else 0
    return Complementarity(hits / (length - start + 1), longest, start, length)


def random_sets(heads: int, head_dim: int, length: int, low: float, high: float, count: int = 1000, seed: int = 0) -> NDArray[np.float64]:
    """C of `count` random sets of bases, drawn from a pool of bases that are uniform in [low, high]: float64 [count], ascending.

    The pool has 1024 bases or 8 for every head; a set takes different ones. Beyond `DENSE_POSITIONS` C is that of the sample.
    """
    random = np.random.default_rng(seed)
    pool = np.sort(random.uniform(low, high, max(1024, 8 * heads)))
    cover = np.packbits(sampled_cover(pool, head_dim, length), axis=1)
    positions = min(length - first_position(length) + 1, DENSE_POSITIONS)
    found = []
    for _ in range(count):
        together = np.bitwise_or.reduce(cover[random.choice(len(pool), heads, replace=False)], axis=0)
        found.append(int(np.bitwise_count(together).sum()) / positions)
    return np.sort(np.array(found))
