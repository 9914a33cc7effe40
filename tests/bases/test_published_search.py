"""The published search against Table 2 of HARPE (arXiv 2412.07171), and against the rule in plain loops."""

from __future__ import annotations

import dataclasses
import math
import re
import tracemalloc
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from harpe.bases import published_search
from harpe.bases.published_search import BaseSearch, find_peaks, find_valleys, published_base_search, select_by_cover
from harpe.errors import HarpeError

# fmt: off
TABLE_2 = (
    1.00, 1.15, 1.30, 1.45, 2.17, 2.20, 2.23, 2.47, 2.50, 2.65, 2.68, 2.71, 2.74, 2.80, 2.83, 2.92,
    3.01, 3.04, 3.10, 3.13, 3.16, 3.22, 3.43, 3.46, 3.61, 3.88, 4.09, 4.15, 4.39, 4.45, 4.51, 4.54,
)
"""The bases printed in the paper, in millions."""
ORDER = (
    1.00, 3.88, 1.30, 1.45, 1.15, 4.54, 3.46, 4.15, 2.47, 2.17, 3.13, 4.51, 2.50, 3.04, 3.10, 2.20,
    2.65, 3.43, 2.83, 2.74, 2.23, 3.16, 2.68, 4.45, 2.92, 3.22, 3.01, 2.80, 3.61, 2.71, 4.09, 4.39,
)
"""The order in which an independent implementation of the rule picks them (not printed in the paper)."""
# fmt: on


def search_table_2(length: int) -> BaseSearch:
    return published_base_search(heads=32, head_dim=128, length=length, low=1e6, high=5e6, stride=3e4)


@pytest.fixture(scope="module")
def published() -> BaseSearch:
    return search_table_2(131_072)


# The rule once more, in plain Python lists and loops. It shares no code with the library, constants included.


