"""The streamed count of n-grams against sets of tuples, with overlaps that were planted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harpe.data import overlap
from harpe.data.overlap import count_overlap
from harpe.data.packed import PackedDataset
from harpe.data.packing import prepare
from harpe.data.rows import Document
from harpe.models.load import load_tokenizer


def naive(texts: list[list[int]], stream: list[int], n: int) -> tuple[list[int], list[int]]:
    """N-grams of every text, and those that occur in the stream."""
    there = {tuple(stream[i : i + n]) for i in range(len(stream) - n + 1)}
    grams = [[tuple(text[i : i + n]) for i in range(len(text) - n + 1)] for text in texts]
    return [len(g) for g in grams], [sum(gram in there for gram in g) for g in grams]


def blocks(stream: list[int], size: int, n: int) -> list[np.ndarray]:
    return [
        np.asarray(stream[max(0, start - n + 1) : start + size], np.uint16) for start in range(0, len(stream), size)
    ]


@pytest.mark.parametrize("size", [1, 7, 100, 10_000])
def test_planted_overlaps_are_counted_as_sets_count_them(size: int) -> None:
    rng = np.random.default_rng(0)
    stream = rng.integers(0, 2000, 3000).tolist()
    texts = [rng.integers(0, 2000, 500).tolist() for _ in range(4)]
    texts[0][100:140] = stream[50:90]  # 28 of its 13-grams
    texts[1][:13] = stream[-13:]  # the last of the stream
    texts[1][200:212] = stream[300:312]  # twelve tokens are none
    texts[2] = stream[1000:1020] * 3
    texts.append([1, 2, 3])
    found = count_overlap(texts, blocks(stream, size, 13))
    assert found is not None
    grams, hits = naive(texts, stream, 13)
    assert (list(found.grams), list(found.found)) == (grams, hits)
    assert hits[:4] == [28, 1, 24, 0]
    assert found.share == sum(hits) / sum(grams)


@given(
    st.lists(st.lists(st.integers(0, 2), max_size=30), min_size=1, max_size=4),
    st.lists(st.integers(0, 2), max_size=60),
    st.integers(1, 5),
    st.integers(1, 20),
)
def test_any_texts_are_counted_as_sets_count_them(texts: list[list[int]], stream: list[int], n: int, size: int) -> None:
    found = count_overlap(texts, blocks(stream, size, n), n)
    grams, hits = naive(texts, stream, n)
    if not sum(grams):
        assert found is None
    else:
        assert found is not None and (list(found.grams), list(found.found)) == (grams, hits)


def test_hashes_that_coincide_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hash of four values: every look-up is a hit of another n-gram, which the tokens tell apart."""

    def poor(tokens: np.ndarray, ngram: int, multiplier: int) -> np.ndarray:
        count = max(len(tokens) - ngram + 1, 0)
        return (tokens[:count].astype(np.uint64) % np.uint64(4)) << np.uint64(62)

    monkeypatch.setattr(overlap, "_hashes", poor)
    rng = np.random.default_rng(1)
    stream = rng.integers(0, 50, 400).tolist()
    texts = [stream[20:23]]
    found = count_overlap(texts, blocks(stream, 64, 3), 3)
    assert found is not None and found.found == (1,)
    found = count_overlap([[99, 98, 97]], blocks(stream, 64, 3), 3)
    assert found is not None and found.found == (0,)
    with pytest.raises(ArithmeticError):
        count_overlap([[0, 1, 2, 4, 5, 6]], blocks(stream, 64, 3), 3)


def test_a_packed_data_set_is_streamed_whole(tmp_path: Path) -> None:
    tokenizer = load_tokenizer("embedded")
    documents = [
        Document(str(i), f"def f_{i}(x):\n    return [x * {i}, x + {i * i}, x ** {i + 3}]\n" * 3) for i in range(40)
    ]
    data = prepare(documents, tokenizer, 64, tmp_path / "packed")
    assert isinstance(data, PackedDataset)
    stream = np.concatenate([data[i]["input_ids"].numpy() for i in range(len(data))]).tolist()
    for size in (5, 100, 10**6):
        pieces = list(data.blocks(size, before=12))
        assert (
            np.concatenate([p[-min(size, len(stream) - i * size) :] for i, p in enumerate(pieces)]).tolist() == stream
        )
        texts = [tokenizer(d.text, add_special_tokens=False).input_ids for d in documents[:9]] + [stream[::-1]]
        found = count_overlap(texts, data.blocks(size, before=12))
        assert found is not None and (list(found.grams), list(found.found)) == naive(texts, stream, 13)
