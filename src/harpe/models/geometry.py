"""A model's geometry from its configuration, and the refusals that belong to it. No weights are read."""

from __future__ import annotations

import inspect
from typing import Any

from transformers import PreTrainedConfig

from harpe.errors import HarpeError
from harpe.models.families import check_windows, find_family
from harpe.models.per_head import ROPE_TYPE, is_factor_alone, key_value_heads, nested_types
from harpe.models.scaling import declared, trained_with
from harpe.models.trained_base import trained_base
from harpe.positions.geometry import ModelGeometry

GLOBAL = ("full_attention", "attention")
"""Names in `layer_types` of layers that attend to everything; layers of any other type keep what they have."""


def text_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration of the text decoder: of a vision-language model its part, else the configuration itself."""
    return config.get_text_config(decoder=True)


def rope_key(config: PreTrainedConfig) -> str | None:
    """The entry of `rope_parameters` that global layers read; None: all layer types share one."""
    nested = nested_types(config)
    return next((key for key in GLOBAL if key in nested), nested[0]) if nested else None


def check_rope(config: PreTrainedConfig, name: str) -> dict[str, Any]:
    """Rope parameters of a decoder's global layers; HarpeError, with the reason, if harpe cannot change them."""
    rope = getattr(config, "rope_parameters", None)
    if not rope and any(key.startswith("rotary") for key in config.to_dict()):
        raise HarpeError(
            f"{name} (model type {config.model_type}) has rotary positions whose base stands in its code, not in its "
            "configuration (rope_parameters): harpe cannot change it. Choose a model such as Llama, Mistral or Qwen."
        )
    if not rope or not isinstance(rope, dict) or getattr(config, "alibi", False):
        raise HarpeError(
            f"{name} (model type {config.model_type}) has no rotary position embedding (RoPE), so there are no bases "
            "to change. Choose a model with RoPE, such as Llama, Mistral or Qwen."
        )
    if not _differ(config) and any(getattr(config, key, None) for key in ("kv_lora_rank", "qk_rope_head_dim")):
        raise HarpeError(
            f"{name} (model type {config.model_type}) has latent attention, in which all heads share one rotary key: "
            "there are no heads to give bases of their own. Choose a model with multi-head or grouped-query attention."
        )
    key = rope_key(config)
    if key is not None and key not in GLOBAL:
        raise HarpeError(
            f"{name} (model type {config.model_type}) has no rotary position embedding in layers that attend to "
            "everything."
        )
    entry: dict[str, Any] = rope if key is None else rope[key]
    if entry.get("rope_type") == ROPE_TYPE:
        raise HarpeError(
            f"{name} already has one RoPE base per head: it was extended by harpe. Extend the original checkpoint "
            "instead."
        )
    if "mrope_section" in entry:
        raise HarpeError(
            f"{name} (model type {config.model_type}) has positions in several dimensions (multimodal RoPE), which "
            "harpe does not extend."
        )
    return entry


def read_geometry(config: PreTrainedConfig, name: str, original_length: int | None = None) -> ModelGeometry:
    """Geometry of a decoder.

    Parameters
    ----------
    config
        Of a decoder, or of a model that has one (its text part is read).
    name
        What messages call the model.
    original_length
        The trained context, where it is not `max_position_embeddings`. For a checkpoint with a scaling of its own, the
        context before the scaling says that it was not trained with it (`harpe.models.scaling`).

    Raises
    ------
    HarpeError
        For a model without RoPE, with latent attention, with bases per head already, or of a family that cannot have
        them.
    """
    whole, config = config, text_config(config)
    rope, key = check_rope(config, name), rope_key(config)
    family = find_family(config, name)
    if _differ(config):
        raise HarpeError(
            f"{name} (model type {config.model_type}) has layers of several shapes (per_layer_config), which harpe "
            "does not extend."
        )
    changed = changed_layers(config)
    kinds = {str(kind) for kind in getattr(config, "layer_types", None) or []}
    if not changed and kinds and not any("sliding" in kind or kind in GLOBAL for kind in kinds):
        raise HarpeError(
            f"The layers of {name} (model type {config.model_type}) are of type {', '.join(sorted(kinds))}; harpe "
            f"extends those of type {GLOBAL[0]} alone, and there are none."
        )
    if not changed:
        raise HarpeError(
            f"No layer of {name} both attends to everything and has rotary positions: there are no bases to change. "
            "Where the layers have a sliding window, --sliding-window off removes it."
        )
    # as making the model does: moves an original_max_position_embeddings beside the entry into it
    config.standardize_rope_params()
    if rope.get("rope_theta") is None:
        raise HarpeError(f"The configuration of {name} names no RoPE base (rope_theta); add it to its config.json.")
    base, rope, frequencies = trained_base(config, family.rotary, rope, key, name)
    trained = trained_with(config, family.rotary, rope, frequencies, key, original_length, whole)
    if trained.length < 2:
        raise HarpeError(
            f"The trained context of {name} is {trained.length} tokens; give the real one with --original-length."
        )
    heads = config.num_attention_heads
    return ModelGeometry(
        model_type=config.model_type,
        layers=config.num_hidden_layers,
        query_heads=heads,
        key_value_heads=key_value_heads(config),
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        rotary_dim=2 * len(frequencies),
        original_length=trained.length,
        base=base,
        vocabulary=config.vocab_size,
        attention_factor=trained.attention_factor,
        trained_angles=trained.trained_angles,
        changed_layers=tuple(changed) if len(changed) < config.num_hidden_layers else None,
    )


