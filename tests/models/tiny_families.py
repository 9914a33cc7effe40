"""A tiny random model of every family that is tested."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

MOE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
LAYERED = {"num_hidden_layers": 4, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"] * 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "mixtral": {**MOE, "sliding_window": None},
    "qwen2": {},
    "qwen3": {},
    "qwen3_moe": {**MOE, "norm_topk_prob": True},
    "gemma": {},
    "gemma2": {**LAYERED, "query_pre_attn_scalar": 16},
    "gemma3_text": {**LAYERED, "query_pre_attn_scalar": 16},
    "olmo2": {},
    "olmo3": LAYERED,
    "phi": {},
    "phi3": {"sliding_window": None},
    "smollm3": {"no_rope_layers": [1, 0], "use_sliding_window": False},
    "granite": {},
    "cohere": {},
    "glm": {},
    "stablelm": {},
    "gpt_neox": {"num_key_value_heads": None},
    "starcoder2": {"sliding_window": None},
    "nemotron": {},
    "gpt_oss": {**MOE, **LAYERED, "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}},
    "arcee": {},
    "bitnet": {},
    "ernie4_5": {},
    "glm4": {},
    "granitemoe": MOE,
    "helium": {},
    "hunyuan_v1_dense": {},
    "nanochat": {},
    "olmo": {},
    "olmoe": MOE,
    "seed_oss": {},
}
"""Settings beside those that all families share, by model type."""
REPRESENTATIVES = ("llama", "gemma3_text")
"""What is expensive is tried on a plain family and on one with layers of two kinds."""


def tiny_config(family: str, **changes: Any) -> Any:
    values = {
        "vocab_size": 97,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "initializer_range": 0.1,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "attention_dropout": 0.0,
        **FAMILIES.get(family, {}),
        **changes,
    }
    return AutoConfig.for_model(
        family, **{key: value for key, value in values.items() if value is not None or key == "sliding_window"}
    )


def tiny(family: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random float32 model with weights large enough that attention is not flat."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(family, **changes), dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    return model


def heads_of(model: PreTrainedModel) -> int:
    """Key/value heads."""
    config = model.config.get_text_config()
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)


def bases_of(model: PreTrainedModel) -> list[float]:
    """Bases that differ by head, from 5,000 to 70,000."""
    count = heads_of(model)
    return [5_000.0 + 65_000.0 * head / max(count - 1, 1) for head in range(count)]
