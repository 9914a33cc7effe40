"""The ratio that says whether heads want different tables, on gradients that are made by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from harpe.attention_heads.heterogeneity import agreement, halves, heterogeneity
from harpe.errors import HarpeError

LAYERS, HEADS, PAIRS = 3, 4, 5


def noisy(common: np.ndarray, noise: float, documents: int = 40, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return common[None] + noise * rng.standard_normal((documents, *common.shape))


def test_heads_that_want_the_same_give_one_also_under_noise_larger_than_what_they_want() -> None:
    same = np.broadcast_to(np.linspace(1, 2, PAIRS), (LAYERS, HEADS, PAIRS))
    exact = heterogeneity(np.stack([same] * 6), range(PAIRS))
    assert all(ratio.value == pytest.approx(1) and ratio.low == pytest.approx(1) for ratio in exact.values())
    values = [heterogeneity(noisy(same, 3.0, seed=seed), range(PAIRS))["all"].value for seed in range(60)]
    assert np.mean(values) == pytest.approx(1, abs=0.1)
    # one half's gradient squared would have counted the noise as difference
    gradient = noisy(same, 3.0).mean(axis=0)
    naive = LAYERS * HEADS * (gradient**2).sum() / (gradient.sum(axis=(0, 1)) ** 2).sum()
    assert naive > 1.08


def test_it_is_the_formula() -> None:
    g = np.random.default_rng(3).standard_normal((8, LAYERS, HEADS, PAIRS)) + 1
    a, b = g[::2].mean(axis=0), g[1::2].mean(axis=0)
    own = sum(a[n, h, i] * b[n, h, i] for n in range(LAYERS) for h in range(HEADS) for i in (1, 3))
    shared = sum(a[:, :, i].sum() * b[:, :, i].sum() for i in (1, 3))
    of_layers = sum(a[n, :, i].sum() * b[n, :, i].sum() for n in range(LAYERS) for i in (1, 3))
    found = heterogeneity(g, (1, 3))
    assert found["all"].value == pytest.approx(LAYERS * HEADS * own / shared)
    assert found["layers"].value == pytest.approx(LAYERS * of_layers / shared)
    assert found["heads"].value == pytest.approx(HEADS * own / of_layers)
    assert found["all"].value == pytest.approx(found["layers"].value * found["heads"].value)
    assert found["all"].low <= found["all"].value <= found["all"].high


def test_opposed_heads_and_opposed_layers_are_told_apart() -> None:
    heads = np.ones((LAYERS, HEADS, PAIRS)) * np.array([1, -0.8, 1, -0.8])[None, :, None]
    found = heterogeneity(noisy(heads, 0.1), range(PAIRS))
    assert found["heads"].low > 20 and found["layers"].value == pytest.approx(1, rel=0.2)
    layers = np.ones((LAYERS, HEADS, PAIRS)) * np.array([1, -1, 0.4])[:, None, None]
    found = heterogeneity(noisy(layers, 0.1), range(PAIRS))
    assert found["layers"].low > 5 and found["heads"].value == pytest.approx(1, rel=0.2)


def test_heads_whose_wants_cancel_have_no_bound() -> None:
    g = np.ones((4, 1, 2, PAIRS)) * np.array([1, -1])[None, None, :, None]
    ratio = heterogeneity(g, range(PAIRS))["all"]
    assert math.isinf(ratio.value) and ratio.as_dict() == {"value": None, "low": None, "high": None}


def test_halves_agree_where_there_is_something_to_agree_on() -> None:
    common = np.zeros((LAYERS, HEADS, 200))
    common[0, 1] = 1
    found = agreement(noisy(common, 0.5))
    assert found.shape == (LAYERS, HEADS) and found[0, 1] > 0.9
    assert np.abs(np.delete(found.ravel(), 1)).max() < 0.4
    assert np.isnan(agreement(np.zeros((4, 1, 1, 3)))[0, 0])


def test_too_few_documents_are_refused() -> None:
    with pytest.raises(HarpeError, match="needs 4 documents; there are 3"):
        halves(np.zeros((3, 1, 1, 1)))
