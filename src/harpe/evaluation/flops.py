"""Floating-point operations of reading tokens, counted from a model's own shapes.

A token costs two operations for every weight of a matrix that it is multiplied by (of experts, as many as it is sent
to), and in every attention layer 2 H (D_k + D_v) for each token that it sees, itself included: H query heads, D_k
dimensions of a query, D_v of a value. Products that a causal mask or a window throws away are not counted: no kernel
needs to form them.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from harpe.models.geometry import sliding_layers, text_config

SLIDING = "sliding_attention"


@dataclass(frozen=True)
class ReadingCost:
    """What tokens cost, by where they stand."""

    matrices: int
    """Operations of a token in all matrices of the decoder."""
    pair: int
    """Operations of an attention layer for one token and one that it sees."""
    windows: tuple[int | None, ...]
    """By layer, how many tokens a token sees at most, itself included; None: all before it."""
    head: int
    """Operations of the logits of one position."""

    def reading(self, start: int, end: int) -> int:
        """Operations to read the tokens at positions start .. end - 1 after those in the key/value cache."""
        pairs = sum(_seen(end, window) - _seen(start, window) for window in self.windows)
        return (end - start) * self.matrices + pairs * self.pair


def _seen(length: int, window: int | None) -> int:
    """Pairs of a token and one that it sees, among the first `length` tokens."""
    full = length if window is None else min(length, window)
    return full * (full + 1) // 2 + (length - full) * (window or 0)


def reading_cost(model: PreTrainedModel) -> ReadingCost:
    """The costs of a decoder with softmax attention."""
    config, matrices = text_config(model.config), 0
    for module in model.get_decoder().modules():
        if isinstance(module, nn.Embedding):
            continue
        for weight in module.parameters(recurse=False):
            if weight.dim() == 2:
                matrices += 2 * weight.numel()
            elif weight.dim() == 3:  # experts, one above the other
                matrices += 2 * weight.numel() * config.num_experts_per_tok // weight.shape[0]
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    keys, values = (getattr(config, name, None) or size for name in ("qk_head_dim", "v_head_dim"))
    types = (
        getattr(config, "layer_types", None) or [SLIDING if sliding_layers(config) else ""] * config.num_hidden_layers
    )
    windows = tuple(config.sliding_window if kind == SLIDING and config.sliding_window else None for kind in types)
    logits = model.get_output_embeddings().weight.numel()
    return ReadingCost(matrices, 2 * config.num_attention_heads * (keys + values), windows, 2 * logits)
