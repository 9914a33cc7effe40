"""Methods that change the frequencies of all heads alike, each a stock rope type of transformers: PI, NTK, YaRN,
LongRoPE."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from harpe.bases.ranges import ntk_base
from harpe.errors import HarpeError
from harpe.methods.types import (
    AttentionFactor,
    LengthScale,
    Stage,
    check_unscaled,
    shared_encoding,
    stock_encoding,
    with_attention_factor,
    with_length_scale,
)
from harpe.positions.geometry import ModelGeometry


def scale(geometry: ModelGeometry, length: int, factor: float | None) -> float:
    """The scale s: `factor`, else target over trained length; HarpeError below 1."""
    value = length / geometry.original_length if factor is None else float(factor)
    if not 1 <= value < math.inf:
        raise HarpeError(f"The factor is {value:g}; positions are scaled by 1 or more.")
    return value


def pi(geometry: ModelGeometry, length: int, *, factor: float | None = None) -> list[Stage]:
    """Position interpolation (Chen et al. 2023, arXiv 2306.15595): all positions divided by the scale."""
    parameters = {"rope_type": "linear", "factor": scale(geometry, length, factor)}
    return [Stage(stock_encoding(parameters, geometry), length, share=1.0)]


def ntk(
    geometry: ModelGeometry,
    length: int,
    *,
    factor: float | None = None,
    attention_factor: AttentionFactor | None = None,
    length_scale: LengthScale | None = None,
) -> list[Stage]:
    """NTK-aware scaling by s: base b0 s^(d/(d-2)) (bloc97 2023; Peng et al. 2023, arXiv 2309.00071, section 3.1)."""
    check_unscaled(geometry, "NTK-aware scaling")
    s = scale(geometry, length, factor)
    base = ntk_base(geometry.base, s, geometry.rotary_dim)
    encoding = with_attention_factor(shared_encoding(base, geometry), attention_factor, geometry, s)
    return [Stage(with_length_scale(encoding, length_scale, geometry), length, share=1.0)]


def ntk_dynamic(geometry: ModelGeometry, length: int, *, factor: float | None = None) -> list[Stage]:
    """Dynamic NTK (emozilla 2023): base b0 (s n/L0 - (s-1))^(d/(d-2)) for a text of n tokens, and b0 up to L0.

    Stock type of transformers. `factor` s is the scale by default; with s = 1 the base at length n is NTK-aware's for
    n.
    """
    parameters = {"rope_type": "dynamic", "factor": scale(geometry, length, factor)}
    return [Stage(stock_encoding(parameters, geometry), length, share=1.0)]


def yarn(
    geometry: ModelGeometry,
    length: int,
    *,
    factor: float | None = None,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    attention_factor: float | None = None,
    length_scale: LengthScale | None = None,
) -> list[Stage]:
    """YaRN (Peng et al. 2023, arXiv 2309.00071): pairs with more than `beta_fast` turns in the trained context stay,
    those with fewer than `beta_slow` are interpolated, a ramp between; q and k are scaled by 0.1 ln s + 1
    (`attention_factor`)."""
    parameters: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": scale(geometry, length, factor),
        "original_max_position_embeddings": geometry.original_length,
        "beta_fast": float(beta_fast),
        "beta_slow": float(beta_slow),
    }
    if attention_factor is not None:
        parameters["attention_factor"] = float(attention_factor)
    encoding = with_length_scale(stock_encoding(parameters, geometry), length_scale, geometry)
    return [Stage(encoding, length, share=1.0)]


def longrope(
    geometry: ModelGeometry,
    length: int,
    *,
    long_factor: Sequence[float],
    short_factor: Sequence[float] | None = None,
    factor: float | None = None,
    attention_factor: float | None = None,
) -> list[Stage]:
    """LongRoPE (Ding et al. 2024, arXiv 2402.13753): every pair of dimensions divided by a factor of its own, found by
    its authors' search.

    Parameters
    ----------
    long_factor, short_factor
        One for each of D_rot/2 pairs: beyond the trained context, and within it (default: 1).
    attention_factor
        Default, as in transformers: sqrt(1 + ln s / ln L0).
    """
    pairs = geometry.rotary_dim // 2
    short = [1.0] * pairs if short_factor is None else list(short_factor)
    for name, values in (("long_factor", list(long_factor)), ("short_factor", short)):
        if len(values) != pairs or min(values, default=0) <= 0:
            raise HarpeError(
                f"longrope's {name} has {len(values)} values; the model has {pairs} pairs, each with a factor above 0."
            )
    parameters: dict[str, Any] = {
        "rope_type": "longrope",
        "factor": scale(geometry, length, factor),
        "original_max_position_embeddings": geometry.original_length,
        "long_factor": [float(value) for value in long_factor],
        "short_factor": [float(value) for value in short],
    }
    if attention_factor is not None:
        parameters["attention_factor"] = float(attention_factor)
    return [Stage(stock_encoding(parameters, geometry), length, share=1.0)]
