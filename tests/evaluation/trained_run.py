"""A run directory with a model and the texts that it was trained on, and the overlap with them by sets of tuples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from harpe.data.packed import PackedDataset
from harpe.data.packing import prepare
from harpe.data.rows import Document
from harpe.files import write_json
from harpe.models.load import load_model, load_tokenizer, save_checkpoint


def trained_run(run: Path, texts: Sequence[str], seed: int | None = None) -> tuple[Path, PackedDataset]:
    """The folder of a model in `run` (of a comparison where a seed is given) and its packed training data, one document
    a text."""
    tokenizer = load_tokenizer("embedded")
    folder = run / "harpe" if seed is None else run / "harpe" / f"seed-{seed}"
    (folder / "stage-1").mkdir(parents=True)
    save_checkpoint(load_model("embedded"), tokenizer, folder / "model", 512)
    write_json(run / "plan.json", {})
    place = run / "data" / "64" if seed is None else run / "data" / f"seed-{seed}" / "64"
    documents = [Document(str(i), text) for i, text in enumerate(texts)]
    return folder / "model", prepare(documents, tokenizer, 64, place, seed=0, description="texts")


def check(found: dict[str, Any], prompts: Sequence[str], data: PackedDataset) -> None:
    """That an entry `overlap` says of the prompts what sets of 13-grams say, which is neither nothing nor all."""
    stream = [i for k in range(len(data)) for i in data[k]["input_ids"].tolist()]
    there = {tuple(stream[i : i + 13]) for i in range(len(stream) - 12)}
    hits = []
    for prompt in prompts:
        ids = load_tokenizer("embedded")(prompt, add_special_tokens=False).input_ids
        hits.append([tuple(ids[i : i + 13]) in there for i in range(len(ids) - 12)])
    assert (found["ngram"], found["training_hash"], found["training_tokens"]) == (13, data.hash, data.tokens)
    assert (found["texts"], found["grams"]) == (len(prompts), sum(map(len, hits)))
    assert found["share"] == pytest.approx(sum(map(sum, hits)) / found["grams"])
    assert 0.02 < found["share"] < 0.98
    assert found["largest_share_of_a_text"] == pytest.approx(max(sum(h) / len(h) for h in hits if h))
