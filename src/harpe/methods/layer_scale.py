"""A scale of every layer's own, after layer-specific scaling (arXiv 2503.04355; its authors search for the scales)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from harpe.bases.ranges import ntk_base
from harpe.errors import HarpeError
from harpe.methods.parts import exponents_of
from harpe.methods.types import AttentionFactor, LengthScale, Stage, check_unscaled, table_encoding, with_factors
from harpe.positions.geometry import ModelGeometry


def layer_scale(
    geometry: ModelGeometry,
    length: int,
    *,
    scales: Sequence[float] | None = None,
    first: float | None = None,
    last: float | None = None,
    rule: Literal["pi", "ntk", "by-parts"] = "pi",
    attention_factor: AttentionFactor | None = None,
    length_scale: LengthScale | None = None,
) -> list[Stage]:
    """One table for all heads of a layer, scaled by s of that layer; with one s for all it is the method of the rule.

    Parameters
    ----------
    scales
        One for every layer whose positions change, from the bottom.
    first, last
        Instead: of the lowest and the highest of these layers, and evenly spaced between.
    rule
        What a scale does: pi divides all pairs by it, ntk raises the base to b s^(d / (d - 2)), by-parts leaves fast
        pairs alone and divides pair i by s^(u^2) (`harpe.methods.parts`).
    """
    check_unscaled(geometry, "layer-scale")
    changed = range(geometry.layers) if geometry.changed_layers is None else geometry.changed_layers
    count, pairs = len(changed), geometry.rotary_dim // 2
    if scales is None and first is not None and last is not None:
        scales = [first + (last - first) * i / max(1, count - 1) for i in range(count)]
    elif scales is None or first is not None or last is not None:
        raise HarpeError("layer-scale takes either scales, one for every layer, or first and last.")
    if len(scales) != count:
        raise HarpeError(f"layer-scale has {len(scales)} scales, and {count} layers change their positions.")
    if not all(1 <= scale < float("inf") for scale in scales):
        raise HarpeError(f"layer-scale has the scales {', '.join(f'{s:g}' for s in scales)}; each must be 1 or more.")

    def row(scale: float) -> list[float]:
        base = ntk_base(geometry.base, scale, geometry.rotary_dim) if rule == "ntk" else geometry.base
        exponents = {"pi": [1.0] * pairs, "ntk": [0.0] * pairs, "by-parts": exponents_of(geometry, 2.0, 8.0, 1.0)}[rule]
        return [base ** (-i / pairs) * scale**-exponent for i, exponent in enumerate(exponents)]

    given = dict(zip(changed, scales, strict=True))
    tables = [
        [row(given[layer])] * geometry.key_value_heads if layer in given else None for layer in range(geometry.layers)
    ]
    encoding = with_factors(table_encoding(tables, geometry), attention_factor, length_scale, geometry, length)
    note = f"scales from {min(scales):.3g} to {max(scales):.3g}, {rule}"
    return [Stage(encoding, length, share=1.0, note=note)]
