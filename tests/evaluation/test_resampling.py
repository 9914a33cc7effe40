"""Intervals over seeds and documents against known variances and naive loops; Holm's correction against worked
numbers."""

from __future__ import annotations

import numpy as np
import pytest

from harpe.evaluation.statistics.intervals import mean_of_differences, paired_difference
from harpe.evaluation.statistics.resampling import Units, holm, paired, resample


def crossed(
    rng: np.random.Generator, seeds: int, documents: int, between: float, within: float, noise: float
) -> np.ndarray:
    """Values with an effect of each seed, of each document, and noise: [seeds, documents]."""
    return (
        between * rng.standard_normal((seeds, 1))
        + within * rng.standard_normal((1, documents))
        + noise * rng.standard_normal((seeds, documents))
    )


def test_the_value_is_the_weighted_mean_and_the_mean_over_tasks() -> None:
    units = Units.of([10.0, 30.0])
    assert resample(np.array([[20.0, 30.0]]), units).value == pytest.approx(50 / 40)
    tasks = Units.of([1.0] * 5, [0, 0, 0, 0, 1])
    assert resample(np.array([[1.0, 1, 1, 1, 0]]), tasks).value == pytest.approx(0.5)


@pytest.mark.parametrize("seeds", [1, 2])
def test_draws_are_those_of_a_naive_loop(seeds: int) -> None:
    """The same draws, one document at a time; so few seeds are averaged."""
    rng = np.random.default_rng(3)
    totals, units = rng.random((seeds, 7)) * 5, Units.of(rng.integers(1, 9, 7).tolist(), [0, 0, 1, 1, 1, 2, 2])
    found = resample(totals, units, resamples=50, seed=11).resampled
    again = np.random.default_rng(11)
    counts = np.zeros((50, 7))
    for task in (0, 1, 2):
        part = [i for i in range(7) if units.strata[i] == task]
        counts[:, part] = again.multinomial(len(part), [1 / len(part)] * len(part), size=50)
    for b in range(50):
        means = []
        for s in range(seeds):
            by_task = []
            for task in (0, 1, 2):
                drawn = [i for i in range(7) if units.strata[i] == task for _ in range(int(counts[b, i]))]
                by_task.append(sum(totals[s, i] for i in drawn) / sum(units.weights[i] for i in drawn))
            means.append(sum(by_task) / 3)
        assert found[b] == pytest.approx(sum(means) / seeds, rel=1e-12)


@pytest.mark.parametrize(("seeds", "quantile"), [(3, 4.3027), (5, 2.7764), (8, 2.3646)])
def test_where_only_seeds_differ_the_interval_and_p_are_those_of_a_t_test(seeds: int, quantile: float) -> None:
    """Quantiles of Student's t for 95%, from a printed table: a mean just that far from zero has p = 0.05."""
    effects = np.random.default_rng(6).standard_normal(seeds)
    half = quantile * effects.std(ddof=1) / np.sqrt(seeds)
    effects += half - effects.mean()
    found = resample(np.tile(effects[:, None], (1, 12)), Units.of([1.0] * 12), resamples=200_000)
    assert found.interval().high == pytest.approx(2 * half, rel=0.03)
    assert found.interval().low == pytest.approx(0, abs=0.05 * half)
    assert found.p_value() == pytest.approx(0.05, abs=0.003)


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(("between", "within", "noise"), [(1.0, 1.0, 0.3), (1.0, 0.1, 0.1), (0.3, 2.0, 2.0)])
def test_one_in_twenty_differences_that_are_none_is_called_real_at_most(
    seeds: int, between: float, within: float, noise: float
) -> None:
    """A bootstrap of three seeds calls 14 to 22 in a hundred real."""
    rng, units, called, runs = np.random.default_rng(7), Units.of([1.0] * 24), 0, 600
    for run in range(runs):
        values = crossed(rng, seeds, 24, between / 5, within, noise)
        called += resample(values, units, resamples=400, seed=run).p_value() < 0.05
    assert called / runs < 0.05 + 2.5 * np.sqrt(0.05 * 0.95 / runs)


def test_documents_shared_by_seeds_are_not_averaged_away() -> None:
    """With variance between documents only, 20 seeds tell no more than one: an interval from nested draws would be 4.5
    times too narrow."""
    values = crossed(np.random.default_rng(0), 20, 50, 0.0, 1.0, 0.0)
    found = resample(values, Units.of([1.0] * 50)).interval()
    expected = 2 * 1.96 * values[0].std() / np.sqrt(50)
    assert found.high - found.low == pytest.approx(expected, rel=0.05)


