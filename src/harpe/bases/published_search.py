"""The peak-valley search that produced the published bases, constants and all.

HARPE (Lian et al. 2024, arXiv 2412.07171) picks its bases so that the valleys of one base's attention waveform lie on
peaks of others, an idea of Chen et al. 2024 ("Fortify the Shortest Stave in Attention", arXiv 2312.04455). Its
Algorithm 1, as printed, takes the candidate with the smallest sum of distances; no literal reading of that gives the
bases of its Table 2. The selection rule of the earlier work's program does, 32 of 32, and is what this module
implements: dominant peaks and valleys (`find_peaks`, `find_valleys`), then a greedy choice of the candidate that covers
most of those already selected (`select_by_cover`).

The constants below are absolute and tuned to head size 128 and 128k (131,072 tokens): 29 extrema in place of 30 already
lose 3 of the 32 bases. They do not carry over to other head sizes, lengths or numbers of heads.

In comments, p is a peak, v a valley; positions are indices into a waveform, whose first sample is position `START`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harpe.bases.waveform import attention_waveform
from harpe.errors import HarpeError

START = 1000
"""First position of the waveform. 0, 500, 900, 1024 and 1100 give other bases."""
EXTREMA = 30
"""Most peaks, and most valleys, that are kept of a waveform."""
TOLERANCE = 1e-3
"""A local extremum whose value is this near to the target of the walk is a hit."""
PEAK_SEPARATION = 50
"""A hit is kept as a peak when it lies more than this past the last one kept. The next window starts at most this far
on."""
VALLEY_SEPARATION = 60
"""A hit is kept as a valley when it lies more than this before the last one kept."""
WINDOW = 500
"""Samples among which the next target of the walk over peaks is looked for."""
BACK = 50
"""The next target of the walk over valleys is looked for among the samples more than this before the valley just
visited."""
COVER_RADIUS = 3
"""A peak and a valley at most this many positions apart cover each other."""

MINIMUM_LENGTH = START + WINDOW
"""Shortest length that is accepted: one whole window, in which the fastest pair of every waveform turns 80 times."""
MAXIMUM_CANDIDATES = 100_000
"""More than this is taken for a mistake in --stride: at 131,072 positions it would run for ten minutes or longer."""
GROUP_SAMPLES = 2**21
"""Samples of waveforms in memory at a time (16 MiB)."""

Positions = NDArray[np.intp]


@dataclass(frozen=True)
class BaseSearch:
    """Bases found by `published_base_search`."""

    bases: tuple[float, ...]
    """In ascending order, which is how the published model gives them to its heads."""
    order: tuple[float, ...]
    """In the order in which they were picked."""
    cover: tuple[int, ...]
    """Cover of each base when it was picked, beside `order`. The first is the seed, which covers nothing yet: 0."""


def _first_hit(values: NDArray[np.float64], target: float, first: int) -> int | None:
    """Index of the first value from `first` on that is within the tolerance of `target`."""
    # The hit is nearly always near, so look in blocks that grow instead of at everything that is left.
    block = 256
    while first < len(values):
        near = np.abs(values[first : first + block] - target) <= TOLERANCE
        offset = int(near.argmax())
        if near[offset]:
            return first + offset
        first += block
        block *= 4
    return None


def find_peaks(waveform: NDArray[np.float64]) -> Positions:
    """Positions of the dominant peaks, ascending: at most `EXTREMA` of the strict local maxima.

    The walk goes right. Its first target is the value of the highest local maximum; having hit p, the next target is
    the largest of the `WINDOW` samples from p + `PEAK_SEPARATION` or the next local maximum, whichever comes first. It
    ends early when no local maximum to the right comes near the target.
    """
    maxima = np.flatnonzero((waveform[1:-1] > waveform[:-2]) & (waveform[1:-1] > waveform[2:])) + 1
    values = waveform[maxima]
    kept: list[int] = []
    target, first = values.max(initial=-np.inf), 0
    while len(kept) < EXTREMA:
        hit = _first_hit(values, target, first)
        if hit is None:
            break
        peak = int(maxima[hit])
        if not kept or peak - kept[-1] > PEAK_SEPARATION:
            kept.append(peak)
        first = hit + 1
        if first == len(maxima):
            break
        window = min(peak + PEAK_SEPARATION, int(maxima[first]))
        target = waveform[window : window + WINDOW].max()
    return np.array(kept, dtype=np.intp)


def find_valleys(waveform: NDArray[np.float64]) -> Positions:
    """Positions of the dominant valleys, ascending: at most `EXTREMA` of the strict local minima.

    The walk goes left from the end. Its first target is the value of the lowest local minimum; having hit v, the next
    target is the smallest of all samples before v - `BACK` or before the previous local minimum, whichever comes first
    in the waveform. It ends early when no local minimum to the left comes near the target.
    """
    minima = np.flatnonzero((waveform[1:-1] < waveform[:-2]) & (waveform[1:-1] < waveform[2:])) + 1
    minima = minima[::-1]  # in the order of the walk
    values = waveform[minima]
    kept: list[int] = []
    target, first = values.min(initial=np.inf), 0
    while len(kept) < EXTREMA:
        hit = _first_hit(values, target, first)
        if hit is None:
            break
        valley = int(minima[hit])
        if not kept or kept[-1] - valley > VALLEY_SEPARATION:
            kept.append(valley)
        first = hit + 1
        if first == len(minima):
            break
        end = min(valley - BACK, int(minima[first]))
        if end <= 0:
            break
        target = waveform[:end].min()
    return np.array(kept[::-1], dtype=np.intp)


def select_by_cover(
    peaks: Sequence[Positions], valleys: Sequence[Positions], count: int
) -> tuple[list[int], list[int]]:
    """Pick `count` candidates, starting from candidate 0: their indices, and the cover that each had when it was
    picked.

    The cover of a candidate is the number of pairs (its peak, a selected valley) and (a selected peak, its valley) that
    are at most `COVER_RADIUS` positions apart. The largest cover wins; among equals the smallest sum of squared
    distances over the pairs, then the lowest index. The extrema of a pick join the selected ones, and may be there more
    than once; a position that is then both a selected peak and a selected valley is dropped from both.

    Parameters
    ----------
    peaks, valleys
        Positions for every candidate.
    count
        At most the number of candidates.

    Raises
    ------
    HarpeError
        When no candidate that is left has any cover: the rule is not defined there.
    """
    candidates = len(peaks)
    # All extrema in one row, with the candidate each belongs to. Shifted, so that p - COVER_RADIUS is a valid index
    # too.
    all_peaks, all_valleys = np.concatenate(peaks) + COVER_RADIUS, np.concatenate(valleys) + COVER_RADIUS
    peak_owner = np.repeat(np.arange(candidates), [len(own) for own in peaks])
    valley_owner = np.repeat(np.arange(candidates), [len(own) for own in valleys])
    positions = max(all_peaks.max(initial=0), all_valleys.max(initial=0)) + COVER_RADIUS + 1
    # How many selected peaks and valleys lie at each position.
    selected_peaks, selected_valleys = np.zeros(positions, dtype=np.int64), np.zeros(positions, dtype=np.int64)

    picked, covers = [0], [0]
    while len(picked) < count:
        # The extrema of one candidate are distinct positions, so a plain indexed addition counts each of them.
        selected_peaks[peaks[picked[-1]] + COVER_RADIUS] += 1
        selected_valleys[valleys[picked[-1]] + COVER_RADIUS] += 1
        both = (selected_peaks > 0) & (selected_valleys > 0)
        selected_peaks[both] = selected_valleys[both] = 0

        cover, squares = np.zeros(candidates, dtype=np.int64), np.zeros(candidates, dtype=np.int64)
        for offset in range(-COVER_RADIUS, COVER_RADIUS + 1):
            pairs = np.zeros(candidates, dtype=np.int64)
            np.add.at(pairs, peak_owner, selected_valleys[all_peaks + offset])
            np.add.at(pairs, valley_owner, selected_peaks[all_valleys + offset])
            cover += pairs
            squares += offset**2 * pairs
        cover[picked] = 0  # a base is never chosen twice
        largest = int(cover.max())
        if largest == 0:
            raise HarpeError(
                f"The peak-valley search has no cover after {len(picked)} of {count} bases: no candidate that is left "
                "has a peak on a selected valley or a valley on a selected peak, so the published rule cannot choose. "
                "Its constants belong to head size 128 and 131072 tokens. Use --rule general; or widen --min and "
                "--max, or lower --stride."
            )
        best = np.flatnonzero(cover == largest)
        picked.append(int(best[squares[best].argmin()]))
        covers.append(largest)
    return picked, covers


def check_choice(heads: int, head_dim: int, low: float, high: float) -> None:
    """Refuse what no strategy can choose bases for.

    Raises HarpeError when the number of heads is not positive, the head size is odd, or an end of the range is not a
    finite number above 1, or they are swapped.
    """
    if heads < 1:
        raise HarpeError(f"--heads is {heads}; there must be at least one key/value head.")
    if head_dim < 2 or head_dim % 2:
        raise HarpeError(f"--head-dim is {head_dim}; RoPE turns pairs, so it must be an even number of at least 2.")
    for option, value in (("--min", low), ("--max", high)):
        if not math.isfinite(value) or value <= 1:
            raise HarpeError(f"{option} is {value}; a RoPE base must be a finite number above 1.")
    if high < low:
        raise HarpeError(f"--min {low:g} is larger than --max {high:g}: the range is empty. Swap them.")


def check_stride(stride: float, low: float, high: float) -> None:
    """Refuse a distance between candidates that is none, or gives more of them than `MAXIMUM_CANDIDATES`."""
    if not math.isfinite(stride) or stride <= 0:
        raise HarpeError(f"--stride is {stride}; the distance between candidate bases must be a finite number above 0.")
    if (high - low) / stride >= MAXIMUM_CANDIDATES:
        raise HarpeError(
            f"--stride {stride:g} puts more than {MAXIMUM_CANDIDATES} candidates between --min {low:g} and --max "
            f"{high:g}. Raise --stride; the published search has 134 candidates."
        )


def candidate_bases(heads: int, low: float, high: float, stride: float) -> NDArray[np.float64]:
    """low, low + stride, ... up to and including high."""
    check_stride(stride, low, high)
    # a quotient that misses a whole number by a rounding error counts as that number
    count = math.floor((high - low) / stride + 1e-9) + 1
    if count < heads:
        raise HarpeError(
            f"--stride {stride:g} gives {count} candidates between --min {low:g} and --max {high:g}, fewer than the "
            f"{heads} bases that --heads asks for. Lower --stride, or widen --min and --max."
        )
    return np.minimum(low + stride * np.arange(count), high)


def check_length(length: int) -> None:
    """Refuse what has no waveform from `START` on."""
    if length < MINIMUM_LENGTH:
        raise HarpeError(
            f"--length is {length}; the published and the printed rule read the attention waveform from position "
            f"{START} on, in windows of {WINDOW}, so it must be at least {MINIMUM_LENGTH}. For shorter lengths use "
            "--rule general."
        )


def published_base_search(heads: int, head_dim: int, length: int, low: float, high: float, stride: float) -> BaseSearch:
    """Choose a base for every head by the rule that gives Table 2 of HARPE (arXiv 2412.07171).

    Table 2 is `published_base_search(32, 128, 131_072, 1e6, 5e6, 3e4)`; every length from 125,000 to 131,072 gives the
    same set. There is no randomness, and ties are broken as `select_by_cover` says. Unlike in the paper's Algorithm 1
    (where distances are summed), cover decides, after Chen et al. 2024 (arXiv 2312.04455).

    The constants are tuned to head size 128 and 128k, and other settings run without any promise that the result is
    good.

    Parameters
    ----------
    head_dim
        Rotary dimensions of a head.
    length
        Last position of the waveform.
    low, high, stride
        Candidates are low + i stride, i = 0, 1, ... up to `high`; `low` is always chosen.

    Raises
    ------
    HarpeError
        On an impossible argument, and when no candidate covers anything; the message names the option.
    """
    check_choice(heads, head_dim, low, high)
    check_length(length)
    candidates = candidate_bases(heads, low, high, stride)

    peaks: list[Positions] = []
    valleys: list[Positions] = []
    group = max(1, GROUP_SAMPLES // (length - START + 1))
    for first in range(0, len(candidates), group):
        for waveform in attention_waveform(candidates[first : first + group], head_dim, START, length):
            peaks.append(find_peaks(waveform))
            valleys.append(find_valleys(waveform))

    picked, cover = select_by_cover(peaks, valleys, heads)
    order = tuple(float(candidates[index]) for index in picked)
    return BaseSearch(bases=tuple(sorted(order)), order=order, cover=tuple(cover))
