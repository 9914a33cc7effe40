"""Folders that hold the splits of a data set: train is read, and what is held out is passed over and told."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from harpe.data.sources import account_text, read_documents
from harpe.errors import HarpeError


def _fill(folder: Path, *names: str) -> Path:
    """Files whose one document is their name."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"text": name}) if ".json" in name else name
        raw = gzip.compress(text.encode()) if name.endswith(".gz") else text.encode()
        (folder / name).write_bytes(raw)
    return folder


def _names(folder: Path, **options: Any) -> list[str]:
    return [document.text for document in read_documents(folder, **options)]


@pytest.mark.parametrize(
    ("read", "held"),
    [
        (["train/chunk1/example_train_0.jsonl"], ["validation/chunk1/example_holdout_0.jsonl", "test/c/e_0.jsonl"]),
        (["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl"], ["data/test-00000-of-00001.jsonl"]),
        (["en/c4-train.00000-of-01024.json.gz"], ["en/c4-validation.00000-of-00008.json.gz"]),
        (["data/train_gen-00000.jsonl", "data/train_sft-00000.jsonl"], ["data/test_sft-00000.jsonl"]),
        (["a/Train/1.jsonl", "b/train.jsonl"], ["a/Dev/1.jsonl", "b/val.jsonl"]),  # configurations with splits each
        (["train/10000.txt"], ["test/20000.txt", "validation/30000.txt"]),
        (["train.txt"], ["test.txt", "valid.txt"]),
        (["train.jsonl"], ["test/1.jsonl"]),
    ],
)
def test_what_is_held_out_beside_train_is_not_trained_on_nor_measured_by_chance(
    tmp_path: Path, read: list[str], held: list[str]
) -> None:
    _fill(tmp_path, *read, *held)
    documents = read_documents(tmp_path)
    assert [document.text for document in documents] == read
    over = documents.account()["passed_over"]
    assert sum(over.values()) == len(held) and all(" of the split " in kind for kind in over)
    with pytest.raises(HarpeError, match=r"holds the splits .* and train of a data set\. Name the one to measure on"):
        read_documents(tmp_path, to_train=False)
    for name in held:  # by its name everything is read
        assert _names(tmp_path / name) == _names(tmp_path / name, to_train=False) == [name]
    if held[0].startswith("validation/"):
        assert _names(tmp_path / "validation") == [held[0]]


def test_the_account_names_the_splits(tmp_path: Path) -> None:
    documents = read_documents(_fill(tmp_path, "train/a.jsonl", "test/a.jsonl", "test/b.jsonl", "validation/a.jsonl"))
    list(documents)
    assert account_text(documents.account()) == (
        "Read: 1 document (1 .jsonl) of 1 file (1 .jsonl). Passed over: 2 .jsonl of the split test, 1 .jsonl of the "
        "split validation."
    )


@pytest.mark.parametrize(
    "names",
    [
        ["src/training/a.py", "src/evaluation/b.py", "tests/c.py", "train/d.md", "test/e.md"],  # code
        ["test/a.jsonl", "validation/b.jsonl"],  # nothing to train on beside them
        ["train/a.jsonl", "more/b.jsonl", "train/test/c.jsonl"],
        ["math/train/a.jsonl", "code/test/b.jsonl"],  # of different folders
        ["latest.jsonl", "trains.jsonl", "contest.jsonl", "valley.jsonl", "train.jsonl"],
        ["train.jsonl", "train_test_split.jsonl"],
        ["The Great Train Robbery.txt", "A Test of Time.txt", "train to pakistan.txt", "test.of.faith.txt"],
    ],
)
def test_other_folders_are_read_whole(tmp_path: Path, names: list[str]) -> None:
    _fill(tmp_path, *names)
    for to_train in (True, False):
        documents = read_documents(tmp_path, to_train=to_train)
        assert sorted(document.text for document in documents) == sorted(names)
        assert not documents.account()["passed_over"]


def test_code_in_a_folder_of_splits_is_read_and_its_rows_are_not(tmp_path: Path) -> None:
    _fill(tmp_path, "train/a.jsonl", "test/a.jsonl", "test/code/b.py")
    assert _names(tmp_path) == ["test/code/b.py", "train/a.jsonl"]
