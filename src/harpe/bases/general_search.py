"""The peak-valley search for any geometry: deterministic, and without a constant to tune.

The idea is the published one (HARPE, arXiv 2412.07171, after Chen et al. 2024, arXiv 2312.04455): the next base should
have peaks where those already chosen have valleys. Three things differ from the published rule, whose constants belong
to head size 128 and 128k:

* All of a waveform counts, not its 30 highest peaks: a base covers the positions at which its ripple is above zero
  (`harpe.bases.complementarity`). What the search improves is thereby what is measured.
* The range is divided into as many parts as there are heads, equal on a logarithmic scale, and every part gives one
  base: bases are distinct and span the range, whatever the waveforms are.
* After every part has its base, bases are exchanged within their parts until no exchange helps.

A set is better when fewer positions are uncovered; among equals, when fewer are covered by one base alone; then by two,
and so on. So a set whose cover is complete is still improved. Between equal sets the lower base wins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from harpe.bases.complementarity import Cover, sampled_cover
from harpe.errors import HarpeError

PART_CANDIDATES = 8
"""Candidates for each head where no stride is given: a choice of eight in each part."""
LEAST_CANDIDATES, MOST_CANDIDATES = 128, 1024
"""Candidates in all, for few and for many heads; beyond 512 heads there are two for each."""
MOST_HEADS = 2048
"""More would need more memory than 1 GB, and have complete cover anyhow."""
SWEEPS = 16
"""Most rounds of exchange. Every exchange improves the set, so the rounds end by themselves; two to six were seen."""


@dataclass(frozen=True)
class GeneralSearch:
    """Bases found by `general_base_search`."""

    bases: tuple[float, ...]
    """Ascending, one of each part of the range."""
    sweeps: int
    """Rounds of exchange until nothing changed."""


def general_candidates(heads: int, low: float, high: float, stride: float | None = None) -> NDArray[np.float64]:
    """low, low + stride ... up to `high`; without a stride, evenly spaced on a logarithmic scale with both ends."""
    if stride is not None:
        steps = math.floor((high - low) / stride + 1e-9)
        return np.asarray(np.minimum(low + stride * np.arange(steps + 1), high))
    count = max(min(PART_CANDIDATES * heads, MOST_CANDIDATES), LEAST_CANDIDATES, 2 * heads)
    return np.unique(np.clip(np.geomspace(low, high, count), low, high))


def _best(cover: Cover, counts: NDArray[np.int16]) -> int:
    """The candidate to add to a set that covers each position `counts` times: the fewest uncovered positions, then
    those covered once …"""
    left, gained_below = np.arange(len(cover)), np.zeros(len(cover), dtype=np.int64)
    for level in range(int(counts.max(initial=0)) + 1):
        here = counts == level
        gained = np.array([np.count_nonzero(cover[index] & here) for index in left])
        remain = gained_below[left] - gained  # up to the positions of this level, which are the same for all
        gained_below[left] = gained
        left = left[remain == remain.min()]
        if len(left) == 1:
            break
    return int(left[0])


def general_base_search(
    heads: int, head_dim: int, length: int, candidates: Sequence[float] | NDArray[np.float64]
) -> GeneralSearch:
    """Choose a base for every head from `candidates`, whose order does not matter.

    Cost grows with candidates times positions, whose product is bounded (`sample_starts`): some seconds for 128 heads
    of 256 dimensions at 10M, in less than 500 MB.

    Raises HarpeError when there are fewer candidates than heads, or the length is too short.
    """
    if heads > MOST_HEADS:
        raise HarpeError(
            f"{heads} bases are more than the general rule chooses ({MOST_HEADS}); so many cover everything however "
            "they are spaced. Use --strategy log-uniform."
        )
    sorted_candidates = np.unique(np.asarray(candidates, dtype=np.float64))
    if len(sorted_candidates) < heads:
        raise HarpeError(
            f"Between --min and --max are {len(sorted_candidates)} candidate bases, fewer than the {heads} that "
            "--heads asks for. Widen the range, or lower --stride."
        )
    cover = sampled_cover(sorted_candidates, head_dim, length)
    edges = np.linspace(0, len(sorted_candidates), heads + 1).astype(int)
    # slices, so that a part is a view and no copy
    parts = [slice(first, last) for first, last in pairwise(edges.tolist())]
    counts = np.zeros(cover.shape[1], dtype=np.int16)
    picked = np.empty(heads, dtype=np.int64)
    for head, part in enumerate(parts):
        picked[head] = part.start + _best(cover[part], counts)
        counts += cover[picked[head]]
    sweeps, changed = 0, True
    while changed and sweeps < SWEEPS:
        changed, sweeps = False, sweeps + 1
        for head, part in enumerate(parts):
            counts -= cover[picked[head]]
            now = part.start + _best(cover[part], counts)
            changed |= bool(now != picked[head])
            picked[head] = now
            counts += cover[now]
    return GeneralSearch(tuple(map(float, sorted_candidates[picked])), sweeps)
