"""Put Self-Extend, ReRoPE or dual chunk attention into a loaded model, and take it out again."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from harpe.errors import HarpeError
from harpe.methods.types import Remapped, ReRoPE
from harpe.models.families import find_family
from harpe.models.geometry import changed_layers, text_config
from harpe.models.per_head import key_value_heads
from harpe.models.remapped_attention import (
    NAME,
    NAMES,
    attention_entry,
    attention_of,
    clear_steps,
    enforce,
    layer_steps,
    register,
    turn,
)

_PROBE = "harpe_probe"
_BEFORE = "_harpe_attention_before"


def apply_attention(model: PreTrainedModel, attention: Remapped | None) -> PreTrainedModel:
    """Change the attention of a loaded model in place, or give it back its own (None); returns the same object.

    The configuration keeps it as `harpe_attention`, so that `harpe.models.load.load_model` puts it into force again. It
    also names the attention in `attn_implementation`: transformers without harpe stops there instead of loading a stock
    model.

    Raises HarpeError where q and k do not reach the attention as rotations of what they are at position 0, so that they
    cannot be turned further.
    """
    register()
    clear_steps()
    config: Any = text_config(model.config)
    if attention is None:
        if getattr(config, "harpe_attention", None) is not None:
            del config.harpe_attention
            config.__dict__.pop("attn_implementation", None)
            config._attn_implementation_internal = getattr(
                model, _BEFORE, None
            ) or model.get_correct_attn_implementation(None)
        return model
    if config._attn_implementation != NAME:
        setattr(model, _BEFORE, config._attn_implementation)
    if isinstance(attention, ReRoPE):
        layers, count = config.num_hidden_layers, key_value_heads(config)
        if len(attention.heads) != layers or any(set(row) - set(range(count)) for row in attention.heads):
            raise HarpeError(f"The heads of {attention} do not fit {layers} layers with {count} key/value heads each.")
    if any("chunked" in kind for kind in getattr(config, "layer_types", None) or []):
        raise HarpeError(f"{NAMES} do not go with the chunked layers of a {config.model_type}.")
    _check_rotation(model, config)
    config.harpe_attention = attention_entry(attention)
    enforce(config)
    return model


def restore_attention(model: PreTrainedModel) -> PreTrainedModel:
    """Put the attention that a loaded model's configuration asks for into force, if any; returns the same object."""
    attention = attention_of(text_config(model.config))
    return model if attention is None else apply_attention(model, attention)


@torch.no_grad()
def _check_rotation(model: PreTrainedModel, config: Any) -> None:
    """Run two tokens at two places with an attention that returns zeros: q and k must differ by a rotation alone."""
    if model.device.type == "meta":
        return
    family, changed = find_family(config), set(changed_layers(config))
    runs: list[dict[int, tuple[torch.Tensor, torch.Tensor]]] = []

    def probe(
        module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        runs[-1][module.layer_idx] = (query, key)
        return query.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[3]), None

    AttentionInterface.register(_PROBE, probe)
    AttentionMaskInterface.register(_PROBE, sdpa_mask)
    before, training = config._attn_implementation, model.training
    config._attn_implementation_internal = _PROBE
    model.eval()
    places = torch.tensor([[0, 0], [11, 1009]], device=model.device)
    try:
        for place in places:
            runs.append({})
            inputs = torch.tensor([[3, 5]], device=model.device)
            model(input_ids=inputs, attention_mask=torch.ones_like(inputs), position_ids=place[None], use_cache=False)
    finally:
        config._attn_implementation_internal = before
        model.train(training)
    still, moved = runs
    if len(still) != config.num_hidden_layers:
        raise HarpeError(
            f"The attention of a {config.model_type} cannot be exchanged: {len(still)} of {config.num_hidden_layers} "
            "layers ask."
        )
    for layer in sorted(changed):
        steps = layer_steps(config, layer).to(model.device)
        for at_zero, at_place in zip(still[layer], moved[layer], strict=True):
            wanted = turn(at_zero, places[1:], steps, family.layout).float()
            if (at_place.float() - wanted).norm() > 0.03 * wanted.norm():
                raise HarpeError(
                    f"Layer {layer} of this {config.model_type} does more to queries or keys than to rotate them (such "
                    f"as a norm after the rotation): {NAMES} cannot change its positions. Use another method."
                )
