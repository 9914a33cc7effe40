"""A random checkpoint with its tokenizer, and texts, in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harpe.models.load import load_tokenizer, save_checkpoint


@pytest.fixture
def workspace(make_tiny: Any, tmp_path: Path) -> Path:
    """`model` (random Qwen3, grouped queries, context 64) and `texts` (prose of repeated words)."""
    tokenizer = load_tokenizer("embedded")
    model = make_tiny("qwen3", vocab_size=len(tokenizer), max_position_embeddings=64)
    save_checkpoint(model, tokenizer, tmp_path / "model", 64)
    (tmp_path / "texts").mkdir()
    for i in range(6):
        words = " ".join(f"the quick brown fox number {n % (7 + i)} jumps over the lazy dog." for n in range(400))
        (tmp_path / "texts" / f"{i}.txt").write_text(words)
    return tmp_path
