"""A model's geometry from its configuration, and the refusals that belong to it. No weights are read."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

from harpe.errors import HarpeError
from harpe.methods.types import ModelGeometry

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""`model_type`s whose rotary layout and hooks are tested."""


def check_family(config: PreTrainedConfig, name: str) -> dict[str, Any]:
    """The rope parameters of a model that harpe can change; raises HarpeError for all others, with the reason."""
    kind = config.model_type
    rope = getattr(config, "rope_parameters", None)
    if not rope or not isinstance(rope, dict) or getattr(config, "alibi", False):
        raise HarpeError(
            f"{name} (model type {kind}) has no rotary position embedding (RoPE), so there are no bases to change. "
            "Choose a model with RoPE, such as Llama, Mistral or Qwen."
        )
    if rope.get("rope_type") == "harpe":
        raise HarpeError(f"{name} already has one RoPE base per head: it was extended by harpe. Extend the original checkpoint instead.")
    if kind not in FAMILIES:
        raise HarpeError(f"{name} has the model type {kind}; supported are {', '.join(FAMILIES)}.")
    return rope


def read_geometry(config: PreTrainedConfig, name: str, original_length: int | None = None) -> ModelGeometry:
    """Geometry of a decoder.

    Parameters
    ----------
    name
        What messages call the model.
    original_length
        The trained context, where it is not `max_position_embeddings`.
    """
    rope = check_family(config, name)
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    declared = rope.get("original_max_position_embeddings") or config.max_position_embeddings
    trained = original_length if original_length is not None else declared
    if trained < 2:
        raise HarpeError(f"The trained context of {name} is {trained} tokens; give the real one with --original-length.")
    base = rope.get("rope_theta")
    if base is None:
        raise HarpeError(f"The configuration of {name} names no RoPE base (rope_theta); add it to its config.json.")
    return ModelGeometry(
        model_type=config.model_type,
        layers=config.num_hidden_layers,
        query_heads=heads,
        key_value_heads=config.num_key_value_heads or heads,
        head_dim=head_dim,
        rotary_dim=int(head_dim * rope.get("partial_rotary_factor", 1.0)),
        original_length=int(trained),
        base=float(base),
        vocabulary=config.vocab_size,
    )


def sliding_layers(config: PreTrainedConfig) -> int:
    """How many layers attend to a sliding window only."""
    if not getattr(config, "sliding_window", None):
        return 0
    types = getattr(config, "layer_types", None)
    return config.num_hidden_layers if types is None else sum("sliding" in kind for kind in types)


def check_sliding_window(config: PreTrainedConfig, name: str, length: int, policy: str) -> str | None:
    """Refuse a model none of whose layers can see `length` tokens; `policy` "off" lets the window be removed.

    Returns a sentence for the plan where a window stays or goes, else None.
    """
    if policy not in ("keep", "off"):
        raise HarpeError(f"--sliding-window is {policy}; choose keep or off.")
    count, window = sliding_layers(config), getattr(config, "sliding_window", None)
    if not count or not window or window >= length:
        return None
    if policy == "off":
        return f"The sliding window of {window} tokens is removed from {count} layers (--sliding-window off)."
    if count == config.num_hidden_layers:
        raise HarpeError(
            f"Every layer of {name} attends to a sliding window of {window} tokens, shorter than the target of {length}: a longer "
            "context could not be seen. Give --sliding-window off to attend to everything."
        )
    return f"{count} of {config.num_hidden_layers} layers keep their sliding window of {window} tokens."
