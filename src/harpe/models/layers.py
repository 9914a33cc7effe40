"""The decoder layers of a model, and what of them works on every token alone."""

from __future__ import annotations

import inspect

from torch import nn
from transformers import PreTrainedModel

from harpe.errors import HarpeError
from harpe.models.geometry import text_config

MIXING = {"position_embeddings", "position_ids", "attention_mask", "past_key_values", "cache_params"}
"""Arguments of layers that look at several tokens: attention, convolutions, recurrences."""


def decoder_layers(model: PreTrainedModel) -> tuple[nn.Module, str]:
    """The module that holds the list of layers, and its name there.

    Raises
    ------
    HarpeError
        Where there is none.
    """
    count = text_config(model.config).num_hidden_layers
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == count:
                return module, name
    raise HarpeError(f"A {type(model).__name__} has no list of {count} layers.")


def feed_forward_layers(model: PreTrainedModel) -> list[nn.Module]:
    """What of every decoder layer has several matrices, and takes no positions, masks or caches."""
    owner, name = decoder_layers(model)
    return [
        module
        for layer in dict.fromkeys(getattr(owner, name))  # once, where several layers are one object
        for module in layer.children()
        if sum(weight.dim() > 1 for weight in module.parameters()) > 1
        and not MIXING & set(inspect.signature(module.forward).parameters)
    ]
