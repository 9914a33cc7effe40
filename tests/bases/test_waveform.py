"""The fast waveform against the formula, written out."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest

from harpe.bases.waveform import FINE_STEPS, attention_waveform


def formula(base: float, head_dim: int, m: int) -> float:
    """A_b(m), term by term; fsum, so that the reference adds no rounding of its own."""
    return 2 / math.sqrt(head_dim) * math.fsum(math.cos(m * base ** (-2 * i / head_dim)) for i in range(head_dim // 2))


@pytest.mark.parametrize("head_dim", [2, 16, 64, 96, 128, 256])
@pytest.mark.parametrize("base", [1.5, 1e4, 1e6, 4.54e6, 3.58e9])
def test_the_waveform_is_the_formula(base: float, head_dim: int) -> None:
    start, end = 1000, 131_072
    (found,) = attention_waveform([base], head_dim, start, end)
    sampled = [*range(start, start + 3), *range(1250, 1260), *range(65_000, 65_010), *range(end - 9, end + 1)]
    np.testing.assert_allclose(
        found[np.array(sampled) - start], [formula(base, head_dim, m) for m in sampled], rtol=0, atol=1e-10
    )


def test_every_position_of_a_row_is_the_naive_float64_sum() -> None:
    base, head_dim, start, end = 2.17e6, 128, 1000, 131_072
    positions = np.arange(start, end + 1, dtype=np.float64)
    naive = np.zeros_like(positions)
    for i in range(head_dim // 2):
        naive += np.cos(positions * base ** (-2 * i / head_dim))
    (found,) = attention_waveform([base], head_dim, start, end)
    np.testing.assert_allclose(found, naive * 2 / np.sqrt(head_dim), rtol=0, atol=1e-10)


@pytest.mark.parametrize("positions", [1, 2, FINE_STEPS - 1, FINE_STEPS, FINE_STEPS + 1, 3 * FINE_STEPS])
@pytest.mark.parametrize("start", [0, 7, 1000])
def test_both_ends_are_included_whatever_the_number_of_positions(start: int, positions: int) -> None:
    bases = [1e4, 5e5]
    found = attention_waveform(bases, 32, start, start + positions - 1)
    assert found.shape == (2, positions)
    expected = [[formula(base, 32, m) for m in range(start, start + positions)] for base in bases]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_at_distance_zero_every_base_has_the_square_root_of_the_head_size() -> None:
    np.testing.assert_allclose(attention_waveform([1e4, 1e6, 5e6], 128, 0, 0), np.sqrt(128), rtol=1e-15)


def test_bases_are_independent_rows_in_the_order_given() -> None:
    bases = np.array([5e6, 1e6, 3e6])
    together = attention_waveform(bases, 64, 1000, 3000)
    for row, base in zip(together, bases, strict=True):
        np.testing.assert_array_equal(row, attention_waveform([base], 64, 1000, 3000)[0])


def test_memory_beyond_the_result_is_that_of_one_base() -> None:
    tracemalloc.start()
    try:
        result = attention_waveform(np.linspace(1e6, 5e6, 16), 128, 1000, 131_072)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - result.nbytes < 4 * 2**20
