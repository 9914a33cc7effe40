"""Inverse frequencies and rotary tables, one row per key/value head, always built in float64.

RoPE (Su et al. 2021, arXiv 2104.09864) rotates pair i of a head's D rotary dimensions at position m by the angle
m * b^(-2i/D), i = 0 .. D/2 - 1. HARPE (Lian et al. 2024, arXiv 2412.07171) gives head h its own base b_h. Under grouped-query
attention a base belongs to a key/value head, and the query heads of its group share it: rotating q and the shared k with
different bases would make scores depend on absolute position.

Shapes: H key/value heads, D rotary dimensions, B batch, S positions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch

from harpe.errors import HarpeError


def check_bases(bases: Sequence[float], heads: int | None = None, option: str = "--bases") -> tuple[float, ...]:
    """The bases as floats, after checking that each is finite and above 1 and that there is one for every key/value head.

    Raises
    ------
    HarpeError
        Naming the offending base, or the number of heads, and the option.
    """
    values = tuple(float(base) for base in bases)
    for position, base in enumerate(values):
        if not math.isfinite(base) or base <= 1:
            raise HarpeError(f"Base {position} in {option} is {base}; a RoPE base must be a finite number above 1.")
    if heads is not None and len(values) != heads:
        raise HarpeError(f"{option} has {len(values)} bases, but the model has {heads} key/value heads; give one base for each of them.")
    return values


@lru_cache(maxsize=64)
def inverse_frequencies(bases: tuple[float, ...], rotary_dim: int) -> torch.Tensor:
    """theta[h, i] = b_h^(-2i/D): float64 [H, D/2] on the CPU. The tensor is shared: do not write to it."""
    if rotary_dim < 2 or rotary_dim % 2:
        raise HarpeError(f"The rotary dimension is {rotary_dim}; RoPE turns pairs, so it must be an even number of at least 2.")
    # the device is named: models are built under torch.device("meta"), and a meta tensor must not get into the cache
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float64, device="cpu") / rotary_dim
    return torch.tensor(bases, dtype=torch.float64, device="cpu")[:, None] ** -exponents


def rotary_tables(
    inverse_frequency: torch.Tensor, position_ids: torch.Tensor, attention_factor: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of every angle, float32 [B, H, S, D/2] on the device of `position_ids`.

    The angles are formed and turned into cos and sin in float64: in float32 the product of position and frequency is off by up
    to 3.4e-3 in cos at position 131,072.

    Parameters
    ----------
    inverse_frequency
        float64 [H, D/2].
    position_ids
        int64 [B, S], any values.
    """
    device = position_ids.device
    exact = torch.device("cpu") if device.type == "mps" else device  # Metal has no float64
    angles = position_ids.to(exact, torch.float64)[:, None, :, None] * inverse_frequency.to(exact)[None, :, None, :]
    cos, sin = angles.cos(), angles.sin()
    if attention_factor != 1.0:
        cos, sin = cos * attention_factor, sin * attention_factor
    return cos.float().to(device), sin.float().to(device)
