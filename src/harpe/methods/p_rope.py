"""p-RoPE: the fastest pairs turn, the others do not (Barbero et al. 2024, "Round and round we go! What makes rotary
positional encodings useful?", arXiv 2410.06205), for all heads or with a share of every head's own."""

from __future__ import annotations

import math
from collections.abc import Sequence

from harpe.errors import HarpeError
from harpe.methods.types import (
    AttentionFactor,
    LengthScale,
    Stage,
    check_bases,
    check_unscaled,
    table_encoding,
    with_factors,
)
from harpe.positions.geometry import ModelGeometry


def p_rope(
    geometry: ModelGeometry,
    length: int,
    *,
    share: float | Sequence[float] = 0.75,
    base: float | None = None,
    attention_factor: AttentionFactor | None = None,
    length_scale: LengthScale | None = None,
) -> list[Stage]:
    """The floor(p D / 2) fastest pairs of a head's D rotary dimensions turn, the slower ones keep one angle at all
    distances: no position is new to them.

    Parameters
    ----------
    share
        p, from 0 to 1: of all heads, which is the control, or one for every key/value head.
    base
        Of the pairs that turn, instead of the trained one.
    """
    check_unscaled(geometry, "p-rope")
    shares = [float(share)] * geometry.key_value_heads if isinstance(share, int | float) else list(share)
    if len(shares) != geometry.key_value_heads:
        raise HarpeError(
            f"p-rope has {len(shares)} shares, and the model has {geometry.key_value_heads} key/value heads: give one "
            "for each of them, or one for all."
        )
    for value in shares:
        if not 0 <= value <= 1:
            raise HarpeError(f"p-rope has the share {value:g}; it is the part of the pairs that turn, from 0 to 1.")
    (theta,) = check_bases((geometry.base if base is None else base,), option="base")
    pairs = geometry.rotary_dim // 2
    turning = [math.floor(value * pairs + 1e-9) for value in shares]  # 0.29 of 100 pairs are 29
    table = [[theta ** (-i / pairs) if i < count else 0.0 for i in range(pairs)] for count in turning]
    encoding = with_factors(table_encoding([table], geometry), attention_factor, length_scale, geometry, length)
    fewest, most = min(turning), max(turning)
    note = f"{fewest if fewest == most else f'{fewest} to {most}'} of {pairs} pairs turn"
    return [Stage(encoding, length, share=1.0, note=note)]
