"""Configurations of published models, without their files."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama-2-7B": ("llama", {"vocab_size": 32000, "intermediate_size": 11008, "num_key_value_heads": 32}),
    "Llama-3.1-8B": ("llama", {"vocab_size": 128256, "intermediate_size": 14336, "num_key_value_heads": 8}),
    "Qwen3-0.6B": (
        "qwen3",
        {
            "vocab_size": 151936,
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "tie_word_embeddings": True,
        },
    ),
    "Qwen3-8B": (
        "qwen3",
        {
            "vocab_size": 151936,
            "intermediate_size": 12288,
            "num_hidden_layers": 36,
            "num_key_value_heads": 8,
            "head_dim": 128,
        },
    ),
}
USUAL = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "max_position_embeddings": 2**20}


def config_of(name: str) -> PreTrainedConfig:
    kind, shape = SHAPES[name]
    found: PreTrainedConfig = AutoConfig.for_model(kind, **{**USUAL, **shape})
    return found
