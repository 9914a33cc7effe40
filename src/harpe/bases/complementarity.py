"""How well the waveforms of a set of bases complement each other: valleys of one under peaks of another.

What repeats from position to position in an attention waveform is a ripple: its neighbouring peaks are about one turn
of the fastest pair (2 pi positions) apart whatever the base, and a base decides where they fall. The ripple of a base
is its waveform less the moving mean of the waveform over that one period, scaled to unit root mean square (RMS). The
mean of cos(m t) over one turn around m is cos(m t) sin(pi t) / (pi t), so that the ripple has a closed form:

    A~_b(m) = sum_i w_i cos(m b^(-2i/d)) / sqrt(sum_i w_i^2 / 2),   w_i = 1 - sin(pi t_i) / (pi t_i),   t_i = b^(-2i/d)

A position is covered by a base that has a peak there (A~_b(m) > 0), and by a set when the largest ripple of the set is
above zero. Complementarity C(B) is the share of covered positions in [m0, T]; beside it stands the longest stretch
without cover. Scaling changes neither, as it changes no sign.

With the mean over longer windows, C is 1 for any set of a dozen bases (at d = 128 and 131,072 positions, windows of 13
and more), and would tell no sets apart.

Shapes: N bases, M positions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harpe.bases.waveform import FINE_STEPS, frequencies, weighted_cosines
from harpe.errors import HarpeError

PUBLISHED_START, PUBLISHED_LENGTH = 1000, 131_072
"""Where the published search begins, and its length."""
MINIMUM_LENGTH = 64
"""Shortest length that is measured: about ten periods of the ripple."""
SAMPLE_BYTES, LEAST_SAMPLE, MOST_SAMPLE = 2**27, 2**17, 2**20
"""A sample has this many positions times bases, and at least and at most so many positions. Shorter ranges are read
whole."""
STRETCH = 64
"""Neighbouring positions of a sample: about ten periods of the ripple. More stretches see more of the slow beat between
two bases."""
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
            f"--length is {length}; the waveforms of bases are compared over at least {MINIMUM_LENGTH} positions, ten "
            "periods of their fastest pair. Choose a longer --length, or --strategy uniform or log-uniform."
        )
    return max(1, round(length * PUBLISHED_START / PUBLISHED_LENGTH))


def ripple_weights(frequencies_NP: NDArray[np.float64]) -> NDArray[np.float64]:
    """w_i / sqrt(sum w^2 / 2) of every pair: float64 [N, P]."""
    weights = 1 - np.sinc(frequencies_NP)  # numpy's sinc(t) is sin(pi t) / (pi t)
    return np.asarray(weights / np.sqrt((weights**2).sum(axis=1, keepdims=True) / 2))


def ripples(
    bases: Sequence[float] | NDArray[np.float64], head_dim: int, starts: NDArray[np.float64], steps: int = FINE_STEPS
) -> NDArray[np.float64]:
    """A~_b at the `steps` positions from each of `starts` on: float64 [N, len(starts) * steps]."""
    frequencies_NP = frequencies(bases, head_dim)
    return weighted_cosines(frequencies_NP, ripple_weights(frequencies_NP), starts, steps).reshape(
        len(frequencies_NP), -1
    )


def sample_size(bases: int) -> int:
    """Most positions that are read to compare so many bases."""
    return min(max(SAMPLE_BYTES // bases, LEAST_SAMPLE), MOST_SAMPLE)


def sample_starts(start: int, length: int, most: int) -> tuple[NDArray[np.float64], int]:
    """First positions of stretches that stand for [start, length], and how many positions a stretch has.

    All of it where that is at most `most` positions; else that many in stretches spread evenly, each moved within its
    share by multiples of the golden ratio, so that their spacing is no period of any pair.
    """
    positions = length - start + 1
    if positions <= most:
        return start + FINE_STEPS * np.arange(math.ceil(positions / FINE_STEPS), dtype=np.float64), FINE_STEPS
    count = most // STRETCH
    share = (positions - STRETCH) / count
    moved = (np.arange(count) * (math.sqrt(5) - 1) / 2) % 1
    return np.asarray(start + np.floor((np.arange(count) + moved) * share)), STRETCH


def sampled_cover(bases: Sequence[float] | NDArray[np.float64], head_dim: int, length: int) -> Cover:
    """Where each base covers, over a sample of [m0, length] (`sample_starts`): bool [N, M]."""
    start, values = first_position(length), np.asarray(bases, dtype=np.float64)
    starts, steps = sample_starts(start, length, sample_size(len(values)))
    kept = min(length - start + 1, len(starts) * steps)
    cover = np.empty((len(values), kept), dtype=np.bool_)
    group = max(1, BLOCK_SAMPLES // (len(starts) * steps))
    for first in range(0, len(values), group):
        cover[first : first + group] = ripples(values[first : first + group], head_dim, starts, steps)[:, :kept] > 0
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
    """C(B) and the longest stretch without cover, over every position of [m0, length]. Memory does not grow with the
    length.

    Raises HarpeError when the length is too short for a waveform.
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


def random_sets(
    heads: int, head_dim: int, length: int, low: float, high: float, count: int = 1000, seed: int = 0
) -> NDArray[np.float64]:
    """C of `count` random sets of bases, drawn from a pool of bases that are uniform in [low, high]: float64 [count],
    ascending.

    The pool has as many bases as the general rule has candidates, and both are measured on the same sample (every
    position, up to 131,072 at least). A set takes different members.
    """
    random = np.random.default_rng(seed)
    cover = sampled_cover(random.uniform(low, high, max(128, 8 * heads)), head_dim, length)
    positions, packed = cover.shape[1], np.packbits(cover, axis=1)
    found = []
    for _ in range(count):
        together = np.bitwise_or.reduce(packed[random.choice(len(packed), heads, replace=False)], axis=0)
        found.append(int(np.bitwise_count(together).sum()) / positions)
    return np.sort(np.array(found))
