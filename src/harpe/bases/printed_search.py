"""Algorithm 1 of HARPE (arXiv 2412.07171) as it is printed: the candidate with the smallest sum of distances.

It does not give the published bases (Table 2); `harpe.bases.published_search` does. It is here so that the difference
can be seen. A sum over all pairs grows with the number of pairs: what decides is not where extrema meet but how few a
candidate has (at 128k the first sums and the numbers of extrema correlate with 0.995), and low bases have fewest.

What the paper leaves open is read as follows: f_p and f_v are all strict local maxima and minima of the waveform at the
positions `START` .. length; P_s and V_s are sets; a base is not chosen twice; ties go to the lowest base. Distances are
whole numbers, and sums of them are exact, so that the result is the same on every machine.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from harpe.bases.published_search import GROUP_SAMPLES, START, BaseSearch, candidate_bases, check_choice, check_length
from harpe.bases.waveform import attention_waveform


def summed_distances(selected_M: NDArray[np.bool_]) -> NDArray[np.int64]:
    """sum over selected positions p of |m - p| for every m: int64 [M]."""
    indices = np.arange(len(selected_M), dtype=np.int64)
    count, total = np.cumsum(selected_M, dtype=np.int64), np.cumsum(np.where(selected_M, indices, 0))
    return np.asarray(indices * count - total + (total[-1] - total) - indices * (count[-1] - count))


def all_extrema(
    candidates: NDArray[np.float64], head_dim: int, length: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Strict local maxima, and minima, of the waveforms at the positions `START` .. length: bool [N, M] each."""
    positions = length - START + 1
    peaks, valleys = (np.zeros((len(candidates), positions), dtype=np.bool_) for _ in range(2))
    group = max(1, GROUP_SAMPLES // positions)
    for first in range(0, len(candidates), group):
        waveforms = attention_waveform(candidates[first : first + group], head_dim, START, length)
        left, middle, right = waveforms[:, :-2], waveforms[:, 1:-1], waveforms[:, 2:]
        peaks[first : first + group, 1:-1] = (middle > left) & (middle > right)
        valleys[first : first + group, 1:-1] = (middle < left) & (middle < right)
    return peaks, valleys


def printed_base_search(heads: int, head_dim: int, length: int, low: float, high: float, stride: float) -> BaseSearch:
    """Choose a base for every head by the printed Algorithm 1; `cover` of the result is empty.

    Parameters
    ----------
    head_dim
        Rotary dimensions of a head.
    length
        Last position of the waveform.
    low, high, stride
        Candidates are low + i stride; `low` is always chosen.

    Raises
    ------
    HarpeError
        On an impossible argument; the message names the option.
    """
    check_choice(heads, head_dim, low, high)
    check_length(length)
    candidates = candidate_bases(heads, low, high, stride)
    peaks, valleys = all_extrema(candidates, head_dim, length)
    picked = [0]
    selected_peaks, selected_valleys = peaks[0].copy(), valleys[0].copy()
    while len(picked) < heads:
        to_peaks, to_valleys = summed_distances(selected_peaks), summed_distances(selected_valleys)
        sums = [int(to_valleys[p].sum()) + int(to_peaks[v].sum()) for p, v in zip(peaks, valleys, strict=True)]
        best = min(
            (index for index in range(len(candidates)) if index not in picked), key=lambda index: (sums[index], index)
        )
        picked.append(best)
        selected_peaks |= peaks[best]
        selected_valleys |= valleys[best]
    order = tuple(float(candidates[index]) for index in picked)
    return BaseSearch(bases=tuple(sorted(order)), order=order, cover=())
