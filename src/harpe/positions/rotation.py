"""The rotation itself: q and k turned by a table per key/value head, in float32.

Shapes: B batch, H_q query heads, H key/value heads (H_q = H * G), S positions, D head dimension.
"""

from __future__ import annotations

import torch


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def rotate_per_head(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate q [B, H_q, S, D] and k [B, H, S, D] by cos and sin, float32 [B or 1, H, S, D/2].

    The layout is half-split (pair i is dimensions i and i + D/2), as in transformers' Llama. Arithmetic is float32 whatever the
    dtype of q and k, which are returned in their own. Query heads g, g + 1 … of a group share the table of their key/value head.
    """
    heads = k.shape[1]
    grouped = q.unflatten(1, (heads, q.shape[1] // heads))
    return _rotate(grouped, cos.unsqueeze(2), sin.unsqueeze(2)).flatten(1, 2), _rotate(k, cos, sin)
