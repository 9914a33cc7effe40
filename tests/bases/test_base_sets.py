"""Strategies, rules and what is refused; the printed Algorithm 1 in plain loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from harpe.bases.base_sets import PUBLISHED_SET, choose_bases, log_uniform_bases
from harpe.bases.printed_search import printed_base_search
from harpe.errors import HarpeError

PUBLISHED: dict[str, Any] = {"heads": 32, "head_dim": 128, "length": 131_072, "low": 1e6, "high": 5e6}


def test_peak_valley_takes_the_published_rule_in_its_setting_and_says_so() -> None:
    chosen = choose_bases("peak-valley", **PUBLISHED)
    assert chosen.rule == "published" and chosen.bases == PUBLISHED_SET
    assert "published rule" in chosen.reason


@pytest.mark.parametrize("change", [{"heads": 8}, {"head_dim": 64}, {"length": 65_536}, {"high": 4e6}, {"stride": 2e4}])
def test_peak_valley_takes_the_general_rule_everywhere_else_and_says_so(change: dict[str, Any]) -> None:
    chosen = choose_bases("peak-valley", **(PUBLISHED | change))
    assert chosen.rule == "general" and "general rule" in chosen.reason


@pytest.mark.parametrize("stride", [1e4, 2e4, 4e4, 5e4])
def test_the_published_rule_takes_the_papers_other_strides(stride: float) -> None:
    chosen = choose_bases("peak-valley", rule="published", stride=stride, **PUBLISHED)
    assert len(set(chosen.bases)) == 32 and all((b - 1e6) % stride == 0 for b in chosen.bases)


def test_log_uniform_bases_have_equal_ratios_and_exact_ends() -> None:
    bases = log_uniform_bases(7, 1e5, 6.4e6)
    assert (bases[0], bases[-1]) == (1e5, 6.4e6)
    np.testing.assert_allclose(np.diff(np.log(bases)), math.log(64) / 6)
    assert log_uniform_bases(1, 1e4, 1e6) == pytest.approx((1e5,))


def test_one_head_gets_one_base_in_the_range_from_every_strategy() -> None:
    for strategy in ("uniform", "uniform-descending", "log-uniform", "peak-valley"):
        (base,) = choose_bases(strategy, heads=1, head_dim=64, length=4096, low=1e5, high=1e6).bases  # type: ignore[arg-type]
        assert 1e5 <= base <= 1e6


def naive_printed(heads: int, head_dim: int, length: int, candidates: list[float]) -> list[float]:
    extrema = []
    for base in candidates:
        w = [
            math.fsum(math.cos(m * base ** (-2 * i / head_dim)) for i in range(head_dim // 2))
            for m in range(1000, length + 1)
        ]
        inner = range(1, len(w) - 1)
        extrema.append(
            ({m for m in inner if w[m - 1] < w[m] > w[m + 1]}, {m for m in inner if w[m - 1] > w[m] < w[m + 1]})
        )
    picked, peaks, valleys = [0], set(extrema[0][0]), set(extrema[0][1])
    while len(picked) < heads:
        sums = {
            j: sum(abs(p - v) for p in fp for v in valleys) + sum(abs(v - p) for v in fv for p in peaks)
            for j, (fp, fv) in enumerate(extrema)
            if j not in picked
        }
        best = min(sums, key=lambda j: (sums[j], j))
        picked.append(best)
        peaks |= extrema[best][0]
        valleys |= extrema[best][1]
    return [candidates[j] for j in picked]


@pytest.mark.parametrize(("heads", "head_dim", "length"), [(4, 16, 1700), (3, 64, 1600)])
def test_the_printed_rule_is_algorithm_1_in_plain_loops(heads: int, head_dim: int, length: int) -> None:
    candidates = [1e5 + 5e4 * i for i in range(9)]
    found = printed_base_search(heads, head_dim, length, 1e5, 5e5, 5e4)
    assert list(found.order) == naive_printed(heads, head_dim, length, candidates)


def test_the_printed_rule_does_not_give_table_2() -> None:
    chosen = choose_bases("peak-valley", rule="printed", **PUBLISHED)
    assert len(set(chosen.bases) & set(PUBLISHED_SET)) == 5
    assert np.median(chosen.bases) < 1.6e6, "it collapses towards the low end"


@pytest.mark.parametrize("rule", ["published", "printed", "general"])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"heads": 0}, "--heads is 0"),
        ({"head_dim": 127}, "even number"),
        ({"low": 1.0}, "--min is 1.0"),
        ({"high": math.inf}, "--max is inf"),
        ({"low": 6e6}, "the range is empty"),
        ({"stride": 0.0}, "--stride is 0.0"),
        ({"stride": 1e-3}, "more than 100000 candidates"),
        ({"stride": 3e6}, "fewer than the 32"),
        ({"length": 50}, "at least"),
    ],
)
def test_what_no_rule_can_choose_is_refused_in_a_sentence(rule: Any, change: dict[str, Any], says: str) -> None:
    with pytest.raises(HarpeError, match=says):
        choose_bases("peak-valley", rule=rule, force=True, **(PUBLISHED | change))


@pytest.mark.parametrize(
    ("strategy", "options", "says"),
    [
        ("uniform", {"rule": "general"}, "belong to --strategy peak-valley"),
        ("log-uniform", {"stride": 1e4}, "belong to --strategy peak-valley"),
        ("sorted", {}, "is not known"),
        ("peak-valley", {"rule": "best"}, "choose general, published or printed"),
        ("peak-valley", {"rule": "published", "head_dim": 64}, "tuned to head size 128"),
        ("uniform", {"head_dim": 63}, "even number"),
    ],
)
def test_options_that_do_not_go_together_are_refused(strategy: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(HarpeError, match=says):
        choose_bases(strategy, **(PUBLISHED | options))
