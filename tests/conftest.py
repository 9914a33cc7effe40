"""Things that several tests share."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for the network

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from harpe.models.load import load_tokenizer, save_checkpoint

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


def tiny_model(
    family: str, *, heads: int = 4, key_value_heads: int = 2, layers: int = 2, seed: int = 0, **changes: Any
) -> PreTrainedModel:
    """A random model of a family whose attention is not flat: initializer_range 0.1, float32."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        family,
        vocab_size=changes.pop("vocab_size", 97),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        head_dim=16,
        max_position_embeddings=changes.pop("max_position_embeddings", 512),
        initializer_range=0.1,
        tie_word_embeddings=changes.pop("tie_word_embeddings", False),
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        rope_parameters=changes.pop("rope_parameters", {"rope_type": "default", "rope_theta": 10_000.0}),
        **({"sliding_window": None} if family == "mistral" else {}) | changes,
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def make_tiny() -> Any:
    """The function that makes random models."""
    return tiny_model


@pytest.fixture(scope="session")
def harpe_data() -> Path:
    """The folder of real texts and checkpoints, where HARPE_DATA names one."""
    folder = os.environ.get("HARPE_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("HARPE_DATA names no folder with real texts and checkpoints")
    return Path(folder).absolute()


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
