"""Texts on their way into the verbs: which are long enough, what is said of the rest, and what is written down of how
they were read."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import harpe
from harpe.data import tokenised
from harpe.data.packed import PackedDataset
from harpe.errors import HarpeError
from harpe.files import read_json
from harpe.models.load import load_tokenizer
from harpe.reporter import Reporter
from harpe.runs import foretell, texts
from harpe.runs.texts import held_out_texts, packed, training_ids

DENSE = "𐌰𐌱𐌲𐌳𐌴 𐌵𐌶𐌷 " * 30  # Gothic letters are in no vocabulary here: four tokens each


class Listening(Reporter):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def test_a_text_with_more_tokens_than_characters_is_long_enough(tmp_path: Path) -> None:
    tokenizer = load_tokenizer("embedded")
    length = len(DENSE) + 50
    assert len(tokenizer(DENSE).input_ids) > length
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in ("short", DENSE, "plain words " * 20))
    )
    said: list[str] = []
    held_out = held_out_texts(str(tmp_path), tokenizer, length, 4, say=said.append)
    assert held_out.documents == [tokenizer(DENSE).input_ids]
    assert held_out.read["too_short"] == 2
    assert "2 have no more than" in said[0] and "3 documents (3 .jsonl)" in said[0]


def test_what_was_passed_over_stands_in_the_refusal_for_want_of_long_texts(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("short")
    (tmp_path / "b.docx").write_text("long")
    with pytest.raises(HarpeError, match=r"no document of more than 100 tokens.*Passed over: 1 \.docx"):
        held_out_texts(str(tmp_path), load_tokenizer("embedded"), 100, 4)


@pytest.mark.parametrize("first", ["dense", "plain"])
def test_what_is_foretold_from_characters_refuses_nothing_that_is_enough(workspace: Path, first: str) -> None:
    # half of the tokens are in a hundredth of the documents, which no sample has to meet
    plain, dense = ["word " * 40] * 300, [DENSE * 12] * 3
    rows = [*dense, *plain] if first == "dense" else [*plain, *dense]
    (workspace / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    tokenizer = load_tokenizer(str(workspace / "model"))
    long = len(tokenizer(DENSE * 12).input_ids)
    told = Listening()
    harpe.prepare(
        str(workspace / "rows.jsonl"),
        str(workspace / "model"),
        256,
        workspace / first,
        upsample_factor=2.0,
        upsample_length=long - 5,
        tokens=long,
        reporter=told,
    )
    assert "Read: 303 documents (303 .jsonl) of 1 file (1 .jsonl)." in told.said
    index = read_json(workspace / first / "index.json")
    assert index["sources"][0]["long_documents"] == 3
    assert index["read"]["documents"] == {".jsonl": 303}


def test_pieces_of_a_source_are_spread_over_it() -> None:
    pieces = foretell._Pieces()
    for letter in "abcdefghij":
        pieces.add(letter * 1_000_000)
    counts = {letter: sum(letter in piece for piece in pieces._pieces) for letter in "abcdefghij"}
    assert len(pieces._pieces) <= foretell.PIECES
    assert min(counts.values()) >= 0.8 * max(counts.values()) > 0


def test_embedded_files_are_taken_until_there_are_the_tokens_however_many_characters_a_token_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(texts, "text_ids", lambda _, text: [0] * (len(text) // 40))
    files = texts._some(texts.training_files(), 5000, load_tokenizer("embedded"))
    assert sum(len(file.text) // 40 for file in files) >= 5000
    monkeypatch.undo()
    assert len(texts._some(texts.training_files(), 5000, load_tokenizer("embedded"))) < len(files)


@pytest.mark.parametrize("split", [True, False])
def test_how_special_tokens_were_read_is_written_down_and_checked_where_prepared_texts_are_trained_on(
    workspace: Path, split: bool
) -> None:
    end = load_tokenizer(str(workspace / "model")).eos_token
    (workspace / "spelling").mkdir()
    text = f"one two three {end} four five six. " * 20
    (workspace / "spelling" / "a.jsonl.gz").write_bytes(
        gzip.compress((json.dumps({"text": text}) + "\n").encode() * 30)
    )
    told = Listening()
    where: dict[str, Any] = {"data": str(workspace / "spelling"), "model": str(workspace / "model")}
    folder = harpe.prepare(**where, length=128, out=workspace / "p", split_special_tokens=split, reporter=told)
    assert any("30 documents spell special tokens" in line for line in told.said)
    data = PackedDataset(folder)
    assert data.index["read"]["split_special_tokens"] is data.index["options"]["split_special_tokens"] is split
    eos = load_tokenizer(str(workspace / "model")).eos_token_id
    assert (sum(list(ids).count(eos) > 1 for ids in data.documents()) > 0) is not split
    where["data"] = str(folder)
    with pytest.raises(HarpeError, match=f"prepared with --split-special-tokens {str(split).lower()}"):
        harpe.extend(
            **where, length=128, out=workspace / "run", split_special_tokens=not split, tokens=256, dtype="float32"
        )


def test_texts_that_were_tokenised_before_a_refusal_are_not_taken_for_another_reading_of_special_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenised, "PART_CHARACTERS", 1)
    tokenizer = load_tokenizer("embedded")
    data = tmp_path / "a.jsonl"
    data.write_text("".join(json.dumps({"text": f"{n} {tokenizer.eos_token} words"}) + "\n" for n in range(40)))
    with pytest.raises(HarpeError, match="one sequence needs 100000"):
        packed(tmp_path / "run", str(data), tokenizer, 100_000)
    with pytest.raises(HarpeError, match="split_special_tokens: True there, False now"):
        packed(tmp_path / "run", str(data), tokenizer, 16, split_special_tokens=False)
    assert (
        packed(tmp_path / "run", str(data), tokenizer, 16).hash == packed(tmp_path / "2", str(data), tokenizer, 16).hash
    )


def test_heads_and_tables_are_not_looked_for_in_ids_of_another_tokenizer(tmp_path: Path) -> None:
    words = [f"w{n}" for n in range(40)]
    first, second = _of_words(words), _of_words(words[::-1])  # each id is in both, and another word
    (tmp_path / "a.txt").write_text(" ".join(words))
    made = packed(tmp_path / "made", str(tmp_path / "a.txt"), first, 8)
    ids, _ = training_ids(str(made.path), first, "text", 0)
    assert first.decode(next(ids)) == " ".join(words)
    with pytest.raises(HarpeError, match="was prepared with another tokenizer"):
        training_ids(str(made.path), second, "text", 0)


def _of_words(words: list[str]) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, words[0]))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend)
