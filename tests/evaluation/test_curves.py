"""Prefix curves and sliding windows against separate forward passes, a naive loop, and YaRN's way written out."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from harpe.errors import HarpeError
from harpe.evaluation.perplexity.curves import (
    document_losses,
    perplexity,
    prefix_curve,
    prefix_losses,
    prefix_record,
    prefix_totals,
    window_curve,
    window_totals,
)


def ids_of(count: int, seed: int = 0) -> list[int]:
    return torch.randint(1, 97, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def stock_loss(model: Any, ids: list[int], scored: int) -> float:
    """Sum of the losses of the last `scored` tokens, by the model's own loss."""
    labels = torch.tensor([ids])
    labels[:, : len(ids) - scored] = -100
    with torch.inference_mode():
        return float(model(input_ids=torch.tensor([ids]), labels=labels, use_cache=False).loss) * scored


def test_one_pass_gives_what_separate_forwards_give_at_64_lengths(make_tiny: Any) -> None:
    model, ids = make_tiny("llama"), ids_of(200)
    lengths = [int(n) for n in np.linspace(3, 200, 64)]
    sums, counts = prefix_totals(document_losses(model, ids, prefill=64, logits=17), lengths)
    for length, total, count in zip(lengths, sums, counts, strict=True):
        assert count == length - 1
        assert total == pytest.approx(stock_loss(model, ids[:length], length - 1), rel=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize(("prefill", "logits"), [(1, 1), (7, 3), (64, 1000), (1000, 10)])
def test_pieces_of_prefill_and_logits_change_nothing(make_tiny: Any, family: str, prefill: int, logits: int) -> None:
    model, ids = make_tiny(family), ids_of(90, 1)
    whole = document_losses(model, ids, prefill=1000, logits=1000)
    assert len(whole) == 89
    np.testing.assert_allclose(document_losses(model, ids, prefill=prefill, logits=logits), whole, rtol=2e-5, atol=1e-6)


def test_a_sliding_window_of_the_model_holds_across_pieces(make_tiny: Any) -> None:
    model, ids = make_tiny("mistral", sliding_window=20), ids_of(90, 2)
    np.testing.assert_allclose(
        document_losses(model, ids, prefill=11), document_losses(model, ids), rtol=2e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("length", "window", "stride"), [(50, 16, 4), (49, 16, 15), (64, 16, 5), (10, 16, 4), (33, 16, 1)]
)
def test_windows_score_every_token_once_as_a_naive_loop_does(
    make_tiny: Any, length: int, window: int, stride: int
) -> None:
    """The naive loop asks for one token at a time, from the first window that holds it behind another token."""
    model, ids = make_tiny("llama"), ids_of(length, 3)
    totals = window_totals(model, ids, window, stride)
    expected = []
    for position in range(1, length):
        begin = next(b for b in range(0, length, stride) if b < position < b + window)
        expected.append(stock_loss(model, ids[begin : position + 1], 1))
    assert sum(n for _, n in totals) == length - 1
    place = 0
    for total, count in totals:
        assert total == pytest.approx(sum(expected[place : place + count]), rel=1e-5)
        place += count


def yarn(model: Any, documents: list[list[int]], bos: int, max_length: int, stride: int, truncate: bool) -> float:
    """Perplexity in the way of YaRN's script: its windows, its labels, a mean of means."""
    width, losses = max_length - 1, []
    for document in documents:
        ids = document[:width] if truncate else document
        previous = 0
        for begin in range(0, len(ids), width if truncate else stride):
            end = min(begin + width, len(ids))
            part = [bos, *ids[begin:end]]
            losses.append(stock_loss(model, part, end - previous) / (end - previous))
            previous = end
            if end == len(ids):
                break
    return math.exp(np.mean(losses))


def test_yarns_averages_are_those_of_its_script(make_tiny: Any) -> None:
    model, documents = make_tiny("llama"), [ids_of(n, n) for n in (100, 61, 75)]
    curve = prefix_curve(
        [prefix_record(prefix_losses(model, [0, *ids], [20, 40, 80]), [20, 40, 80]) for ids in documents],
        [20, 40, 80],
        "yarn",
    )
    for point in curve["points"]:
        assert point["perplexity"] == pytest.approx(
            yarn(model, documents, 0, point["length"], 0, truncate=True), rel=1e-5
        )
    totals = [t for document in documents for t in window_totals(model, document, 24, 8, begin=(0,))]
    got = perplexity([s for s, _ in totals], [n for _, n in totals], "yarn")
    assert got == pytest.approx(yarn(model, documents, 0, 24, 8, truncate=False), rel=1e-5)
    weighted = perplexity([s for s, _ in totals], [n for _, n in totals], "tokens")
    assert weighted != pytest.approx(got, rel=1e-3)


def test_a_stride_that_would_skip_tokens_is_refused(make_tiny: Any) -> None:
    for stride, begin in ((0, ()), (8, ()), (9, ()), (8, (0,)), (7, (0, 1))):
        with pytest.raises(HarpeError, match="stride"):
            window_totals(make_tiny("llama"), ids_of(30), 8, stride, begin)


@pytest.mark.parametrize("begin", [(), (5,), (5, 6)])
def test_every_token_of_a_text_is_scored_once_whatever_windows_begin_with(
    make_tiny: Any, begin: tuple[int, ...]
) -> None:
    """Behind one BOS the windows end where they do without one, so that the same windows score the same tokens."""
    model, ids = make_tiny("llama"), ids_of(50)
    text = ids[len(begin[:1]) :]
    totals = window_totals(model, text, 16, 7, begin)
    assert sum(n for _, n in totals) == len(ids) - 1
    if len(begin) < 2:
        assert [n for _, n in totals] == [n for _, n in window_totals(model, ids, 16, 7)]
    for number, (total, scored) in enumerate(totals):
        window = [*begin, *text[7 * number : 7 * number + 16 - len(begin)]]
        assert total == pytest.approx(stock_loss(model, window, scored), rel=1e-5)


def test_long_documents_have_at_most_64_bins_of_windows_and_every_token_in_one() -> None:
    rng = np.random.default_rng(0)
    counts = [[9, *[5] * 149, 3], [9, *[5] * 70]]
    records = [{"nll": (rng.random(len(n)) * n).tolist(), "tokens": n} for n in counts]
    found = window_curve(records, 10, 5, "tokens", 0)
    bins = found["positions"]
    assert len(bins) == 51 and [b["start"] for b in bins[:3]] == [0, 20, 35]  # three windows a bin
    assert all(a["end"] == b["start"] for a, b in pairwise(bins))
    assert sum(b["tokens"] for b in bins) == found["tokens"] == sum(map(sum, counts))
    total = sum(b["nll"] * b["tokens"] for b in bins)
    assert total == pytest.approx(sum(sum(r["nll"]) for r in records))
    assert [b["documents"] for b in bins] == [2] * 24 + [1] * 27
    assert bins[24]["nll"] == pytest.approx(sum(records[0]["nll"][72:75]) / 15)
