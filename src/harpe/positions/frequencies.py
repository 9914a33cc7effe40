"""Bases checked, and their inverse frequencies, one row per key/value head, always in float64.

RoPE (Su et al. 2021, arXiv 2104.09864) rotates pair i of a head's D rotary dimensions at position m by the angle m *
b^(-2i/D), i = 0 .. D/2 - 1. HARPE (Lian et al. 2024, arXiv 2412.07171) gives head h its own base b_h. Under
grouped-query attention a base belongs to a key/value head, and the query heads of its group share it: rotating q and
the shared k with different bases would make scores depend on absolute position.

Shapes: H key/value heads, D rotary dimensions, B batch, S positions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from harpe.errors import HarpeError
from harpe.positions.phases import base_frequencies


def check_bases(bases: Sequence[float], heads: int | None = None, option: str = "--bases") -> tuple[float, ...]:
    """The bases as floats, after checking that each is finite and above 1 and that there is one for every key/value
    head.

    Raises HarpeError naming the offending base, or the number of heads, and the option.
    """
    values = tuple(float(base) for base in bases)
    for position, base in enumerate(values):
        if not math.isfinite(base) or base <= 1:
            raise HarpeError(f"Base {position} in {option} is {base}; a RoPE base must be a finite number above 1.")
    if heads is not None and len(values) != heads:
        raise HarpeError(
            f"{option} has {len(values)} bases, but the model has {heads} key/value heads; give one base for each of "
            "them."
        )
    return values


def inverse_frequencies(bases: Sequence[float], rotary_dim: int) -> torch.Tensor:
    """theta[h, i] = b_h^(-2i/D): float64 [H, D/2] on the CPU."""
    if rotary_dim < 2 or rotary_dim % 2:
        raise HarpeError(
            f"The rotary dimension is {rotary_dim}; RoPE turns pairs, so it must be an even number of at least 2."
        )
    return torch.tensor(base_frequencies(bases, rotary_dim), dtype=torch.float64, device="cpu")
