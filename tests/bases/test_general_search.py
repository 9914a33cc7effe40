"""Complementarity against sums in plain loops, and the properties that the general rule must have for every
geometry."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from harpe.bases import complementarity as measure
from harpe.bases.base_sets import PUBLISHED_SET, choose_bases, log_uniform_bases, uniform_bases
from harpe.bases.complementarity import complementarity, first_position, random_sets, sample_starts, sampled_cover
from harpe.bases.general_search import general_base_search, general_candidates
from harpe.errors import HarpeError


def naive_waveform(base: float, head_dim: int, m: np.ndarray) -> np.ndarray:
    total = np.zeros_like(m)
    for i in range(head_dim // 2):
        total += np.cos(m * base ** (-2 * i / head_dim))
    return 2 / math.sqrt(head_dim) * total


def naive_ripple(base: float, head_dim: int, m: np.ndarray) -> np.ndarray:
    """The waveform less its mean over one turn of the fastest pair, integrated by Simpson's rule."""
    steps = 64
    offsets = np.linspace(-math.pi, math.pi, steps + 1)
    weights = np.array([1, *([4, 2] * (steps // 2 - 1)), 4, 1]) / (3 * steps)
    mean = sum(w * naive_waveform(base, head_dim, m + o) for w, o in zip(weights, offsets, strict=True))
    return naive_waveform(base, head_dim, m) - mean


def naive_complementarity(bases: list[float], head_dim: int, start: int, length: int) -> tuple[float, int]:
    m = np.arange(start, length + 1, dtype=np.float64)
    highest = np.max([naive_ripple(base, head_dim, m) for base in bases], axis=0)
    longest = run = 0
    for value in highest:
        run = 0 if value > 0 else run + 1
        longest = max(longest, run)
    return float(np.mean(highest > 0)), longest


@pytest.mark.parametrize(
    ("bases", "head_dim", "length"), [([1e6], 128, 2000), ([1e5, 3e5, 2e5], 32, 3000), ([5e5, 6e5] * 2, 64, 1024)]
)
@pytest.mark.parametrize("block", [2**9, 2**23])
def test_complementarity_is_the_definition_in_plain_sums(
    bases: list[float], head_dim: int, length: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "BLOCK_SAMPLES", block * 8)  # small blocks: stretches run across their borders
    found = complementarity(bases, head_dim, length)
    share, longest = naive_complementarity(bases, head_dim, found.start, length)
    # a value at 0 up to rounding may fall to either side
    assert found.covered == pytest.approx(share, abs=1.1 / length)
    assert found.longest_uncovered == longest


def test_the_ripple_has_unit_rms() -> None:
    for head_dim, base in ((32, 1e5), (128, 3e6)):
        values = measure.ripples([base], head_dim, 1000 + 256 * np.arange(400, dtype=np.float64))
        assert np.sqrt((values**2).mean()) == pytest.approx(1, abs=0.02)
        m = np.arange(5000, 5256, dtype=np.float64)
        expected = naive_ripple(base, head_dim, m)
        got = measure.ripples([base], head_dim, np.array([5000.0]))[0]
        np.testing.assert_allclose(got / got[0], expected / expected[0], rtol=1e-4, atol=1e-6 * abs(got / got[0]).max())


def test_the_waveform_starts_where_the_published_one_does_and_scales_with_the_length() -> None:
    assert first_position(131_072) == 1000
    assert [first_position(n) for n in (64, 1024, 1_310_720)] == [1, 8, 10_000]
    with pytest.raises(HarpeError, match="at least 64 positions"):
        first_position(63)


@pytest.mark.parametrize("length", [131_072 * 2, 1_000_003, 10_000_000])
def test_a_long_range_is_sampled_from_end_to_end_without_overlap(length: int) -> None:
    start = first_position(length)
    starts, steps = sample_starts(start, length, 2**17)
    assert len(starts) * steps == 2**17
    assert (np.diff(starts) >= steps).all()
    share = (length - start) / len(starts)
    assert starts[0] - start <= share and length - starts[-1] - steps <= 2 * share and starts[-1] + steps - 1 <= length


def test_a_range_within_the_sample_is_read_whole() -> None:
    starts, steps = sample_starts(1000, 131_072, 2**17)
    assert (starts == 1000 + 256 * np.arange(len(starts))).all() and steps == 256
    assert starts[-1] + steps > 131_072
    assert sampled_cover([1e5, 1e6], 32, 9000).shape == (2, 9000 - first_position(9000) + 1)


def test_a_sample_measures_what_all_positions_do() -> None:
    bases = uniform_bases(8, 2e7, 1e8)
    exact = complementarity(bases, 64, 2_000_000)
    sampled = sampled_cover(bases, 64, 2_000_000).any(axis=0)
    assert sampled.size == 2**20
    assert sampled.mean() == pytest.approx(exact.covered, abs=0.002)


# The rule


def test_the_general_rule_beats_the_published_set_and_95_of_100_random_ones_in_the_published_setting() -> None:
    setting: dict[str, Any] = {"heads": 32, "head_dim": 128, "length": 131_072, "low": 1e6, "high": 5e6}
    chosen = choose_bases("peak-valley", rule="general", **setting)
    found = complementarity(chosen.bases, 128, 131_072)
    published, uniform = (
        complementarity(PUBLISHED_SET, 128, 131_072),
        complementarity(uniform_bases(32, 1e6, 5e6), 128, 131_072),
    )
    assert found.covered > published.covered > uniform.covered
    assert found.longest_uncovered <= published.longest_uncovered
    assert found.covered > np.percentile(random_sets(**setting, count=200), 95)


@pytest.mark.parametrize(
    ("heads", "head_dim", "length", "low", "high"),
    [
        (1, 64, 8192, 1e5, 1e6),
        (2, 32, 1024, 1e5, 2e5),
        (4, 256, 1024, 1e5, 5e5),
        (8, 32, 2048, 1.27e6, 6.35e6),
        (16, 96, 200_000, 1e7, 5e7),
    ],
)
def test_elsewhere_it_beats_95_of_100_random_sets(
    heads: int, head_dim: int, length: int, low: float, high: float
) -> None:
    bases = general_base_search(heads, head_dim, length, general_candidates(heads, low, high)).bases
    sample = sampled_cover(bases, head_dim, length).any(axis=0).mean()
    assert sample > np.percentile(random_sets(heads, head_dim, length, low, high, count=200), 95)


geometries = st.fixed_dictionaries(
    {
        "heads": st.integers(1, 128),
        "head_dim": st.integers(16, 128).map(lambda pairs: 2 * pairs),
        "length": st.integers(1000, 9000),
        "low": st.floats(1e4, 1e9),
        "ratio": st.floats(1.001, 100),
    }
)


@settings(max_examples=8, deadline=None)
@given(geometry=geometries, seed=st.integers(0, 2**32 - 1))
@example(geometry={"heads": 128, "head_dim": 256, "length": 1000, "low": 1e4, "ratio": 1.001}, seed=0)
def test_for_every_geometry_bases_are_distinct_in_range_spread_deterministic_and_free_of_the_order_of_candidates(
    geometry: dict[str, Any], seed: int
) -> None:
    heads, head_dim, length, low = (geometry[name] for name in ("heads", "head_dim", "length", "low"))
    high = low * geometry["ratio"]
    candidates = general_candidates(heads, low, high)
    found = general_base_search(heads, head_dim, length, candidates)
    assert len(found.bases) == heads == len(set(found.bases))
    assert low <= found.bases[0] and found.bases[-1] <= high
    assert list(found.bases) == sorted(found.bases)
    edges = np.geomspace(low, high, heads + 1)  # every part of the range, up to half a candidate, has its base
    slack = (high / low) ** (1.01 / len(candidates))
    assert all(edges[h] / slack <= b <= edges[h + 1] * slack for h, b in enumerate(found.bases))
    assert general_base_search(heads, head_dim, length, np.random.default_rng(seed).permutation(candidates)) == found


def naive_key(sets: np.ndarray) -> list[int]:
    """Positions covered by none, by one, by two ... of the members: what is made small, in that order."""
    counts = sets.sum(axis=0)
    return [int((counts == k).sum()) for k in range(len(sets) + 1)]


def test_no_exchange_within_a_part_improves_the_set() -> None:
    heads, candidates = 5, general_candidates(5, 1e5, 1e6)
    found = general_base_search(heads, 32, 1500, candidates)
    cover = {float(base): sampled_cover([base], 32, 1500)[0] for base in candidates}
    best = naive_key(np.array([cover[base] for base in found.bases]))
    edges = np.linspace(0, len(candidates), heads + 1).astype(int)
    for head in range(heads):
        for other in candidates[edges[head] : edges[head + 1]]:
            changed = [*found.bases[:head], float(other), *found.bases[head + 1 :]]
            assert naive_key(np.array([cover[base] for base in changed])) >= best


def test_a_set_whose_cover_is_complete_is_still_told_from_others() -> None:
    # 64 heads cover everything; what is left to gain is cover by two
    bases = general_base_search(64, 128, 4096, general_candidates(64, 1e6, 5e6)).bases
    chosen, uniform = (naive_key(sampled_cover(b, 128, 4096)) for b in (bases, log_uniform_bases(64, 1e6, 5e6)))
    assert chosen[0] <= uniform[0] and chosen < uniform


def test_a_stride_gives_the_candidates_of_the_paper() -> None:
    assert general_candidates(32, 1e6, 5e6, 3e4).tolist() == [1e6 + 3e4 * i for i in range(134)]


def test_fewer_candidates_than_heads_are_refused() -> None:
    with pytest.raises(HarpeError, match="1 candidate bases, fewer than the 8 that --heads asks for"):
        choose_bases("peak-valley", heads=8, head_dim=64, length=4096, low=1e5, high=1e5)
    with pytest.raises(HarpeError, match="2 candidate bases, fewer than the 8"):
        choose_bases("peak-valley", heads=8, head_dim=64, length=4096, low=1e5, high=2e5, stride=1e5)


def test_memory_does_not_grow_with_the_length() -> None:
    tracemalloc.start()
    try:
        search = general_base_search(4, 32, 10_000_000, general_candidates(4, 1e9, 5e9))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(set(search.bases)) == 4
    assert peak < 400 * 2**20, "128 waveforms of 10M positions are 10 GB"


@pytest.mark.parametrize(
    ("heads", "head_dim"),
    [
        pytest.param(1, 32, marks=pytest.mark.slow),
        pytest.param(16, 96, marks=pytest.mark.slow),
        pytest.param(2, 128, marks=pytest.mark.matrix),
    ],
)
def test_ten_million_positions(heads: int, head_dim: int) -> None:
    """One head and many in the slow group; `pytest -m matrix tests/bases` has the third geometry."""
    candidates = general_candidates(heads, 1e9, 5e9)
    found = general_base_search(heads, head_dim, 10_000_000, candidates)
    assert len(set(found.bases)) == heads
    assert general_base_search(heads, head_dim, 10_000_000, candidates[::-1]) == found
    sample = sampled_cover(found.bases, head_dim, 10_000_000).any(axis=0).mean()
    assert sample >= np.percentile(random_sets(heads, head_dim, 10_000_000, 1e9, 5e9, count=60), 95)


def test_the_set_is_the_same_on_every_machine() -> None:
    # pinned: float64 throughout, and a sign is in doubt only where a ripple is within 1e-10 of zero
    candidates = general_candidates(8, 1e5, 5e5)
    found = general_base_search(8, 32, 4096, candidates)
    assert [int((candidates == base).argmax()) for base in found.bases] == [10, 16, 41, 56, 68, 87, 96, 116]
