"""Attention of one query a row, for models whose attention is torch's scaled_dot_product_attention.

On a CPU its kernel arranges all keys and values anew at each call, which pays for many queries and takes five times as
long as two matrix products for one. Queries that share a key/value head lie along one dimension: no copy of the keys
for each of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from harpe.models.geometry import text_config

NAME = "harpe_one_query"


def one_query_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function of transformers: query [B, H_q, 1, D], key and value [B, H_k, K, D], and a mask that is
    added, float32 [B, 1, 1, K] -> [B, 1, H_q, D]. Scores and softmax are in float32.

    Other shapes, and whatever else a model adds to its scores, are left to transformers.
    """
    if query.shape[2] != 1 or attention_mask is None or kwargs.get("position_bias") is not None or "softcap" in kwargs:
        out: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **kwargs
        )
        return out
    batch, heads, _, size = query.shape
    groups = query.to(value.dtype).reshape(batch, key.shape[1], -1, size)
    with torch.autocast(query.device.type, enabled=False):  # torch's kernel does not round scores either
        scores = groups.float() @ key.float().transpose(2, 3)
        weights = torch.softmax(scores * (size**-0.5 if scaling is None else scaling) + attention_mask, dim=-1)
    return (weights.to(value.dtype) @ value).reshape(batch, 1, heads, value.shape[3]), None


@contextmanager
def one_query(model: PreTrainedModel) -> Iterator[None]:
    """In this block, a model with torch's attention has the one of this module."""
    config: Any = text_config(model.config)
    before = config._attn_implementation
    if before == "sdpa":
        AttentionInterface.register(NAME, one_query_attention)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        config._attn_implementation_internal = NAME
    try:
        yield
    finally:
        config._attn_implementation_internal = before