def naive_waveform(base: float, head_dim: int, length: int) -> list[float]:
    frequencies = [base ** (-2 * i / head_dim) for i in range(head_dim // 2)]
    return [2 / math.sqrt(head_dim) * sum(math.cos(m * f) for f in frequencies) for m in range(1000, length + 1)]


def naive_peaks(waveform: list[float]) -> list[int]:
    maxima = [m for m in range(1, len(waveform) - 1) if waveform[m - 1] < waveform[m] > waveform[m + 1]]
    if not maxima:
        return []
    target = max(waveform[m] for m in maxima)
    kept: list[int] = []
    for number, m in enumerate(maxima):
        if abs(waveform[m] - target) > 1e-3:
            continue
        if not kept or m > kept[-1] + 50:
            kept.append(m)
        if len(kept) == 30 or number + 1 == len(maxima):
            break
        start = min(m + 50, maxima[number + 1])
        target = max(waveform[start : start + 500])
    return kept


def naive_valleys(waveform: list[float]) -> list[int]:
    minima = [m for m in range(1, len(waveform) - 1) if waveform[m - 1] > waveform[m] < waveform[m + 1]]
    if not minima:
        return []
    target = min(waveform[m] for m in minima)
    kept: list[int] = []
    for number in range(len(minima) - 1, -1, -1):
        m = minima[number]
        if abs(waveform[m] - target) > 1e-3:
            continue
        if not kept or m < kept[0] - 60:
            kept.insert(0, m)
        if len(kept) == 30 or number == 0:
            break
        before = waveform[: max(0, min(m - 50, minima[number - 1]))]
        if not before:
            break
        target = min(before)
    return kept


def naive_select(peaks: list[list[int]], valleys: list[list[int]], count: int) -> tuple[list[int], list[int]] | None:
    picked, covers = [0], [0]
    selected_peaks, selected_valleys = list(peaks[0]), list(valleys[0])
    while len(picked) < count:
        best: tuple[int, int, int] | None = None
        for j in range(len(peaks)):
            if j in picked:
                continue
            distances = [abs(p - v) for p in peaks[j] for v in selected_valleys]
            distances += [abs(p - v) for v in valleys[j] for p in selected_peaks]
            near = [distance for distance in distances if distance <= 3]
            key = (-len(near), sum(distance**2 for distance in near), j)
            best = key if best is None else min(best, key)
        if best is None or best[0] == 0:
            return None
        picked.append(best[2])
        covers.append(-best[0])
        selected_peaks += peaks[best[2]]
        selected_valleys += valleys[best[2]]
        both = set(selected_peaks) & set(selected_valleys)
        selected_peaks = [p for p in selected_peaks if p not in both]
        selected_valleys = [v for v in selected_valleys if v not in both]
    return picked, covers


def as_positions(*candidates: list[int]) -> list[published_search.Positions]:
    return [np.array(positions, dtype=np.intp) for positions in candidates]


# Table 2


def test_all_32_bases_of_table_2_are_found(published: BaseSearch) -> None:
    assert tuple(round(base / 1e6, 2) for base in published.bases) == TABLE_2
    assert published.bases == tuple(1e6 + 3e4 * round((base - 1) / 0.03) for base in TABLE_2)


def test_the_bases_are_picked_in_the_known_order(published: BaseSearch) -> None:
    assert tuple(round(base / 1e6, 2) for base in published.order) == ORDER


def test_the_first_base_is_the_seed_and_every_later_one_has_cover(published: BaseSearch) -> None:
    assert published.order[0] == 1e6
    assert published.cover[0] == 0
    assert len(published.cover) == 32
    assert all(cover > 0 for cover in published.cover[1:])


@pytest.mark.parametrize("length", [125_000, 128_000])
def test_shorter_ends_down_to_125000_give_the_same_set(published: BaseSearch, length: int) -> None:
    assert search_table_2(length).bases == published.bases


def test_the_search_has_one_result(published: BaseSearch) -> None:
    assert search_table_2(131_072) == published


def test_the_result_cannot_be_changed(published: BaseSearch) -> None:
    anything: Any = published
    with pytest.raises(dataclasses.FrozenInstanceError):
        anything.bases = ()


# The parts, against the plain loops


@pytest.mark.parametrize(
    ("heads", "head_dim", "length", "low", "high", "stride"),
    [
        (5, 16, 6000, 1e4, 5e4, 4e3),
        (8, 32, 4000, 1e5, 1e6, 7e4),
        (4, 64, 5000, 5e5, 1e6, 1e5),
        (3, 2, 2500, 1e4, 2e4, 5e3),
        (6, 128, 3000, 1e6, 2e6, 1.5e5),
    ],
)
def test_small_searches_agree_with_the_rule_in_plain_loops(
    heads: int, head_dim: int, length: int, low: float, high: float, stride: float
) -> None:
    candidates = [low + i * stride for i in range(int((high - low) / stride) + 1)]
    waveforms = [naive_waveform(base, head_dim, length) for base in candidates]
    expected = naive_select([naive_peaks(f) for f in waveforms], [naive_valleys(f) for f in waveforms], heads)
    assert expected is not None
    picked, cover = expected
    order = tuple(candidates[index] for index in picked)
    assert published_base_search(heads, head_dim, length, low, high, stride) == BaseSearch(
        tuple(sorted(order)), order, tuple(cover)
    )


def test_a_search_without_cover_in_the_plain_loops_is_refused() -> None:
    candidates = [1e3 + i * 2e2 for i in range(21)]
    waveforms = [naive_waveform(base, 8, 3000) for base in candidates]
    assert naive_select([naive_peaks(f) for f in waveforms], [naive_valleys(f) for f in waveforms], 8) is None
    with pytest.raises(HarpeError, match="no cover after 6 of 8 bases"):
        published_base_search(8, 8, 3000, 1e3, 5e3, 2e2)


@pytest.mark.parametrize("seed", range(20))
def test_extrema_of_rough_waveforms_agree_with_the_plain_loops(seed: int) -> None:
    # Values in steps of 5e-4, 1e-3 and 2e-3 put many samples at, inside and outside the tolerance; ties make flat tops.
    random = np.random.default_rng(seed)
    step = (5e-4, 1e-3, 2e-3, 0.05)[seed % 4]
    waveform = np.cumsum(random.integers(-3, 4, size=int(random.integers(3, 6000)))).astype(np.float64) * step
    assert find_peaks(waveform).tolist() == naive_peaks(waveform.tolist())
    assert find_valleys(waveform).tolist() == naive_valleys(waveform.tolist())


@pytest.mark.parametrize("seed", range(20))
def test_selection_agrees_with_the_plain_loops_where_ties_and_drops_are_common(seed: int) -> None:
    random = np.random.default_rng(seed)
    peaks, valleys = [], []
    for _ in range(12):
        positions = random.permutation(150)[:12]  # one waveform has no position that is both a peak and a valley
        peaks.append(sorted(positions[:6].tolist()))
        valleys.append(sorted(positions[6:].tolist()))
    assert select_by_cover(as_positions(*peaks), as_positions(*valleys), 9) == naive_select(peaks, valleys, 9)


@pytest.mark.parametrize("find", [find_peaks, find_valleys])
@pytest.mark.parametrize("waveform", [np.zeros(0), np.zeros(2), np.zeros(3), np.zeros(1000), np.arange(1000.0)])
def test_a_waveform_without_strict_extrema_has_none(find: Any, waveform: np.ndarray) -> None:
    assert find(waveform).tolist() == []


def test_at_most_30_extrema_are_kept_and_they_keep_their_distance() -> None:
    waveform = np.cos(np.arange(20_000) * 0.05)
    peaks, valleys = find_peaks(waveform).tolist(), find_valleys(waveform).tolist()
    assert len(peaks) == len(valleys) == 30
    assert all(right - left > 50 for left, right in pairwise(peaks))
    assert all(right - left > 60 for left, right in pairwise(valleys))
    assert peaks[0] < 200, "peaks are taken from the left"
    assert valleys[-1] > 19_800, "valleys are taken from the right"


def test_peaks_more_than_three_positions_from_a_valley_do_not_cover_it() -> None:
    peaks, valleys = as_positions([], [104], [103]), as_positions([100], [], [])
    assert select_by_cover(peaks, valleys, 2) == ([0, 2], [0, 1])


def test_ties_go_to_the_nearer_extrema_and_then_to_the_lower_base() -> None:
    peaks, valleys = as_positions([], [102], [101], [99]), as_positions([100], [], [], [])
    assert select_by_cover(peaks, valleys, 2) == ([0, 2], [0, 1])


def test_a_position_that_is_both_is_dropped_from_the_selected_extrema() -> None:
    # Candidate 1 lies on both valleys of the seed. At 100 and 200 nothing is left then for candidate 2 to lie on; 300
    # is left.
    peaks = as_positions([], [100, 200], [100, 200], [300])
    valleys = as_positions([100, 200], [300], [], [])
    assert select_by_cover(peaks, valleys, 3) == ([0, 1, 3], [0, 2, 1])


def test_extrema_selected_twice_count_twice() -> None:
    # Candidate 1 covers 500 and comes before its equal, candidate 2. There are then two valleys at 100 and one at 300.
    peaks = as_positions([500], [], [300], [100])
    valleys = as_positions([100, 300], [100, 500], [], [])
    assert select_by_cover(peaks, valleys, 3) == ([0, 1, 3], [0, 1, 2])


# Candidates and memory

FINE: dict[str, Any] = {"heads": 3, "head_dim": 16, "length": 2000, "low": 1e4, "high": 5e4, "stride": 1e4}


def test_a_stride_that_divides_the_range_up_to_rounding_reaches_its_end() -> None:
    # 0.3 / 0.1 is 2.9999999999999996 in floating point; the fourth candidate is meant.
    search = published_base_search(1, 16, 2000, 1.1, 1.4, 0.1)
    assert search == BaseSearch((1.1,), (1.1,), (0,))
    with pytest.raises(HarpeError, match="gives 4 candidates"):
        published_base_search(5, 16, 2000, 1.1, 1.4, 0.1)


def test_as_many_heads_as_candidates_uses_every_candidate_once() -> None:
    search = published_base_search(4, 16, 6000, 1e4, 1.3e4, 1e3)
    assert search.bases == (1e4, 1.1e4, 1.2e4, 1.3e4)
    assert sorted(search.order) == list(search.bases)


def test_a_range_of_one_base_is_enough_for_one_head() -> None:
    assert published_base_search(1, 128, 2000, 1e6, 1e6, 3e4).bases == (1e6,)


def test_memory_follows_the_group_and_not_the_number_of_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published_search, "GROUP_SAMPLES", 2**15)
    tracemalloc.start()
    try:
        published_base_search(1, 8, 5000, 1e6, 5e6, 4e4)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**20, "101 waveforms of 4,001 samples are 3.2 MB"


@pytest.mark.parametrize("samples", [1, 10_000, 2**30])
def test_groups_of_any_size_give_the_same_bases(monkeypatch: pytest.MonkeyPatch, samples: int) -> None:
    expected = published_base_search(**FINE)
    monkeypatch.setattr(published_search, "GROUP_SAMPLES", samples)
    assert published_base_search(**FINE) == expected


# Refusals


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"heads": 0}, "--heads is 0"),
        ({"head_dim": 127}, "--head-dim is 127"),
        ({"head_dim": 0}, "--head-dim is 0"),
        ({"length": 1000}, "--length is 1000"),
        ({"length": 1499}, "at least 1500"),
        ({"low": 1.0}, "--min is 1.0"),
        ({"low": math.nan}, "--min is nan"),
        ({"low": -math.inf}, "--min is -inf"),
        ({"high": 0.5}, "--max is 0.5"),
        ({"high": math.inf}, "--max is inf"),
        ({"low": 6e4}, "--min 60000 is larger than --max 50000"),
        ({"stride": 0.0}, "--stride is 0.0"),
        ({"stride": -1e4}, "--stride is -10000.0"),
        ({"stride": math.nan}, "--stride is nan"),
        ({"stride": math.inf}, "--stride is inf"),
        ({"stride": 1e-310}, "more than 100000 candidates"),
        (
            {"heads": 6},
            "gives 5 candidates between --min 10000 and --max 50000, fewer than the 6 bases that --heads asks for",
        ),
    ],
)
def test_bad_input_is_refused_in_a_sentence_that_names_the_option(change: dict[str, Any], says: str) -> None:
    with pytest.raises(HarpeError, match=re.escape(says)) as refusal:
        published_base_search(**(FINE | change))
    message = str(refusal.value)
    assert message.startswith("--")
    assert message.endswith(".")


def test_no_cover_is_refused_with_what_to_do() -> None:
    peaks, valleys = as_positions([10], [20], [30]), as_positions([40], [50], [60])
    with pytest.raises(HarpeError, match="no cover after 1 of 2 bases") as refusal:
        select_by_cover(peaks, valleys, 2)
    assert "--rule general" in str(refusal.value)


def test_candidates_without_any_extrema_are_no_cover() -> None:
    with pytest.raises(HarpeError, match="no cover"):
        select_by_cover(as_positions([], []), as_positions([], []), 2)


def test_the_shortest_length_has_extrema_whatever_the_base() -> None:
    for base in (1.0001, 1.5, 100.0, 1e6, 1e300):
        (waveform,) = published_search.attention_waveform([base], 128, 1000, published_search.MINIMUM_LENGTH)
        assert len(find_peaks(waveform))
        assert len(find_valleys(waveform))
