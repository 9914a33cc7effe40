"""Numbers on documents and sequences against loops over plain lists, and boundaries against the tokenizer itself."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from harpe.data import boundaries as of_boundaries
from harpe.data import description
from harpe.data.boundaries import boundaries
from harpe.data.description import document_lengths, sequence_layout
from harpe.data.packed import PackedDataset
from harpe.data.packing import prepare
from harpe.data.rows import Document
from harpe.data.special_tokens import reading_tokenizer
from harpe.models.load import load_tokenizer


def naive_lengths(lengths: list[int]) -> dict[str, Any]:
    total, first, last = sum(lengths), 1, 1
    while first * 2 <= min(lengths):
        first *= 2
    while last * 2 <= max(lengths):
        last *= 2
    bins = []
    while first <= last:
        inside = [n for n in lengths if first <= n < 2 * first]
        bins.append((first, 2 * first - 1, len(inside), sum(inside), sum(inside) / total))
        first *= 2
    long = []
    for bound in (4096, 32_768, 131_072):
        inside = [n for n in lengths if n >= bound]
        long.append((bound, len(inside), sum(inside), sum(inside) / total))
    return {
        "documents": len(lengths),
        "mean": total / len(lengths),
        "median": median(lengths),
        "shortest": min(lengths),
        "longest": max(lengths),
        "bins": bins,
        "long": long,
    }


def naive_layout(lengths: list[int], length: int) -> dict[str, Any]:
    """By the document of every single token."""
    stream = [document for document, n in enumerate(lengths) for _ in range(n)]
    sequences = [stream[at : at + length] for at in range(0, len(stream), length)]
    counts = [len(set(sequence)) for sequence in sequences]
    in_front = [sequence[:at].count(document) for sequence in sequences for at, document in enumerate(sequence)]
    longest = [max(sequence.count(document) for document in set(sequence)) for sequence in sequences]
    cut = [document for document in range(len(lengths)) if sum(document in s for s in sequences) > 1]
    return {
        "length": length,
        "sequences": len(sequences),
        "documents_mean": mean(counts),
        "documents_median": median(counts),
        "documents_most": max(counts),
        "single_share": counts.count(1) / len(counts),
        "cut_share": len(cut) / len(lengths),
        "longest_share": float(Fraction(sum(longest), len(stream))),
        "look_back": float(Fraction(sum(in_front), len(stream))),
        "look_back_most": mean(range(length)),
    }


def stream(lengths: list[int], length: int) -> tuple[np.ndarray, int]:
    """Starts and tokens, the last document cut so that the sequences are whole."""
    tokens = sum(lengths) // length * length
    starts = np.cumsum([0, *lengths[:-1]])
    return starts[starts < tokens].astype(np.int64), tokens


CASES = st.tuples(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(2, 24)).filter(
    lambda case: sum(case[0]) >= case[1]
)


@pytest.mark.parametrize("pieces", [(1, 2), (3, 50), (2**22, 2**26)])
@given(case=CASES)
@settings(max_examples=60, deadline=None)
def test_layout_is_that_of_a_loop_over_all_tokens(case: tuple[list[int], int], pieces: tuple[int, int]) -> None:
    starts, tokens = stream(*case)
    lengths = np.diff(starts, append=tokens).tolist()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(description, "DOCUMENTS", pieces[0])
        patch.setattr(description, "TOKENS", pieces[1])
        found = vars(sequence_layout(starts, tokens, case[1]))
    assert found == pytest.approx(naive_layout(lengths, case[1]), rel=1e-12)


@pytest.mark.parametrize("piece", [1, 3, 2**22])
@given(lengths=st.lists(st.one_of(st.integers(1, 9), st.sampled_from([4095, 4096, 32_768, 131_071, 131_072, 2**40]))))
@settings(max_examples=60, deadline=None)
def test_lengths_are_those_of_a_loop_over_the_documents(lengths: list[int], piece: int) -> None:
    lengths = lengths or [1]
    starts = np.cumsum([0, *lengths[:-1]]).astype(np.int64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(description, "DOCUMENTS", piece)
        found = vars(document_lengths(starts, sum(lengths)))
    bins, long = ([tuple(vars(row).values()) for row in found.pop(key)] for key in ("bins", "long"))
    wanted = naive_lengths(lengths)
    assert (bins, long) == (wanted.pop("bins"), wanted.pop("long"))
    assert found == pytest.approx(wanted, rel=1e-12)


def test_starts_cannot_be_changed(tmp_path: Path) -> None:
    data = packed(tmp_path / "set", load_tokenizer("embedded"), ["one two three " * 9] * 3)
    with pytest.raises(ValueError, match="read-only"):
        data.starts[0] = 1
    assert np.array_equal(data.starts, np.load(tmp_path / "set" / "documents.npy"))


# -- boundaries


def packed(folder: Path, tokenizer: Any, texts: list[str], length: int = 16) -> PackedDataset:
    documents = [Document(str(n), text) for n, text in enumerate(texts)]
    return prepare(documents, reading_tokenizer(tokenizer, True), length, folder)


def metaspace() -> PreTrainedTokenizerFast:
    """As Llama's: a word carries the space before it, which the first one of a text loses when it is decoded."""
    words = ["<s>", "</s>", "<unk>", *(f"▁w{n}" for n in range(9)), "▁</s"]
    backend = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0), ("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("name", ["byte-level", "metaspace"])
def test_a_boundary_is_the_text_of_the_tokens_around_it_with_special_tokens_apart(name: str, tmp_path: Path) -> None:
    tokenizer = metaspace() if name == "metaspace" else load_tokenizer("embedded")
    texts = [" ".join(f"w{(n * k) % 9}" for k in range(4 + 9 * n)) for n in range(1, 12)]
    data = packed(tmp_path / "set", tokenizer, texts)
    ids, starts = np.fromfile(tmp_path / "set" / "tokens.bin", "<u2").tolist(), [*data.starts.tolist(), data.tokens]
    found = boundaries(data, tokenizer)
    assert len(found) == 5 and boundaries(data, tokenizer) == found
    special = set(tokenizer.all_special_ids)
    for b in found:
        before, start, end = starts[b.document - 1 : b.document + 2]
        assert (b.token, b.sequence, b.offset) == (start, start // 16, start % 16)
        for pieces, kept in (
            (b.before, ids[max(before, start - 60) : start]),
            (b.after, ids[start : min(start + 60, end)]),
        ):
            assert "".join(p.text for p in pieces) == tokenizer.decode(kept)
            assert [p.text.strip() for p in pieces if p.special] == [
                tokenizer.decode([i]) for i in kept if i in special
            ]
            assert all(p.trained for p in pieces)


def test_text_that_spells_a_special_token_is_none(tmp_path: Path) -> None:
    tokenizer = load_tokenizer("embedded")
    end = tokenizer.eos_token
    data = packed(tmp_path / "set", tokenizer, [f"a text with {end} in it, number {n}" for n in range(3)], 8)
    special = [p.text for b in boundaries(data, tokenizer) for p in (*b.before, *b.after) if p.special]
    spelled = [p.text for b in boundaries(data, tokenizer) for p in (*b.before, *b.after) if not p.special]
    assert set(special) == {end} and any(end in text for text in spelled)


def test_pieces_are_whole_characters_where_what_is_trained_on_changes_inside_of_one(tmp_path: Path) -> None:
    tokenizer = load_tokenizer("embedded")
    data = packed(tmp_path / "set", tokenizer, [f"漢字 naïve 🚨 {n}" for n in range(6)], 8)
    targets = np.arange(data.tokens, dtype=np.uint8) % 2
    targets.tofile(tmp_path / "set" / "targets.bin")
    index = json.loads((tmp_path / "set" / "index.json").read_text())
    (tmp_path / "set" / "index.json").write_text(json.dumps({**index, "targets": int(targets.sum())}))
    ids = np.fromfile(tmp_path / "set" / "tokens.bin", "<u2").tolist()
    starts = [*data.starts.tolist(), data.tokens]
    for b in boundaries(PackedDataset(tmp_path / "set"), tokenizer):
        start, end = starts[b.document : b.document + 2]
        assert "".join(p.text for p in b.after) == tokenizer.decode(ids[start:end])
        assert {p.trained for p in b.after} == {True, False}
        assert "�" not in "".join(p.text for p in b.after[:-1])


def test_one_document_has_no_boundary_and_few_have_all_of_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer("embedded")
    assert not boundaries(packed(tmp_path / "one", tokenizer, ["a b c d e f g h i j k l m n o p q"], 8), tokenizer)
    three = packed(tmp_path / "three", tokenizer, [f"text number {n} of a few" for n in range(3)], 4)
    assert [b.document for b in boundaries(three, tokenizer)] == list(range(1, len(three.starts)))
    monkeypatch.setattr(of_boundaries, "SHOWN", 1)
    assert len(boundaries(three, tokenizer)) == 1