def test_seeds_widen_the_interval_from_three_on() -> None:
    values = crossed(np.random.default_rng(1), 3, 400, 1.0, 0.05, 0.05)
    units = Units.of([1.0] * 400)
    both, documents = resample(values, units).interval(), resample(values.mean(0), units).interval()
    assert both.high - both.low > 10 * (documents.high - documents.low)
    two = resample(values[:2], units).interval()
    assert two.high - two.low == pytest.approx(documents.high - documents.low, rel=0.5)


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_intervals_of_paired_differences_hold_the_truth_about_as_often_as_they_say(shift: float) -> None:
    rng, hits, runs, units = np.random.default_rng(5), 0, 200, Units.of([1.0] * 60)
    for run in range(runs):
        shared = 3 * rng.standard_normal((1, 60))  # what documents have in common cancels
        a = shared + shift + 0.3 * rng.standard_normal((1, 60)) + 0.05 * rng.standard_normal((8, 60))
        b = shared + 0.05 * rng.standard_normal((8, 60))
        found = paired(a, b, units, resamples=400, seed=run).interval()
        hits += found.low <= shift <= found.high
    assert 0.90 <= hits / runs <= 0.985


def test_a_method_without_seeds_stands_against_every_seed() -> None:
    a, b = np.array([[1.0, 2.0]]), np.array([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]])
    found = paired(a, b, Units.of([1.0, 1.0]))
    assert found.value == pytest.approx(0.5) and found.by_seed == pytest.approx((1.5, 0.5, -0.5))
    with pytest.raises(ValueError, match="cannot be paired"):
        paired(b, b[:2], Units.of([1.0, 1.0]))


def test_identical_methods_differ_by_nothing_with_certainty_none() -> None:
    values = np.random.default_rng(2).random((3, 30))
    found = paired(values, values, Units.of([1.0] * 30))
    assert (found.interval().low, found.interval().high, found.p_value()) == (0.0, 0.0, 1.0)


def test_four_documents_that_agree_prove_no_more_than_a_sign_test_could() -> None:
    """Four heads in four throws: p = 2/16 on both sides, whatever the bootstrap says."""
    assert paired(np.full((1, 4), 2.0), np.full((1, 4), 1.0), Units.of([1.0] * 4)).p_value() == pytest.approx(0.125)
    many = paired(np.full((1, 40), 2.0), np.full((1, 40), 1.0), Units.of([1.0] * 40), resamples=999)
    assert many.p_value() == pytest.approx(2 / 1000)


def test_holm_gives_the_numbers_of_a_worked_example() -> None:
    """Four p-values; smallest times 4, next times 3, next times 2, last; never falling, never above 1."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_a_difference_is_clear_only_where_a_sign_test_could_tell_it() -> None:
    """Binomial: n of n on one side has p = 2 / 2^n, which is below 5 % from six on."""
    for count in (1, 2, 5, 6, 24):
        found = [paired_difference([1.0] * count, [0.0] * count), mean_of_differences([[1.0] * count])]
        assert [each.clear for each in found] == [2 / 2**count < 0.05] * 2
    assert not paired_difference([1.0] * 24, [1.0] * 24).clear


def test_a_mean_over_tasks_of_one_sample_each_shows_nothing() -> None:
    """A bootstrap within tasks of one sample has no width: one answer of 13 would be a difference for certain."""
    one = [[1.0]] + [[0.0]] * 12
    assert not mean_of_differences(one).clear
    found = paired(np.array([1.0] + [0.0] * 12), np.zeros(13), Units.of([1.0] * 13, list(range(13))))
    assert found.interval().low == found.interval().high > 0 and found.p_value() == 1.0
    many = [[1.0] * 6, [1.0] * 6]
    assert mean_of_differences(many).clear and not mean_of_differences([*many, [1.0] * 5]).clear


@pytest.mark.parametrize("lost", [np.nan, np.inf])
def test_a_loss_that_is_no_number_has_no_small_p(lost: float) -> None:
    losses = np.array([1.0] * 11 + [lost])
    assert paired(losses, np.zeros(12), Units.of([1.0] * 12)).p_value() == 1.0
