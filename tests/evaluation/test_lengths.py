"""Effective length and length score: NoLiMa's published table, worked numbers, numpy's trapezoid, a naive bootstrap."""

from __future__ import annotations

import math
import random
import statistics

import numpy as np
import pytest

from harpe.evaluation.statistics.lengths import Asked, base_score, effective_length, length_score, resample_lengths

LENGTHS = [1024, 2048, 4096, 8192, 16384, 32768]
# github.com/adobe-research/NoLiMa, README.md (Modarressi et al. 2025): model, effective length (0: "<1K"), base score,
# scores at 1K to 32K
NOLIMA = """
GPT-4o              8192 99.3 98.1 98.0 95.7 89.2 81.6 69.7
Llama-3.3-70B       2048 97.3 94.2 87.4 81.5 72.1 59.5 42.7
Llama-3.1-405B      2048 94.7 89.0 85.0 74.5 60.1 48.4 38.0
Llama-3.1-70B       2048 94.5 91.0 81.8 71.2 62.7 51.8 43.2
Gemini-1.5-Pro      2048 92.6 86.4 82.7 75.4 63.9 55.5 48.2
Jamba-1.5-Mini      0    92.4 76.3 74.1 70.8 62.2 52.7 43.6
Command-R+          0    90.9 77.0 73.5 66.3 39.5 21.3 7.4
Gemini-Flash-2.0    4096 89.4 87.7 87.5 77.9 64.7 48.2 41.0
Gemma-3-27B         0    88.6 73.3 65.6 48.1 32.7 20.2 9.5
Mistral-Large-2     2048 87.9 86.1 85.5 73.3 51.5 32.6 18.7
Claude-3.5-Sonnet   4096 87.6 85.4 84.0 77.6 61.7 45.7 29.8
Gemma-3-12B         1024 87.4 74.7 61.8 39.9 27.4 16.8 7.3
Gemini-1.5-Flash    0    84.7 68.6 61.6 51.0 44.4 35.5 28.6
GPT-4o-mini         0    84.9 67.7 58.2 44.1 32.6 20.6 13.7
Llama-4-Scout       1024 81.7 72.3 61.8 50.8 35.5 26.9 21.6
Llama-3.1-8B        1024 76.7 65.7 54.4 44.1 31.9 22.6 14.2
Gemma-3-4B          0    73.6 50.3 35.3 16.4 7.5 2.3 0.9
"""


def test_effective_lengths_are_those_of_nolimas_table() -> None:
    rows = [line.split() for line in NOLIMA.strip().splitlines()]
    numbers = np.array([[float(cell) for cell in row[1:]] for row in rows])
    found = effective_length(numbers[:, 2:], LENGTHS, numbers[:, 1])
    assert {row[0]: int(each) for row, each in zip(rows, found, strict=True)} == {row[0]: int(row[1]) for row in rows}


def test_a_worked_example() -> None:
    """Short scores 0.8 and 0.9, so 0.765 has to be kept: it is at 1,024 and again at 4,096, not at 2,048 nor 8,192."""
    scores, lengths = np.array([0.8, 0.9, 0.77, 0.7, 0.765, 0.2]), [256, 512, 1024, 2048, 4096, 8192]
    base = base_score(scores, lengths, 512)
    assert base == 0.9 and effective_length(scores, lengths, base) == 4096
    assert effective_length(scores - 0.001, lengths, base) == 1024
    # trapezoids of one doubling each: (0.85 + 0.835 + 0.735 + 0.7325 + 0.4825) / 5
    assert length_score(scores, lengths) == pytest.approx(0.727, abs=1e-12)


def test_a_score_of_exactly_85_percent_is_kept_whatever_floats_say() -> None:
    for hits in range(20, 401, 20):
        assert effective_length(np.array([hits / 400, 0.85 * hits / 400]), [1, 2], hits / 400) == 2
        assert effective_length(np.array([hits / 400, (0.85 * hits - 1) / 400]), [1, 2], hits / 400) == 1


def test_of_a_base_score_of_nothing_nothing_is_kept_and_without_short_lengths_there_is_none() -> None:
    zeros = np.zeros(3)
    assert effective_length(zeros, [1, 2, 4], base_score(zeros, [1, 2, 4], 1)) == 0
    assert np.isnan(base_score(np.ones(2), [512, 1024], 256))
    assert effective_length(np.ones(2), [512, 1024], base_score(np.ones(2), [512, 1024], 256)) == 0