def _differ(config: PreTrainedConfig) -> bool:
    """Whether attributes such as the number of heads differ by layer; reading one from the configuration raises."""
    return bool(getattr(config, "is_heterogeneous", False))


def changed_layers(config: PreTrainedConfig) -> list[int]:
    """Numbers of the layers whose positions a method changes: those that attend to everything and have RoPE."""
    config = text_config(config)
    types = getattr(config, "layer_types", None) or [GLOBAL[0]] * config.num_hidden_layers
    # SmolLM3: 0 marks a layer without RoPE
    rotary = getattr(config, "no_rope_layers", None) or [1] * config.num_hidden_layers
    if not isinstance(rotary, list) or len(rotary) != config.num_hidden_layers:
        rotary = [1] * config.num_hidden_layers
    return [i for i, (kind, has) in enumerate(zip(types, rotary, strict=True)) if kind in GLOBAL and has]


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
    config = text_config(config)
    count, window = sliding_layers(config), getattr(config, "sliding_window", None)
    if not count or not window:
        return None
    if policy == "off":
        note = f"The sliding window of {window} tokens is removed from {count} layers (--sliding-window off)."
        return " ".join([note, *positions_without_windows(config)])
    if count == config.num_hidden_layers:
        if window >= length:
            return None
        raise HarpeError(
            f"Every layer of {name} attends to a sliding window of {window} tokens, shorter than the target of "
            f"{length}: a longer context could not be seen. Give --sliding-window off to attend to everything."
        )
    return (
        f"{count} of {config.num_hidden_layers} layers keep their sliding window of {window} tokens and their "
        "positions."
    )


def positions_without_windows(config: PreTrainedConfig) -> list[str]:
    """A sentence where layers with a window have positions of their own, which go with it (Gemma 3); else none."""
    config = text_config(config)
    rope: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    key = rope_key(config) if rope else None
    types = sorted({kind for kind in getattr(config, "layer_types", None) or [] if "sliding" in kind and kind in rope})
    if key is None or all(rope[kind] == rope[key] for kind in types):
        return []
    own = ", ".join(f"{rope[kind].get('rope_theta')}" for kind in types)
    return [
        f"With it go their own positions (base {own}): they get those of the other layers (base "
        f"{rope[key].get('rope_theta')}), which their weights were not trained with."
    ]


def remove_window(config: PreTrainedConfig) -> None:
    """Let every layer of a configuration attend to everything, in place.

    Families that form their masks by the types of layers (Gemma, Qwen2) keep the number, without which they cannot form
    that of a window, which no layer has any more.

    Raises HarpeError where that would give RoPE to layers that have none (`check_windows`).
    """
    config = text_config(config)
    by_type = any("sliding" in kind for kind in getattr(config, "layer_types", None) or [])
    if getattr(config, "rope_parameters", None):
        family = find_family(config)
        check_windows(config, family.attentions)
        by_type = by_type and "sliding_window is None" not in inspect.getsource(family.module)
    if not by_type:
        config.sliding_window = None
    if getattr(config, "layer_types", None):
        config.layer_types = ["full_attention" if "sliding" in kind else kind for kind in config.layer_types]
    if hasattr(config, "use_sliding_window"):
        config.use_sliding_window = False


def layer_notes(config: PreTrainedConfig, geometry: ModelGeometry) -> list[str]:
    """Sentences for the plan: which layers change, and what becomes of a scaling that the checkpoint has."""
    whole, config = config, text_config(config)
    changed, rope, notes = changed_layers(config), config.rope_parameters, []
    if len(changed) < config.num_hidden_layers:
        notes.append(
            f"Positions change in {len(changed)} of {config.num_hidden_layers} layers: {', '.join(map(str, changed))}."
        )
    key = rope_key(config)
    entry = rope if key is None else rope[key]
    kind = entry.get("rope_type", "default")
    if geometry.base != entry["rope_theta"]:
        notes.append(
            f"The trained base is {geometry.base:,.0f}, from the frequencies that the rotary module computes; the "
            f"configuration names {entry['rope_theta']:,.0f} (rope type {kind})."
        )
        return notes
    if kind == "default":
        return notes
    if is_factor_alone(entry):
        notes.append(
            f"The checkpoint has one base and an attention factor, {geometry.attention_factor:.4g}, which is kept."
        )
        return notes
    values = ", ".join(
        f"{k} {v}" for k, v in entry.items() if k not in ("rope_type", "rope_theta") and not isinstance(v, list)
    )
    notes.append(f"The checkpoint's own scaling of positions, {kind} ({values}), is replaced.")
    notes += [why] if (why := declared(config, entry, whole).why) else []
    if geometry.trained_angles is None:
        notes.append(
            f"It is taken not to have been trained with: {geometry.original_length} tokens are counted as the trained "
            "context. If it was, give the context that it was trained to with --original-length."
        )
        return notes
    factor = (
        f" Its attention factor, {geometry.attention_factor:.4g}, is kept." if geometry.attention_factor != 1 else ""
    )
    notes.append(
        f"It is taken to have been trained with, to {geometry.original_length} tokens: the range is that of the angles "
        f"which the pairs came to. If it was not, give the context before it with --original-length.{factor}"
    )
    # the fastest pair turns by one radian a token in every base
    slowed = geometry.original_length / geometry.trained_angles[0]
    if slowed > 1.05:
        notes.append(
            f"The scaling had slowed the fastest pairs as well, {slowed:.3g} times, which no base can: near distances "
            f"look {slowed:.3g} times as far as in training. No range helps, it must be learned anew; a checkpoint "
            "from before the scaling is a better start."
        )
    return notes
