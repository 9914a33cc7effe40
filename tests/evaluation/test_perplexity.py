"""Loss by position against a naive loop, and the intervals against published figures."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from harpe.evaluation.perplexity.by_position import (
    document_records,
    position_bins,
    short_windows,
    summarise,
    token_losses,
)
from harpe.evaluation.statistics.intervals import paired_difference, weighted_mean, wilson


def naive_losses(model: Any, ids: list[int]) -> list[float]:
    """-log p of every next token, each from a forward pass of its own over everything before it."""
    out = []
    for n in range(1, len(ids)):
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([ids[:n]]), use_cache=False).logits[0, -1].double()
        out.append(float(torch.logsumexp(logits, 0) - logits[ids[n]]))
    return out


def test_losses_are_those_of_a_naive_loop(make_tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harpe.models.head.CHUNK", 7)
    model = make_tiny("llama")
    ids = torch.randint(1, 97, (2, 41), generator=torch.Generator().manual_seed(0))
    got = token_losses(model, ids)
    for row, document in zip(got, ids.tolist(), strict=True):
        np.testing.assert_allclose(row, naive_losses(model, document), atol=2e-5)


def test_short_windows_and_bins_are_token_weighted(make_tiny: Any) -> None:
    model = make_tiny("qwen2")
    documents = [torch.randint(1, 97, (70 + i,), generator=torch.Generator().manual_seed(i)).tolist() for i in range(3)]
    records: list[dict[str, Any]] = []
    document_records(model, documents, 16, 64, records.append)
    value = summarise(records, 16, 64)
    long = np.array([naive_losses(model, d[:65]) for d in documents])
    for b in value["bins"]:
        assert b["tokens"] == 3 * (b["end"] - b["start"])
        assert b["nll"] == pytest.approx(long[:, b["start"] : b["end"]].mean(), abs=1e-5)
    short = np.concatenate([naive_losses(model, d[start : start + 17]) for d in documents for start in (0, 16, 32, 48)])
    assert value["short"]["perplexity"] == pytest.approx(math.exp(short.mean()), rel=1e-5)
    assert value["long"]["perplexity"] == pytest.approx(math.exp(long[:, 32:].mean()), rel=1e-5)
    assert value["short"]["low"] <= value["short"]["perplexity"] <= value["short"]["high"]


@pytest.mark.parametrize("begin", [[], [5], [5, 6]])
def test_every_short_window_begins_as_a_text_does_and_predicts_what_it_would_predict_without(
    make_tiny: Any, begin: list[int]
) -> None:
    """Tokens 1 to 64 of each document, each once, from a window of 16; the first token of another window makes room for
    BOS."""
    model = make_tiny("llama")
    ids = [*begin, *torch.randint(7, 97, (70,), generator=torch.Generator().manual_seed(7)).tolist()]
    predicted = []
    for number, window in enumerate(short_windows(torch.tensor(ids), 16, 64, begin)):
        assert window[-16:].tolist() == ids[1 + 16 * number : 17 + 16 * number]
        assert window[: len(begin)].tolist() == begin
        predicted += naive_losses(model, window.tolist())[-16:]
    assert len(predicted) == 64
    records: list[dict[str, Any]] = []
    document_records(model, [ids], 16, 64, records.append, begin=begin, batch_tokens=40)
    assert records[0]["short_tokens"] == 64 and records[0]["short_nll"] == pytest.approx(sum(predicted), rel=1e-5)
    without: list[dict[str, Any]] = []
    document_records(model, [ids], 16, 64, without.append)
    assert (without[0]["short_nll"] == records[0]["short_nll"]) == (not begin)
    assert without[0]["nll"] == records[0]["nll"] and without[0]["short_tokens"] == 64


@pytest.mark.parametrize(
    ("short", "long"), [(256, 2048), (512, 4096), (512, 5000), (4096, 131072), (8, 64), (100, 101)]
)
def test_bins_cover_every_position_once(short: int, long: int) -> None:
    bins = position_bins(short, long)
    assert [start for start, _ in bins] == [0, *(end for _, end in bins[:-1])]
    assert bins[-1][1] == long
    assert all(end > start for start, end in bins)


def test_bins_have_the_positions_that_extension_is_judged_by() -> None:
    assert {(256, 512), (2048, 4096)} <= set(position_bins(512, 4096))
    assert {(128, 256), (1024, 2048)} <= set(position_bins(256, 2048))


@pytest.mark.parametrize(
    ("hits", "samples", "low", "high"),
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilsons_interval_is_the_published_one(hits: int, samples: int, low: float, high: float) -> None:
    got = wilson(hits, samples)
    assert (got.low, got.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def test_the_bootstrap_agrees_with_the_normal_interval_on_many_units() -> None:
    x = np.random.default_rng(0).normal(3, 2, 400)
    got = weighted_mean(x.tolist(), [1.0] * 400)
    half = 1.96 * x.std(ddof=1) / 20
    assert got.value == pytest.approx(x.mean())
    assert (got.low, got.high) == (pytest.approx(x.mean() - half, abs=0.03), pytest.approx(x.mean() + half, abs=0.03))


def test_long_documents_weigh_more() -> None:
    assert weighted_mean([10.0, 300.0], [10, 100]).value == pytest.approx(310 / 110)


def test_pairing_sees_a_difference_that_the_spread_of_documents_hides() -> None:
    documents = np.random.default_rng(1).normal(3, 2, 30)
    found = paired_difference((documents + 0.05).tolist(), documents.tolist())
    assert found.low > 0 and found.value == pytest.approx(0.05)
