"""ReRoPE for heads that look near, by parts for those that look far; without training (ours).

ReRoPE (Su 2023, "Rectified rotary position embeddings", https://kexue.fm/archives/9708) has the distance min(i - j, w)
between query i and key j: exact up to a window w inside the trained context, w beyond it. Nothing is new to a head, and
what lies farther than w has no order, which a head that looks near does not miss. One that looks far has all distances,
slowed by parts (`harpe.methods.parts`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from harpe.errors import HarpeError
from harpe.methods.interpolation import scale
from harpe.methods.measured import MeasureHeads, measured_rows
from harpe.methods.parts import exponents_of
from harpe.methods.self_extend import window_of
from harpe.methods.types import (
    AttentionFactor,
    ReRoPE,
    Stage,
    check_unscaled,
    table_encoding,
    untrained,
    with_attention_factor,
)
from harpe.positions.geometry import ModelGeometry


def rerope_parts(
    geometry: ModelGeometry,
    length: int,
    *,
    near: float = 0.5,
    window: int | None = None,
    distances: Sequence[Sequence[float]] | None = None,
    factor: float | None = None,
    exponent: float = 2.0,
    beta_fast: float = 8.0,
    beta_slow: float = 1.0,
    attention_factor: AttentionFactor = "yarn",
    measure: MeasureHeads | None = None,
) -> list[Stage]:
    """One stage without training at `length`, with two kinds of key/value heads; a group of query heads is of one.

    Parameters
    ----------
    near
        Share of the key/value heads, over all layers, that have ReRoPE: those that look nearest. 1 is ReRoPE for all,
        0 by-parts for all: the controls, for which nothing is measured.
    window
        w in tokens, less than the trained context. Default: a quarter of it.
    distances
        Mean attention distances, [layers][key/value heads] in tokens, in the place of measuring.
    factor, exponent, beta_fast, beta_slow
        As of by-parts, for the far heads.
    attention_factor
        As of by-parts, for all heads. ReRoPE as published has none: 1.0.
    measure
        Measures distances.
    """
    check_unscaled(geometry, "rerope-parts")
    window, s = window_of(geometry, window), scale(geometry, length, factor)
    if not 0 <= near <= 1:
        raise HarpeError(f"rerope-parts has near {near:g}; it is a share of the heads, from 0 to 1.")
    heads, pairs = geometry.key_value_heads, geometry.rotary_dim // 2
    changed = range(geometry.layers) if geometry.changed_layers is None else geometry.changed_layers
    places = [(layer, head) for layer in changed for head in range(heads)]
    count = round(near * len(places))
    if 0 < count < len(places):
        rows = measured_rows("rerope-parts", "distances", distances, measure, geometry)
        places.sort(key=lambda place: rows[place[0]][place[1]])
    chosen = set(places[:count])
    trained = [geometry.base ** (-i / pairs) for i in range(pairs)]
    powers = exponents_of(geometry, exponent, beta_fast, beta_slow)
    slowed = [value * s**-power for value, power in zip(trained, powers, strict=True)]
    tables = [
        [trained if (layer, head) in chosen else slowed for head in range(heads)] if layer in changed else None
        for layer in range(geometry.layers)
    ]
    encoding = with_attention_factor(table_encoding(tables, geometry), attention_factor, geometry, s)
    capped = tuple(tuple(head for head in range(heads) if (layer, head) in chosen) for layer in range(geometry.layers))
    return untrained(replace(encoding, attention=ReRoPE(window, capped) if chosen else None), length)