def test_the_length_score_is_numpys_trapezoid_over_log2() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        lengths = np.sort(rng.choice(100_000, 7, replace=False) + 16)
        scores = rng.random((3, 7))
        width = np.log2(lengths[-1] / lengths[0])
        expected = np.trapezoid(scores, np.log2(lengths), axis=-1) / width
        assert length_score(scores, lengths.tolist()) == pytest.approx(expected, rel=1e-12)
    for wrong in ([1024], [2048, 1024]):
        with pytest.raises(ValueError, match="needs two that ascend"):
            length_score(np.ones(len(wrong)), wrong)


def naive(
    scores: dict[tuple[int, str], list[list[float]]], shared: bool, resamples: int, trained: int
) -> list[tuple[float, int]]:
    """Length score and effective length of the mean over seeds under draws in plain Python, one sample at a time."""
    draw, found = random.Random(7), []
    lengths = sorted({length for length, _ in scores})
    tasks = sorted({task for _, task in scores})
    seeds = len(next(iter(scores.values())))
    for _ in range(resamples):
        normal = [draw.gauss(0, 1) for _ in range(seeds)]
        chi = draw.gammavariate((seeds - 1) / 2, 2) ** 0.5 if seeds >= 3 else math.inf
        rows: dict[tuple[int, str], list[int]] = {}
        for task in tasks:
            for length in lengths:
                n = len(scores[length, task][0])
                known = rows.get((lengths[0], task)) if shared else None
                rows[length, task] = known or [draw.randrange(n) for _ in range(n)]
        means = []
        for length in lengths:
            by_task = [
                statistics.mean(scores[length, task][s][i] for s in range(seeds) for i in rows[length, task])
                for task in tasks
            ]
            whole = [statistics.mean(statistics.mean(scores[length, task][s]) for task in tasks) for s in range(seeds)]
            other = sum(z * (x - statistics.mean(whole)) for z, x in zip(normal, whole, strict=True)) / chi / seeds**0.5
            means.append(min(max(statistics.mean(by_task) + other, 0.0), 1.0))
        base = max(m for m, length in zip(means, lengths, strict=True) if length <= trained)
        kept = [length for m, length in zip(means, lengths, strict=True) if m >= 0.85 * base - 1e-9]
        at = np.log2(lengths)
        found.append((float(np.trapezoid(means, at) / (at[-1] - at[0])), max(kept)))
    return found


@pytest.mark.parametrize(("seeds", "shared"), [(1, False), (1, True), (3, False), (3, True)])
def test_the_bootstrap_is_that_of_a_naive_loop(seeds: int, shared: bool) -> None:
    rng = np.random.default_rng(4)
    chances = {256: 0.95, 512: 0.85, 1024: 0.8, 2048: 0.5}
    scores = {}
    for task in ("a", "b"):
        hard = rng.random(20)  # samples are hard or easy, at every length alike
        for length, chance in chances.items():
            each = [(hard < chance + rng.normal(0, 0.1, 20)).astype(float).tolist() for _ in range(seeds)]
            scores[length, task] = each
    asked = [
        Asked(length, np.array(each), task if shared else (length, task)) for (length, task), each in scores.items()
    ]
    drawn = resample_lengths(asked, resamples=4000)
    means, resampled = drawn.over_seeds(range(seeds))
    lengths = list(drawn.lengths)
    assert means == pytest.approx([np.mean([scores[n, t] for t in ("a", "b")]) for n in lengths], rel=1e-12)
    areas = length_score(resampled, lengths)
    reached = effective_length(resampled, lengths, base_score(resampled, lengths, 512))
    expected = naive(scores, shared, 1000, 512)
    spread = statistics.stdev(area for area, _ in expected)
    assert areas.std() == pytest.approx(spread, rel=0.08)
    assert areas.mean() == pytest.approx(statistics.mean(area for area, _ in expected), abs=0.12 * spread)
    for length in lengths:
        share = sum(each == length for _, each in expected) / len(expected)
        assert (reached == length).mean() == pytest.approx(share, abs=0.05)


def test_models_see_the_same_draws_so_that_what_samples_have_in_common_cancels() -> None:
    rng = np.random.default_rng(1)
    hard = rng.random(50)
    both = np.array([(hard < 0.7).astype(float), (hard < 0.7).astype(float)])
    drawn = resample_lengths([Asked(256, both, "x"), Asked(512, both, "y")], resamples=500)
    (_, first), (_, second) = drawn.over_seeds([0]), drawn.over_seeds([1])
    assert (first == second).all() and first[:, 0].std() > 0.03 and (first[:, 0] != first[:, 1]).any()
